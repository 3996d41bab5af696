"""Where the running code is in a LlamaIndex engine or workflow, told by spans: each carries the object that works.

A span's place is the canonical path of its object, when the object is part of the chain; an engine, retriever or the like that is made
for the one request adds its class to the place of its parent. A leaf's own span is no place.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.parts import names_of
from patchwork_adapters.sites import Use, note_fault, part, place_of, remember

#: Base classes of what engines make for a request, and name in a place; other objects (programs, responses) differ between modes.
_MADE = frozenset({
    "llama_index.core.base.base_query_engine.BaseQueryEngine", "llama_index.core.base.base_retriever.BaseRetriever",
    "llama_index.core.response_synthesizers.base.BaseSynthesizer", "llama_index.core.chat_engine.types.BaseChatEngine",
    "llama_index.core.postprocessor.types.BaseNodePostprocessor", "workflows.workflow.Workflow",
})  # fmt: skip


def install(use: Use) -> Undo:
    """Follow spans, when LlamaIndex is here; ``use`` is given the tracker."""
    module = sys.modules.get("llama_index_instrumentation")
    return _install(module, use) if module is not None else lambda: None


class SpanPlaces:
    """Where each span in flight is."""

    def __init__(self, current: Any) -> None:
        self._current = current  #: ContextVar with the id of the running span
        self._spans: dict[str, str] = {}

    def where(self, manager: Any) -> str:
        span = self._current.get()
        return self._spans.get(span, "") if span is not None else ""

    def moment(self, manager: Any) -> None:
        return None

    def begin(self, span: str, instance: Any, parent: str | None) -> None:
        try:
            remember(self._spans, span, self._place(instance, parent))
        except Exception as error:  # noqa: BLE001  the dispatcher would swallow it
            note_fault(error)

    def _place(self, instance: Any, parent: str | None) -> str:
        above = self._spans.get(parent, "") if parent is not None else ""
        known = place_of(instance) if instance is not None else ""
        if known is None:
            name = "" if _MADE.isdisjoint(names_of(instance)) else part(type(instance).__name__)
            is_said = not name or above == name or above.endswith(f"/{name}")
            known = above if is_said else f"{above}/{name}" if above else name
        return known or above

    def end(self, span: str) -> None:
        self._spans.pop(span, None)


def _install(module: ModuleType, use: Use) -> Undo:
    from llama_index_instrumentation.span import active_span_id

    places = SpanPlaces(active_span_id)
    dispatcher = module.get_dispatcher()
    handler = _handler(places)
    dispatcher.add_span_handler(handler)
    unuse = use(places)

    def undo() -> None:
        dispatcher.span_handlers = [other for other in dispatcher.span_handlers if other is not handler]
        unuse()

    return undo


def _handler(places: SpanPlaces) -> Any:
    from llama_index_instrumentation.span import BaseSpan
    from llama_index_instrumentation.span_handlers import BaseSpanHandler

    class SiteSpans(BaseSpanHandler[BaseSpan]):
        """Keeps a path per open span and nothing else; the base class would keep objects and lock."""

        def span_enter(
            self,
            id_: str,
            bound_args: Any,
            instance: Any = None,
            parent_id: Any = None,
            tags: Any = None,
            **kwargs: Any,
        ) -> None:
            places.begin(id_, instance, parent_id)

        def span_exit(self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **kwargs: Any) -> None:
            places.end(id_)

        def span_drop(self, id_: str, bound_args: Any, instance: Any = None, err: Any = None, **kwargs: Any) -> None:
            places.end(id_)

        def new_span(self, *args: Any, **kwargs: Any) -> None:
            return None

        def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
            return None

        def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
            return None

    return SiteSpans()
