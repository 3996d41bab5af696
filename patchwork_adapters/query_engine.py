"""The drop-in for LlamaIndex: a query engine that runs the same engine through deployed components. Needs llama-index-core."""

from __future__ import annotations

import threading
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks import CallbackManager

from patchwork_adapters.connection import Connection, astepwise, connect, one_request, parse_slo, stepwise


class PatchworkQueryEngine(BaseQueryEngine):  # type: ignore[misc]  # llama_index is optional and unseen by the type checker
    """The same query engine, with its heavy leaves run by deployed components; see :class:`patchwork_adapters.PatchworkRunnable`.

    ``query`` stays ``query`` and ``aquery`` stays ``aquery``. Usable wherever LlamaIndex takes a query engine.
    """

    def __init__(self, engine: BaseQueryEngine, *, slo: str | float | None = None, name: str | None = None) -> None:
        super().__init__(getattr(engine, "callback_manager", None) or CallbackManager())
        self.engine = engine
        self.slo_s = parse_slo(slo)
        self.name = name
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def connect(self) -> PatchworkQueryEngine:
        """Connect now instead of at the first query."""
        self._connected()
        return self

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> PatchworkQueryEngine:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = connect(self.engine, name=self.name, slo_s=self.slo_s)
            return self._connection

    # ``query`` and not ``_query``: the engine emits its own events, and twice would be one too many

    def query(self, str_or_query_bundle: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            response = self.engine.query(str_or_query_bundle)
        if hasattr(response, "response_gen"):  # the engine streams: its model is asked while the answer is read
            tokens = response.response_gen
            response.response_gen = stepwise(self._connected(), self.slo_s, lambda: tokens)
        return response

    async def aquery(self, str_or_query_bundle: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            response = await self.engine.aquery(str_or_query_bundle)
        if hasattr(response, "response_gen"):
            tokens = response.response_gen
            response.response_gen = astepwise(self._connected(), self.slo_s, lambda: tokens)
        return response

    def _query(self, query_bundle: Any) -> Any:
        return self.query(query_bundle)

    async def _aquery(self, query_bundle: Any) -> Any:
        return await self.aquery(query_bundle)

    def retrieve(self, query_bundle: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            return self.engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: Any) -> Any:
        with one_request(self._connected(), self.slo_s):
            return await self.engine.aretrieve(query_bundle)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {"engine": self.engine}
