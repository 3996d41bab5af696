"""Drop-in Runnables: the same chain through deployed components, or a deployed chain over HTTP."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig

from patchwork_adapters.connection import Connection, astepwise, connect, one_request, parse_slo, stepwise


class PatchworkRunnable(Runnable[Any, Any]):
    """The same chain, with its heavy leaves run by deployed components.

    ``invoke`` stays ``invoke`` and ``ainvoke`` stays ``ainvoke``: the chain runs in this process, and only its leaf calls travel. The
    chain object itself behaves as before wherever it is used without this wrapper. Connects at the first use, or with :meth:`connect`;
    :meth:`close` (or the end of the program) undoes everything.

    ``slo``: seconds, or a duration such as ``"500ms"`` or ``"5s"``; each call of this Runnable gets that deadline and raises
    DeadlinePassed (a BaseException, so that no fallback starts) when it passes.
    """

    def __init__(self, chain: Runnable[Any, Any], *, slo: str | float | None = None, name: str | None = None) -> None:
        self.chain = chain
        self.slo_s = parse_slo(slo)
        self.name = name
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def connect(self) -> PatchworkRunnable:
        """Connect now instead of at the first call; takes the seconds that starting components takes."""
        self._connected()
        return self

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> PatchworkRunnable:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = connect(self.chain, name=self.name, slo_s=self.slo_s)
            return self._connection

    # -- Runnable ----------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            return self.chain.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            return await self.chain.ainvoke(input, config, **kwargs)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        with one_request(self._connected(), self.slo_s):
            return self.chain.batch(inputs, config, return_exceptions=cast(Any, return_exceptions), **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        with one_request(self._connected(), self.slo_s):
            return await self.chain.abatch(inputs, config, return_exceptions=cast(Any, return_exceptions), **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return stepwise(self._connected(), self.slo_s, lambda: self.chain.stream(input, config, **kwargs))

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        return astepwise(self._connected(), self.slo_s, lambda: self.chain.astream(input, config, **kwargs))

    @property
    def InputType(self) -> Any:
        return self.chain.InputType

    @property
    def OutputType(self) -> Any:
        return self.chain.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.chain.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.chain.get_output_schema(config)

    @property
    def config_specs(self) -> Sequence[Any]:  # type: ignore[override]
        return self.chain.config_specs
