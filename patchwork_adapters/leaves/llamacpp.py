"""llama-cpp-python's classes of both frameworks, which hold a model in their process: they ask a shared engine (design, D4).

The user's own method runs, on a copy whose ``llama_cpp.Llama`` is the component: what it checks, sends and makes of the answer stays
its own. Constructors load no model in deployed processes, and ``llama_cpp`` need not be installed for LangChain's.

The context's length and the rotary settings go along to the engine, because they change answers. Sampled text has the engine's random
numbers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from types import ModuleType, SimpleNamespace
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.leaves import langchain as _langchain  # noqa: F401  registers the base classes
from patchwork_adapters.leaves import llamaindex as _llamaindex  # noqa: F401
from patchwork_adapters.leaves.deferred import Deferred, constructed_with
from patchwork_adapters.leaves.huggingface_calls import Methods, register_like, text_of
from patchwork_adapters.leaves.llamacpp_bodies import (
    calling,
    calling_frames,
    chat_body,
    completion_body,
    engine_options,
    forced_tool,
    refuse_other_models,
)
from patchwork_adapters.leaves.spec import ConstructHook, Facts, register_construct_hook


class RemoteLlama:
    """What the classes call of ``llama_cpp.Llama``, answered by the component."""

    def __init__(self, leaf: Bound, seed: int) -> None:
        self._leaf = leaf
        self._seed = seed

    def __call__(self, prompt: str, stream: bool = False, **sampling: Any) -> Any:
        return self._ask("complete", completion_body(prompt, self._seed, sampling), stream)

    def create_chat_completion(self, messages: Sequence[Any], stream: bool = False, **sampling: Any) -> Any:
        reply = self._ask("chat", chat_body(messages, self._seed, sampling), stream)
        tool = forced_tool(sampling)
        if tool is None:
            return reply
        return calling_frames(tool, reply) if stream else calling(tool, reply)

    def _ask(self, operation: str, body: dict[str, Any], stream: bool) -> Any:
        return self._frames(operation, body) if stream else self._leaf.ask(operation, {"body": body})

    def _frames(self, operation: str, body: dict[str, Any]) -> Iterator[Any]:
        with closing(self._leaf.stream(operation, {"body": {**body, "stream": True}})) as frames:  # type: ignore[type-var]
            for frame in frames:
                if frame["choices"]:  # the classes know none without: engines may count tokens in one
                    yield frame


# ---- LangChain


def _llm_facts(leaf: Any) -> Facts:
    completion_body("", leaf.seed, leaf._get_parameters(None))
    return _facts(leaf)


def _chat_facts(leaf: Any) -> Facts:
    chat_body((), leaf.seed, leaf._get_parameters(None))
    return _facts(leaf)


def _facts(leaf: Any) -> Facts:
    refuse_other_models({"lora_path": leaf.lora_path, "lora_base": leaf.lora_base, **leaf.model_kwargs})
    fields = {name: getattr(leaf, name) for name in ("n_ctx", "rope_freq_base", "rope_freq_scale")}
    return Facts(model=leaf.model_path, options=engine_options({**fields, **leaf.model_kwargs}))


def _twin(leaf: Bound, cls: type) -> Any:
    """The user's object, of the user's class, with the component as its model."""
    twin = copy.copy(leaf.obj)
    object.__setattr__(twin, "__class__", cls)
    twin.client = RemoteLlama(leaf, leaf.obj.seed)
    return twin


def _llm_methods(cls: Any) -> Methods:
    def _call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        return cls._call(_twin(leaf, cls), *args, **kwargs)

    def _stream(leaf: Bound, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from cls._stream(_twin(leaf, cls), *args, **kwargs)

    return {"_call": _call, "_stream": _stream}


def _chat_methods(cls: Any) -> Methods:
    def _generate(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        return cls._generate(_twin(leaf, cls), *args, **kwargs)

    def _stream(leaf: Bound, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from cls._stream(_twin(leaf, cls), *args, **kwargs)

    return {"_generate": _generate, "_stream": _stream}


# ---- LlamaIndex


def _llamaindex_facts(leaf: Any) -> Facts:
    refuse_other_models(leaf.model_kwargs)
    _llamaindex_body(leaf, "")
    return Facts(model=leaf.model_path, options=engine_options(leaf.model_kwargs))


def _llamaindex_body(obj: Any, prompt: str) -> dict[str, Any]:
    settings = {name: value for name, value in obj.generate_kwargs.items() if name != "stream"}
    return completion_body(prompt, obj.model_kwargs.get("seed"), settings)


def _llamaindex_methods(cls: type) -> Methods:
    # written out: the class notes in a dict of its own whether it streams, which calls at once would change for each other
    def body(leaf: Bound, prompt: str, formatted: bool, **more: Any) -> dict[str, Any]:
        text = prompt if formatted else leaf.obj.completion_to_prompt(prompt)
        return {"body": {**_llamaindex_body(leaf.obj, text), **more}}

    def complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return _completion(leaf.ask("complete", body(leaf, prompt, formatted)))

    async def acomplete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return _completion(await leaf.aask("complete", body(leaf, prompt, formatted)))

    def stream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        arguments = body(leaf, prompt, formatted, stream=True)

        def pieces() -> Iterator[Any]:
            text = ""
            for frame in leaf.stream("complete", arguments):
                text += text_of(frame)
                yield _completion(frame, text)

        return pieces()

    async def astream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        arguments = body(leaf, prompt, formatted, stream=True)

        async def pieces() -> AsyncIterator[Any]:
            text = ""
            async for frame in leaf.astream("complete", arguments):
                text += text_of(frame)
                yield _completion(frame, text)

        return pieces()

    async def achat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
        from llama_index.core.base.llms.generic_utils import completion_response_to_chat_response

        prompt = leaf.obj.messages_to_prompt(messages)
        return completion_response_to_chat_response(await leaf.obj.acomplete(prompt, formatted=True))

    async def astream_chat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
        from llama_index.core.base.llms.generic_utils import astream_completion_response_to_chat_response

        prompt = leaf.obj.messages_to_prompt(messages)
        return astream_completion_response_to_chat_response(await leaf.obj.astream_complete(prompt, formatted=True))

    return {f.__name__: f for f in (complete, acomplete, stream_complete, astream_complete, achat, astream_chat)}


def _completion(reply: Mapping[str, Any], so_far: str | None = None) -> Any:
    """Of a whole reply, or of one frame of a stream with the text up to it."""
    from llama_index.core.base.llms.types import CompletionResponse

    text = text_of(reply)
    if so_far is None:
        return CompletionResponse(text=text, raw=dict(reply))
    return CompletionResponse(text=so_far, delta=text, raw=dict(reply))


# ---- constructors that load no model


class _Grammar:
    """As ``llama_cpp.LlamaGrammar`` keeps its text, without parsing it."""

    def __init__(self, text: str) -> None:
        self._grammar = text

    @classmethod
    def from_string(cls, text: str) -> _Grammar:
        return cls(text)

    @classmethod
    def from_file(cls, path: Any) -> _Grammar:
        with open(path, encoding="utf-8") as file:
            return cls(file.read())


def _deferred_llama(model_path: str, **params: Any) -> Deferred:
    known: dict[str, Any] = {}
    if n_ctx := params.get("n_ctx"):  # 0: the model's own length, which only the file tells
        known = {"n_ctx": lambda: n_ctx, "context_params": SimpleNamespace(n_ctx=n_ctx)}
    return Deferred(functools.partial(_llama, model_path, params), known, {"model_path": model_path, **params})


def _llama(model_path: str, params: Mapping[str, Any]) -> Any:
    from llama_cpp import Llama

    return Llama(model_path, **params)


def _lazy_langchain(class_name: str) -> Callable[[ModuleType], Undo]:
    return constructed_with(class_name, "llama_cpp", Llama=_deferred_llama, LlamaGrammar=_Grammar)


def _lazy_llamaindex(module: ModuleType) -> Undo:
    real = module.Llama
    module.Llama = _deferred_llama  # type: ignore[attr-defined]

    def undo() -> None:
        module.Llama = real  # type: ignore[attr-defined]

    return undo


_LLM = "langchain_community.llms.llamacpp"
_CHAT = "langchain_community.chat_models.llamacpp"
_INDEX = "llama_index.llms.llama_cpp.base"
register_like(
    "langchain_core.language_models.llms.BaseLLM",
    f"{_LLM}.LlamaCpp",
    _llm_facts,
    "llamacpp",
    _llm_methods,
    runs_users=True,
)
register_like(
    "langchain_core.language_models.chat_models.BaseChatModel",
    f"{_CHAT}.ChatLlamaCpp",
    _chat_facts,
    "llamacpp",
    _chat_methods,
    runs_users=True,
)
register_like(
    "llama_index.core.base.llms.base.BaseLLM", f"{_INDEX}.LlamaCPP", _llamaindex_facts, "llamacpp", _llamaindex_methods
)
register_construct_hook(ConstructHook(_LLM, _lazy_langchain("LlamaCpp")))
register_construct_hook(ConstructHook(_CHAT, _lazy_langchain("ChatLlamaCpp")))
register_construct_hook(ConstructHook(_INDEX, _lazy_llamaindex))
