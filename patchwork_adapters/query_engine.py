"""The drop-in for LlamaIndex: a query engine that runs the same engine through deployed components. Needs llama-index-core."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks import CallbackManager

from patchwork_adapters.connection import Connecting, Steps, one_request, parse_slo


class PatchworkQueryEngine(BaseQueryEngine):  # type: ignore[misc]  # llama_index is optional and unseen by the type checker
    """The same query engine, with its heavy leaves run by deployed components; see :class:`patchwork_adapters.PatchworkRunnable`.

    ``query`` stays ``query`` and ``aquery`` stays ``aquery``. Usable wherever LlamaIndex takes a query engine.
    """

    def __init__(self, engine: BaseQueryEngine, *, slo: str | float | None = None, name: str | None = None) -> None:
        super().__init__(getattr(engine, "callback_manager", None) or CallbackManager())
        self.engine = engine
        self.slo_s = parse_slo(slo)
        self.name = name
        self._connecting = Connecting(engine, name, self.slo_s)

    def connect(self) -> PatchworkQueryEngine:
        """Connect now instead of at the first query."""
        self._connecting.get()
        return self

    def close(self) -> None:
        """Disconnect; the next query connects again."""
        self._connecting.close()

    def __enter__(self) -> PatchworkQueryEngine:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ``query`` and not ``_query``: the engine emits its own events, and twice would be one too many

    def query(self, str_or_query_bundle: Any) -> Any:
        request = Steps(self._connecting.get(), self.slo_s)
        response = request.run(lambda: self.engine.query(str_or_query_bundle))
        tokens = getattr(response, "response_gen", None)
        if tokens is None:
            request.end(None)
        else:  # the engine streams: its model is asked while the answer is read
            response.response_gen = request.iterate(lambda: tokens)
        return response

    async def aquery(self, str_or_query_bundle: Any) -> Any:
        request = Steps(await self._connecting.aget(), self.slo_s)
        response = await request.arun(lambda: self.engine.aquery(str_or_query_bundle))
        tokens = getattr(response, "response_gen", None)
        if tokens is None:
            request.end(None)
        else:
            response.response_gen = request.aiterate(lambda: tokens)
        return response

    def _query(self, query_bundle: Any) -> Any:
        return self.query(query_bundle)

    async def _aquery(self, query_bundle: Any) -> Any:
        return await self.aquery(query_bundle)

    def retrieve(self, query_bundle: Any) -> Any:
        with one_request(self._connecting.get(), self.slo_s):
            return self.engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: Any) -> Any:
        with one_request(await self._connecting.aget(), self.slo_s):
            return await self.engine.aretrieve(query_bundle)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {"engine": self.engine}
