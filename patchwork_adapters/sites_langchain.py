"""Where the running code is in a LangChain or LangGraph chain, told by the tags and metadata of runs.

A run's place is its parent's and one more part: ``seq:step:3`` is the part ``3``, ``map:key:a`` ``{a}``, ``branch:1`` ``branch1``,
``condition:1`` ``if1``, and a graph's node its name. A retry is no other place: attempts count as visits.

LangChain says where the running code is in a ContextVar, but not while it streams: there a step gets its config as an argument only. So
the entry points of models and retrievers note theirs, and the deeper of the two places counts; a place is the same in every mode.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from uuid import UUID

from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.sites import LINES, Use, lines_above, note_fault, part, place_of, remember

_PREFIXES = (
    ("seq:step:", "{}"), ("map:key:", "{{{}}}"), ("branch:", "branch{}"), ("condition:", "if{}"), ("retriever_", "retriever{}"),
)  # fmt: skip
#: How tags begin by which LangChain and LangGraph say where a run is.
STRUCTURAL = (*(prefix for prefix, _ in _PREFIXES), "graph:step:")

#: The callback manager that the running model or retriever was given.
_GIVEN: ContextVar[Any] = ContextVar("patchwork_given_manager", default=None)


def install(use: Use) -> Undo:
    """Follow runs, when LangChain is here; ``use`` is given the tracker. A chain that is loaded has imported what it runs on."""
    if "langchain_core.runnables.base" not in sys.modules:
        return lambda: None
    return _install(importlib.import_module("langchain_core.language_models.chat_models"), use)


@dataclass(frozen=True, slots=True)
class _Run:
    place: str = ""
    unsaid: str | None = None  #: part that its children do not add
    moment: tuple[Hashable, Hashable] | None = None  #: (graph's run and step, node's run) of the innermost graph around


_NONE = _Run()


class RunPlaces:
    """Where each run in flight is. A run is known by its id: threads, tasks and generators make no difference."""

    def __init__(self, current: Any) -> None:
        self._current = current  #: ContextVar with the RunnableConfig of the running code
        self._runs: dict[UUID, _Run] = {}

    def where(self, manager: Any) -> str:
        if manager is not None:
            return self._of(manager)
        config, given = self._current.get(), _GIVEN.get()
        current = config.get("callbacks") if config else None
        if given is None or given is current:
            return self._of(current)
        return max(self._of(current), self._of(given), key=len)

    def _of(self, manager: Any) -> str:
        parent = getattr(manager, "parent_run_id", None)
        return self._place(parent, manager.tags)[0] if parent is not None else ""

    def moment(self, manager: Any) -> tuple[Hashable, Hashable] | None:
        config = self._current.get()
        manager = manager if manager is not None else config.get("callbacks") if config else None
        return self._run(getattr(manager, "parent_run_id", None)).moment

    def begin(self, run: UUID, parent: UUID | None, tags: Sequence[str], node: str | None, name: str | None) -> None:
        place, label = self._place(parent, tags, node)
        above = self._run(parent).moment
        if node is not None and label == node:
            step = next(tag for tag in tags if tag.startswith("graph:step:"))
            # what a node does is the first step of a sequence that writes its result afterwards
            remember(self._runs, run, _Run(place, "1", ((parent, step), run)))
        else:
            # fallbacks give their own config to what they run: the tag comes once more
            remember(self._runs, run, _Run(place, label if name == "RunnableWithFallbacks" else None, above))

    def end(self, run: UUID) -> None:
        self._runs.pop(run, None)

    def _run(self, run: UUID | None) -> _Run:
        return self._runs.get(run, _NONE) if run is not None else _NONE

    def _place(self, parent: UUID | None, tags: Sequence[str], node: str | None = None) -> tuple[str, str | None]:
        """The place of a run, and its own part of it."""
        run = self._run(parent)
        label = None
        for tag in tags:
            label = node if tag.startswith("graph:step:") else _label(tag) or label
        if label is None or label == run.unsaid:
            return run.place, None
        return (f"{run.place}/{label}" if run.place else label), label


@functools.lru_cache(maxsize=4096)
def _label(tag: str) -> str | None:
    for prefix, form in _PREFIXES:
        if tag.startswith(prefix):
            text = part(tag.removeprefix(prefix))
            return text if text == "default" else form.format(text)
    return None


class _Switch:
    """Takes the place of the ContextVar that a configure hook reads: one value for the whole process, in raw threads as well."""

    def __init__(self) -> None:
        self.handler: Any = None

    def get(self) -> Any:
        return self.handler


def _install(chat_models: ModuleType, use: Use) -> Undo:
    from langchain_core.runnables.config import var_child_runnable_config
    from langchain_core.tracers import context

    places = RunPlaces(var_child_runnable_config)
    switch = _Switch()
    switch.handler = _handler(places)
    hooks = context._configure_hooks
    context.register_configure_hook(switch, inheritable=True)  # type: ignore[arg-type]
    hook = hooks[-1]
    undo_notes = [*_note_entries(chat_models), *_stay_out_of_models(switch.handler)]
    unuse = use(places)

    def undo() -> None:
        switch.handler = None
        hooks[:] = [other for other in hooks if other is not hook]
        while undo_notes:
            undo_notes.pop()()
        unuse()

    return undo


def _handler(places: RunPlaces) -> Any:
    """Sees the runs that others are made in; a model's own place is told by the run above it."""
    from langchain_core.callbacks import BaseCallbackHandler

    def start(
        _handler: Any,
        _serialized: Any,
        _input: Any,
        /,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            is_node = any(tag.startswith("graph:step:") for tag in tags or ())
            node = part(str((metadata or {}).get("langgraph_node"))) if is_node else None
            places.begin(run_id, parent_run_id, tags or (), node, kwargs.get("name"))
        except Exception as error:  # noqa: BLE001  the callback manager would log and forget it
            note_fault(error)

    def end(_handler: Any, _output: Any, /, *, run_id: UUID, **kwargs: Any) -> None:
        places.end(run_id)

    kinds = ("chain", "tool", "retriever")
    return type(
        "SiteHandler",
        (BaseCallbackHandler,),
        {
            "run_inline": True,  # in order, and without a thread
            **dict.fromkeys(("ignore_llm", "ignore_chat_model", "ignore_retry", "ignore_custom_event"), True),
            **{f"on_{kind}_start": start for kind in kinds},
            **{f"on_{kind}_{how}": end for kind in kinds for how in ("end", "error")},
        },
    )()


def _stay_out_of_models(handler: Any) -> list[Undo]:
    """Nothing is made in a model's run, and our handler would cost its share of every token.

    More than that: in langchain-core 1.7 the other handlers do not hear of the start of a completion when one is inline.
    """
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager

    def others(manager: Any) -> list[Any]:
        return [other for other in manager.handlers if other is not handler]

    def make(original: Any) -> Any:
        def start(manager: Any, *args: Any, **kwargs: Any) -> Any:
            before, manager.handlers = manager.handlers, others(manager)
            try:
                return original(manager, *args, **kwargs)
            finally:
                manager.handlers = before

        return start

    def make_async(original: Any) -> Any:
        async def start(manager: Any, *args: Any, **kwargs: Any) -> Any:
            before, manager.handlers = manager.handlers, others(manager)
            try:
                return await original(manager, *args, **kwargs)
            finally:
                manager.handlers = before

        return start

    names = ("on_llm_start", "on_chat_model_start")
    return [
        *(_wrap(CallbackManager, name, make) for name in names),
        *(_wrap(AsyncCallbackManager, name, make_async) for name in names),
    ]


def _note_entries(chat_models: ModuleType) -> list[Undo]:
    from langchain_core.language_models.llms import BaseLLM
    from langchain_core.retrievers import BaseRetriever

    chat = chat_models.BaseChatModel
    wrapped = [
        (chat, "agenerate", _lines), (chat, "invoke", _plain), (chat, "ainvoke", _coroutine), (chat, "stream", _generator),
        (chat, "astream", _async_generator), (BaseLLM, "invoke", _plain), (BaseLLM, "ainvoke", _coroutine),
        (BaseLLM, "stream", _generator), (BaseLLM, "astream", _async_generator), (BaseRetriever, "invoke", _plain),
        (BaseRetriever, "ainvoke", _coroutine),
    ]  # fmt: skip
    return [_wrap(cls, name, make) for cls, name, make in wrapped]


def _wrap(cls: Any, name: str, make: Callable[[Any], Any]) -> Undo:
    original = getattr(cls, name)
    wrapper = functools.wraps(original)(make(original))
    setattr(cls, name, wrapper)

    def undo() -> None:
        if vars(cls).get(name) is wrapper:  # else somebody has wrapped it again
            setattr(cls, name, original)

    return undo


def _given(config: Mapping[str, Any] | None) -> Any:
    manager = config.get("callbacks") if config else None
    return manager if manager is not None else _GIVEN.get()


def _lines(original: Any) -> Any:
    """``agenerate`` gathers its calls in new tasks, whose stacks do not reach the user's function: its lines are noted before."""

    async def agenerate(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = LINES.set(lines_above(sys._getframe(1)))
        try:
            return await original(self, *args, **kwargs)
        finally:
            LINES.reset(token)

    return agenerate


def _plain(original: Any) -> Any:
    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        token = _GIVEN.set(_given(config))
        try:
            return original(self, input, config, **kwargs)
        finally:
            _GIVEN.reset(token)

    return invoke


def _coroutine(original: Any) -> Any:
    async def ainvoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        token = _GIVEN.set(_given(config))
        try:
            return await original(self, input, config, **kwargs)
        finally:
            _GIVEN.reset(token)

    return ainvoke


def _generator(original: Any) -> Any:
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        given = _given(config)
        with closing(original(self, input, config, **kwargs)) as chunks:
            while True:
                token = _GIVEN.set(given)  # for one step: between steps the reader's code runs in this context
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
                finally:
                    _GIVEN.reset(token)
                yield chunk
                if place_of(self) == "":  # as below
                    break
            yield from chunks

    return stream


def _async_generator(original: Any) -> Any:
    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        given = _given(config)
        async with aclosing(original(self, input, config, **kwargs)) as chunks:
            while True:
                token = _GIVEN.set(given)
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                finally:
                    _GIVEN.reset(token)
                yield chunk
                # a leaf: its call was made in the first step, and there is one of these for each token
                if place_of(self) == "":
                    break
            async for chunk in chunks:
                yield chunk

    return astream
