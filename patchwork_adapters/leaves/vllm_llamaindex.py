"""LlamaIndex's ``Vllm`` and ``VllmServer``: their calls become those of a shared engine (design, D4); see ``vllm.py``.

``Vllm`` holds an engine in its process. ``VllmServer`` speaks over HTTP to one on this machine, in the words of vLLM's old demonstration
server (which gives the prompt back before the text) or of the OpenAI protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.leaves import llamaindex as _llamaindex  # noqa: F401  registers the base classes
from patchwork_adapters.leaves.huggingface_calls import Methods, register_like, text_of
from patchwork_adapters.leaves.huggingface_fields import Unmapped
from patchwork_adapters.leaves.spec import ConstructHook, Facts, register_construct_hook
from patchwork_adapters.leaves.vllm import completion_body, lazy_engine, refuse_other_models


def _body(obj: Any, prompt: str, call: Mapping[str, Any]) -> dict[str, Any]:
    return {"body": completion_body(obj.model, prompt, {**obj._model_kwargs, **call})}


def _facts(leaf: Any) -> Facts:
    if leaf.api_url:
        raise Unmapped("an api_url, with which the class has no engine")
    _body(leaf, "", {})
    refuse_other_models(leaf.vllm_kwargs)
    return Facts(model=leaf.model)


def _methods(cls: type) -> Methods:
    # streaming stays the class's own: it is not implemented there
    def complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return _completion(text_of(leaf.ask("complete", _body(leaf.obj, prompt, kwargs))))

    async def acomplete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return _completion(text_of(await leaf.aask("complete", _body(leaf.obj, prompt, kwargs))))

    return {"complete": complete, "acomplete": acomplete, "achat": _achat}


async def _achat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
    """The class's own would run ``chat`` on the event loop."""
    from llama_index.core.base.llms.generic_utils import completion_response_to_chat_response

    prompt = leaf.obj.messages_to_prompt(messages)
    return completion_response_to_chat_response(await leaf.obj.acomplete(prompt, **kwargs))


# ---- a server


def _server_facts(leaf: Any) -> Facts:
    if not leaf.openai_like:
        _body(leaf, "", {})
    return Facts(model=leaf.model, base_url=leaf.api_url)


def _server_call(obj: Any, prompt: str, call: Mapping[str, Any], *, stream: bool) -> tuple[str, dict[str, Any]]:
    if obj.openai_like:
        arguments = {"body": obj._build_openai_payload(prompt, {**obj._model_kwargs, **call}, chat=False)}
    else:
        arguments = _body(obj, prompt, call)
    if stream:
        arguments["body"]["stream"] = True
    return ("chat" if obj.openai_like else "complete"), arguments


def _server_text(obj: Any, prompt: str, reply: Mapping[str, Any]) -> str:
    if not obj.openai_like:
        return prompt + text_of(reply)
    return "".join(choice["message"].get("content") or "" for choice in reply["choices"][:1])


def _delta(obj: Any, frame: Mapping[str, Any]) -> str:
    if not obj.openai_like:
        return text_of(frame)
    return "".join(choice.get("delta", {}).get("content") or "" for choice in frame["choices"][:1])


def _server_methods(cls: type) -> Methods:
    def complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        reply = leaf.ask(*_server_call(leaf.obj, prompt, kwargs, stream=False))
        return _completion(_server_text(leaf.obj, prompt, reply))

    async def acomplete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        reply = await leaf.aask(*_server_call(leaf.obj, prompt, kwargs, stream=False))
        return _completion(_server_text(leaf.obj, prompt, reply))

    def stream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        call = _server_call(leaf.obj, prompt, kwargs, stream=True)

        def pieces() -> Iterator[Any]:
            text = "" if leaf.obj.openai_like else prompt
            for frame in leaf.stream(*call):
                if delta := _delta(leaf.obj, frame):
                    text += delta
                    yield _completion(text, delta)

        return pieces()

    async def astream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        call = _server_call(leaf.obj, prompt, kwargs, stream=True)

        async def pieces() -> AsyncIterator[Any]:
            text = "" if leaf.obj.openai_like else prompt
            async for frame in leaf.astream(*call):
                if delta := _delta(leaf.obj, frame):
                    text += delta
                    yield _completion(text, delta)

        return pieces()

    async def astream_chat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
        from llama_index.core.base.llms.generic_utils import astream_completion_response_to_chat_response

        pieces = await leaf.obj.astream_complete(leaf.obj.messages_to_prompt(messages), **kwargs)
        return astream_completion_response_to_chat_response(pieces)

    own = (complete, acomplete, stream_complete, astream_complete, astream_chat)
    return {"achat": _achat, **{f.__name__: f for f in own}}


def _completion(text: str, delta: str | None = None) -> Any:
    from llama_index.core.base.llms.types import CompletionResponse

    return CompletionResponse(text=text, delta=delta)


_BASE = "llama_index.core.base.llms.base.BaseLLM"
_MODULE = "llama_index.llms.vllm.base"
register_like(_BASE, f"{_MODULE}.Vllm", _facts, "vllm", _methods)
register_like(_BASE, f"{_MODULE}.VllmServer", _server_facts, "vllm", _server_methods)
register_construct_hook(ConstructHook(_MODULE, lazy_engine("Vllm")))
