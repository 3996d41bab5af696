"""Drop-in Runnables: the same chain through deployed components, or a deployed chain over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig

from patchwork_adapters.connection import Connecting, astepwise, one_request, parse_slo, stepwise


class PatchworkRunnable(Runnable[Any, Any]):
    """The same chain, with its heavy leaves run by deployed components.

    ``invoke`` stays ``invoke`` and ``ainvoke`` stays ``ainvoke``: the chain runs in this process, and only its leaf calls travel. The
    chain object itself behaves as before wherever it is used without this wrapper. Connects at the first use, or with :meth:`connect`;
    :meth:`close` (or the end of the program) undoes everything.

    ``slo``: seconds, or a duration such as ``"500ms"`` or ``"5s"``; each call of this Runnable gets that deadline and raises
    DeadlinePassed (a BaseException, so that no fallback starts) when it passes.

    ``name``: of a deployed application, to use its components; of one that is not deployed, to give the components that are started a
    name. Programs that wrap equal chains share what was started. A vector store in this process is searched as it was when it was wrapped;
    one that is written to afterwards is searched in this process again.
    """

    def __init__(self, chain: Runnable[Any, Any], *, slo: str | float | None = None, name: str | None = None) -> None:
        self.chain = chain
        self.slo_s = parse_slo(slo)
        self.name = name
        self._connecting = Connecting(chain, name, self.slo_s)

    def connect(self) -> PatchworkRunnable:
        """Connect now instead of at the first call; takes the seconds that starting components takes."""
        self._connecting.get()
        return self

    def close(self) -> None:
        """Disconnect: what was started for this chain stops with the last program that uses it. The next call connects again."""
        self._connecting.close()

    def __enter__(self) -> PatchworkRunnable:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- Runnable ----------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        with one_request(self._connecting.get(), self.slo_s):
            return self.chain.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        with one_request(await self._connecting.aget(), self.slo_s):
            return await self.chain.ainvoke(input, config, **kwargs)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        with one_request(self._connecting.get(), self.slo_s):
            return self.chain.batch(inputs, config, return_exceptions=cast(Any, return_exceptions), **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        with one_request(await self._connecting.aget(), self.slo_s):
            return await self.chain.abatch(inputs, config, return_exceptions=cast(Any, return_exceptions), **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        return stepwise(self._connecting.get(), self.slo_s, lambda: self.chain.stream(input, config, **kwargs))

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        connection = await self._connecting.aget()
        chunks = astepwise(connection, self.slo_s, lambda: self.chain.astream(input, config, **kwargs))
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    @property
    def InputType(self) -> Any:
        return self.chain.InputType

    @property
    def OutputType(self) -> Any:
        return self.chain.OutputType

    def get_graph(self, config: RunnableConfig | None = None) -> Any:
        return self.chain.get_graph(config)

    def get_input_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.chain.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.chain.get_output_schema(config)

    @property
    def config_specs(self) -> Sequence[Any]:  # type: ignore[override]
        return self.chain.config_specs
