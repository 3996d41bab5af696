"""Hugging Face's leaves in LangChain, and how their calls become operations of a shared engine (design, D4).

The user's object keeps formatting: newlines, prompts and chat templates are its own, what goes out is text and what it asks for.
Differences from the original are numerical (another engine computes the same model), and these: sampled text has the engine's random
numbers, and streamed text comes in the engine's pieces. ``ChatHuggingFace`` is no leaf: it renders the template and calls its pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.leaves import huggingface_hooks as _hooks  # noqa: F401  registers the construct hooks
from patchwork_adapters.leaves import huggingface_llamaindex as _llamaindex  # noqa: F401  registers the other framework's leaves
from patchwork_adapters.leaves import langchain as _langchain  # noqa: F401  registers the base classes
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.huggingface_calls import (
    Methods,
    RemoteCrossEncoder,
    aembed,
    ask_all,
    embed,
    register_like,
    text_of,
)
from patchwork_adapters.leaves.huggingface_fields import (
    PIPELINE_DEFAULTS,
    Encoding,
    Unmapped,
    cross_encoder_options,
    encoding,
    pipeline_text,
    sampling,
)
from patchwork_adapters.leaves.spec import Facts

# ---- embeddings


def _langchain_encoding(obj: Any, *, query: bool = False) -> Encoding:
    kwargs = obj.query_encode_kwargs if query and obj.query_encode_kwargs else obj.encode_kwargs
    return encoding(obj.model_name, obj.model_kwargs, kwargs)


def _langchain_embedding_facts(leaf: Any) -> Facts:
    _langchain_encoding(leaf)
    _langchain_encoding(leaf, query=True)
    return Facts(model=leaf.model_name)


def _langchain_embedding_methods(cls: type) -> Methods:
    def embed_documents(leaf: Bound, texts: list[str]) -> list[list[float]]:
        return embed(leaf, _one_line(texts), _langchain_encoding(leaf.obj))

    def embed_query(leaf: Bound, text: str) -> list[float]:
        return embed(leaf, _one_line([text]), _langchain_encoding(leaf.obj, query=True))[0]

    async def aembed_documents(leaf: Bound, texts: list[str]) -> list[list[float]]:
        return await aembed(leaf, _one_line(texts), _langchain_encoding(leaf.obj))

    async def aembed_query(leaf: Bound, text: str) -> list[float]:
        return (await aembed(leaf, _one_line([text]), _langchain_encoding(leaf.obj, query=True)))[0]

    return {f.__name__: f for f in (embed_documents, embed_query, aembed_documents, aembed_query)}


def _one_line(texts: Sequence[str]) -> list[str]:
    return [text.replace("\n", " ") for text in texts]  # as HuggingFaceEmbeddings does


# ---- generation


def _settings(obj: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Pipeline arguments: those of the constructor below those of the call."""
    pipeline = obj.pipeline
    if isinstance(pipeline, Deferred):
        given = {**pipeline.deferred_settings, **(obj.pipeline_kwargs or {})}
    elif obj.pipeline_kwargs is not None:
        given = dict(obj.pipeline_kwargs)
    else:
        raise Unmapped("a transformers pipeline around a model that the program loaded itself")
    return {**given, **call.get("pipeline_kwargs", {})}


def _pipeline_body(obj: Any, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    body = {"model": obj.model_id, "prompt": prompt, **sampling(obj.model_id, settings, PIPELINE_DEFAULTS)}
    return {"body": body}


def _pipeline_facts(leaf: Any) -> Facts:
    task = getattr(leaf.pipeline, "task", None)
    if task != "text-generation":
        raise Unmapped(f"task {task!r}")
    _pipeline_body(leaf, "", _settings(leaf, {}))
    return Facts(model=leaf.model_id)


def _pipeline_methods(cls: type) -> Methods:
    # ``stop`` is not looked at where the original does not: in everything but streams
    def _generate(leaf: Bound, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        settings = _settings(leaf.obj, kwargs)
        calls = [_pipeline_body(leaf.obj, prompt, settings) for prompt in prompts]
        return _result(prompts, ask_all(leaf, calls), settings, kwargs)

    async def _agenerate(
        leaf: Bound, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        settings = _settings(leaf.obj, kwargs)
        calls = [leaf.aask("complete", _pipeline_body(leaf.obj, prompt, settings)) for prompt in prompts]
        return _result(prompts, await asyncio.gather(*calls), settings, kwargs)

    def _stream(leaf: Bound, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        for text in _pieces(leaf.stream("complete", _stream_call(leaf.obj, prompt, stop, kwargs)), prompt, kwargs):
            chunk = _generation_chunk(text)
            if run_manager:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk

    async def _astream(
        leaf: Bound, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        if not kwargs.get("skip_prompt", True):
            yield _generation_chunk(prompt)
        async for frame in leaf.astream("complete", _stream_call(leaf.obj, prompt, stop, kwargs)):
            if text := text_of(frame):
                chunk = _generation_chunk(text)
                if run_manager:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk

    return {f.__name__: f for f in (_generate, _agenerate, _stream, _astream)}


def _result(
    prompts: Sequence[str], replies: Sequence[Any], settings: Mapping[str, Any], call: Mapping[str, Any]
) -> Any:
    from langchain_core.outputs import Generation, LLMResult

    skip = bool(call.get("skip_prompt", False))
    texts = [
        pipeline_text(prompt, text_of(reply), settings, skip_prompt=skip)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return LLMResult(generations=[[Generation(text=text)] for text in texts])


def _stream_call(obj: Any, prompt: str, stop: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    # a stream does not look at the constructor's return_full_text: its streamer has an argument of its own
    arguments = _pipeline_body(obj, prompt, _settings(obj, call))
    arguments["body"]["stream"] = True
    if stop:
        arguments["body"]["stop"] = list(stop)
    return arguments


def _pieces(frames: Iterator[Any], prompt: str, call: Mapping[str, Any]) -> Iterator[str]:
    if not call.get("skip_prompt", True):
        yield prompt
    yield from (text for frame in frames if (text := text_of(frame)))


def _generation_chunk(text: str) -> Any:
    from langchain_core.outputs import GenerationChunk

    return GenerationChunk(text=text)


# ---- cross-encoders


def _cross_encoder_facts(leaf: Any) -> Facts:
    return Facts(model=leaf.model_name, options=cross_encoder_options(leaf.model_name, leaf.model_kwargs))


def _cross_encoder_methods(cls: type) -> Methods:
    def score(leaf: Bound, text_pairs: list[tuple[str, str]]) -> Any:
        return RemoteCrossEncoder(leaf).predict(text_pairs)

    return {"score": score}


_CORE = "langchain_core."
register_like(
    f"{_CORE}embeddings.embeddings.Embeddings",
    "langchain_huggingface.embeddings.huggingface.HuggingFaceEmbeddings",
    _langchain_embedding_facts,
    "onnx",
    _langchain_embedding_methods,
)
register_like(
    f"{_CORE}language_models.llms.BaseLLM",
    "langchain_huggingface.llms.huggingface_pipeline.HuggingFacePipeline",
    _pipeline_facts,
    "llamacpp",
    _pipeline_methods,
)
register_like(
    f"{_CORE}cross_encoders.BaseCrossEncoder",
    "langchain_community.cross_encoders.huggingface.HuggingFaceCrossEncoder",
    _cross_encoder_facts,
    "reranker",
    _cross_encoder_methods,
)
