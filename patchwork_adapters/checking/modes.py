"""The ways in which a chain can be run, and what each gives as plain data.

A run never translates: ``invoke`` is called for "invoke", ``ainvoke`` for "ainvoke", each stream is read to its end.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.checking.cases import Case
from patchwork_adapters.checking.values import Plain, plain

#: Ids that state is kept under; each run gets one of its own unless its case names one.
_SESSION_IDS = ("thread_id", "session_id", "conversation_id", "user_id")
_GRAPH_STREAMS = ["values", "updates", "messages", "custom"]


@dataclass(frozen=True, slots=True)
class Mode:
    """``run(chain, cases)`` gives plain data, or an awaitable of it; ``together``: all cases in one call, else one case."""

    name: str
    run: Callable[[Any, Sequence[Case]], Any]
    is_async: bool = False
    together: bool = False


def modes_of(chain: Any, framework: str) -> tuple[Mode, ...]:
    names = class_names(type(chain))
    if framework == "langgraph":
        return (*_RUNNABLE, *_GRAPH)
    if framework == "langchain":
        return _RUNNABLE
    if "llama_index.core.base.base_query_engine.BaseQueryEngine" in names:
        return _QUERY
    if "llama_index.core.chat_engine.types.BaseChatEngine" in names:
        return _CHAT
    return _WORKFLOW


# ---- LangChain and LangGraph


def config_of(chain: Any, case: Case) -> dict[str, Any]:
    config = dict(case.config)
    given = dict(config.get("configurable", {}))
    wanted = [spec.id for spec in getattr(chain, "config_specs", ()) if spec.id in _SESSION_IDS]
    if getattr(chain, "checkpointer", None):
        wanted.append("thread_id")
    for name in wanted:
        given.setdefault(name, str(uuid.uuid4()))
    return {**config, "configurable": given} if given else config


def fitted(chain: Any, case: Case) -> Case:
    """For a chain that takes a text, the text of an object that has one under a usual name: files of questions say more than that."""
    text = text_of(case) if isinstance(case.input, dict) and _takes_text(chain) else None
    return replace(case, input=text) if isinstance(text, str) else case


def _takes_text(chain: Any) -> bool:
    try:
        return bool(chain.get_input_jsonschema().get("type") == "string")
    except Exception:  # noqa: BLE001  the user's types: some have no JSON schema, and then it is no text
        return False


def steps_of(case: Case) -> list[Any]:
    """What is given to the chain in turn: the input, then an answer for each interrupt."""
    if not case.resume:
        return [case.input]
    from langgraph.types import Command

    return [case.input, *(Command(resume=answer) for answer in case.resume)]


def _state(chain: Any, config: Mapping[str, Any]) -> dict[str, Plain]:
    if not getattr(chain, "checkpointer", None):
        return {}
    return {"checkpoints": plain(list(chain.get_state_history(config)))}


async def _astate(chain: Any, config: Mapping[str, Any]) -> dict[str, Plain]:
    if not getattr(chain, "checkpointer", None):
        return {}
    return {"checkpoints": plain([state async for state in chain.aget_state_history(config)])}


def _invoke(chain: Any, cases: Sequence[Case]) -> Plain:
    (case,) = cases
    config = config_of(chain, case)
    values = [plain(chain.invoke(step, config)) for step in steps_of(case)]
    return {"values": values, **_state(chain, config)}


async def _ainvoke(chain: Any, cases: Sequence[Case]) -> Plain:
    (case,) = cases
    config = config_of(chain, case)
    values = [plain(await chain.ainvoke(step, config)) for step in steps_of(case)]
    return {"values": values, **await _astate(chain, config)}


def _batch(chain: Any, cases: Sequence[Case]) -> Plain:
    configs = [config_of(chain, case) for case in cases]
    return {"values": plain(chain.batch([c.input for c in cases], configs, return_exceptions=True))}


async def _abatch(chain: Any, cases: Sequence[Case]) -> Plain:
    configs = [config_of(chain, case) for case in cases]
    return {"values": plain(await chain.abatch([c.input for c in cases], configs, return_exceptions=True))}


def _streaming(**options: Any) -> Callable[[Any, Sequence[Case]], Plain]:
    def run(chain: Any, cases: Sequence[Case]) -> Plain:
        (case,) = cases
        config = config_of(chain, case)
        chunks: list[Plain] = []
        with _keeping(chunks) as kept:
            for step in steps_of(case):
                for chunk in chain.stream(step, config, **options):
                    chunks.append(plain(chunk))
        return {**kept, **_state(chain, config)}

    return run


def _astreaming(method: str, **options: Any) -> Callable[[Any, Sequence[Case]], Awaitable[Plain]]:
    async def run(chain: Any, cases: Sequence[Case]) -> Plain:
        (case,) = cases
        config = config_of(chain, case)
        chunks: list[Plain] = []
        with _keeping(chunks) as kept:
            for step in steps_of(case):
                async for chunk in getattr(chain, method)(step, config, **options):
                    chunks.append(plain(chunk))
        return {**kept, **await _astate(chain, config)}

    return run


@contextmanager
def _keeping(chunks: list[Plain]) -> Iterator[dict[str, Plain]]:
    """Chunks that came before an exception are part of the outcome, as the exception is."""
    kept: dict[str, Plain] = {"chunks": chunks}
    try:
        yield kept
    except Exception as error:  # noqa: BLE001  the user's chain raised it: it is compared
        kept["raised"] = plain(error)


_RUNNABLE = (
    Mode("invoke", _invoke),
    Mode("ainvoke", _ainvoke, is_async=True),
    Mode("batch", _batch, together=True),
    Mode("abatch", _abatch, is_async=True, together=True),
    Mode("stream", _streaming()),
    Mode("astream", _astreaming("astream"), is_async=True),
    Mode("astream_events", _astreaming("astream_events", version="v2"), is_async=True),
)
_GRAPH = (
    Mode("stream modes", _streaming(stream_mode=_GRAPH_STREAMS, subgraphs=True)),
    Mode("astream modes", _astreaming("astream", stream_mode=_GRAPH_STREAMS, subgraphs=True), is_async=True),
)

# ---- LlamaIndex


def text_of(case: Case) -> Any:
    if not isinstance(case.input, dict):
        return case.input
    return next((case.input[n] for n in ("query", "question", "message", "input", "user_msg") if n in case.input), None)


def _read(response: Any) -> dict[str, Plain]:
    chunks = [plain(piece) for piece in getattr(response, "response_gen", None) or ()]
    return {"chunks": chunks, "values": [_response(response)]}


async def _aread(response: Any) -> dict[str, Plain]:
    stream = getattr(response, "async_response_gen", None) or getattr(response, "response_gen", None)
    stream = stream() if callable(stream) else stream
    if stream is None:
        return {"chunks": [], "values": [_response(response)]}
    if hasattr(stream, "__aiter__"):
        chunks = [plain(piece) async for piece in stream]
    else:
        chunks = [plain(piece) for piece in stream]
    return {"chunks": chunks, "values": [_response(response)]}


def _response(response: Any) -> Plain:
    """Text, sources with scores, metadata: queues and threads of a streaming response are no part of the answer."""
    names = ("response", "source_nodes", "metadata", "sources")
    found = {name: plain(getattr(response, name)) for name in names if hasattr(response, name)}
    return {"@": type(response).__name__, **found} if found else plain(response)


def _query(chain: Any, cases: Sequence[Case]) -> Plain:
    return _read(chain.query(text_of(cases[0])))


async def _aquery(chain: Any, cases: Sequence[Case]) -> Plain:
    return await _aread(await chain.aquery(text_of(cases[0])))


def _chatting(method: str) -> Callable[[Any, Sequence[Case]], Plain]:
    def run(chain: Any, cases: Sequence[Case]) -> Plain:
        read = _read(getattr(chain, method)(text_of(cases[0])))
        return {**read, "history": plain(chain.chat_history)}

    return run


def _achatting(method: str) -> Callable[[Any, Sequence[Case]], Awaitable[Plain]]:
    async def run(chain: Any, cases: Sequence[Case]) -> Plain:
        response = await getattr(chain, method)(text_of(cases[0]))
        read = await (_aread(response) if method == "astream_chat" else _done(_read(response)))
        return {**read, "history": plain(chain.chat_history)}

    return run


async def _done(value: Plain) -> Plain:
    return value


async def _run_workflow(chain: Any, cases: Sequence[Case]) -> Plain:
    (case,) = cases
    handler = chain.run(**workflow_arguments(chain, case))
    chunks = [plain(event) async for event in handler.stream_events()]
    return {"chunks": chunks, "values": [plain(await handler)]}


def workflow_arguments(chain: Any, case: Case) -> dict[str, Any]:
    if isinstance(case.input, dict):
        return case.input
    is_agent = any(name.startswith("llama_index.core.agent.") for name in class_names(type(chain)))
    return {"user_msg" if is_agent else "input": case.input}


_QUERY = (Mode("query", _query), Mode("aquery", _aquery, is_async=True))
_CHAT = (
    Mode("chat", _chatting("chat")),
    Mode("achat", _achatting("achat"), is_async=True),
    Mode("stream_chat", _chatting("stream_chat")),
    Mode("astream_chat", _achatting("astream_chat"), is_async=True),
)
_WORKFLOW = (Mode("run", _run_workflow, is_async=True),)
