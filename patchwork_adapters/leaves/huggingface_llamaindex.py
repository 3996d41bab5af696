"""Hugging Face's leaves in LlamaIndex, and how their calls become operations of a shared engine; see ``huggingface.py``."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.leaves import llamaindex as _llamaindex  # noqa: F401  registers the base classes
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.huggingface_calls import (
    Methods,
    RemoteCrossEncoder,
    aembed,
    embed,
    register_like,
    text_of,
)
from patchwork_adapters.leaves.huggingface_fields import (
    Encoding,
    Unmapped,
    cross_encoder_options,
    encoding,
    folder_json,
    sampling,
)
from patchwork_adapters.leaves.spec import Facts


def _llamaindex_encoding(obj: Any, purpose: str) -> Encoding:
    """``purpose``: ``query`` or ``text``, the names of the prompts that the class gives to its model."""
    model = obj._model
    settings = dict(model.deferred_settings) if isinstance(model, Deferred) else {}
    prompts = settings.pop("prompts", None) or getattr(model, "prompts", {})
    kwargs = {"prompt_name": purpose, "normalize_embeddings": obj.normalize}
    return encoding(obj.model_name, {**settings, "prompts": prompts}, kwargs)


def _llamaindex_embedding_facts(leaf: Any) -> Facts:
    _llamaindex_encoding(leaf, "query")
    known = folder_json(leaf.model_name, "sentence_bert_config.json").get("max_seq_length")
    if known is not None and known != leaf.max_length:
        raise Unmapped(f"max_length {leaf.max_length}, where the model has {known}")
    return Facts(model=leaf.model_name)


def _llamaindex_embedding_methods(cls: type) -> Methods:
    def _get_query_embedding(leaf: Bound, query: str) -> list[float]:
        return embed(leaf, [query], _llamaindex_encoding(leaf.obj, "query"))[0]

    def _get_text_embedding(leaf: Bound, text: str) -> list[float]:
        return embed(leaf, [text], _llamaindex_encoding(leaf.obj, "text"))[0]

    def _get_text_embeddings(leaf: Bound, texts: list[str]) -> list[list[float]]:
        return embed(leaf, texts, _llamaindex_encoding(leaf.obj, "text"))

    async def _aget_query_embedding(leaf: Bound, query: str) -> list[float]:
        return (await aembed(leaf, [query], _llamaindex_encoding(leaf.obj, "query")))[0]

    async def _aget_text_embedding(leaf: Bound, text: str) -> list[float]:
        return (await aembed(leaf, [text], _llamaindex_encoding(leaf.obj, "text")))[0]

    async def _aget_text_embeddings(leaf: Bound, texts: list[str]) -> list[list[float]]:
        return await aembed(leaf, texts, _llamaindex_encoding(leaf.obj, "text"))

    plain = (_get_query_embedding, _get_text_embedding, _get_text_embeddings)
    coroutines = (_aget_query_embedding, _aget_text_embedding, _aget_text_embeddings)
    return {f.__name__: f for f in (*plain, *coroutines)}


def _llamaindex_llm_body(obj: Any, prompt: str) -> dict[str, Any]:
    if obj.stopping_ids:
        raise Unmapped("stopping_ids")
    settings = sampling(obj.model_name, obj.generate_kwargs, {"max_new_tokens": obj.max_new_tokens})
    return {"body": {"model": obj.model_name, "prompt": prompt, **settings}}


def _llamaindex_llm_facts(leaf: Any) -> Facts:
    if leaf.tokenizer_name != leaf.model_name:
        raise Unmapped(f"a tokenizer of another model ({leaf.tokenizer_name})")
    _llamaindex_llm_body(leaf, "")
    return Facts(model=leaf.model_name)


def _full_prompt(obj: Any, prompt: str, formatted: bool, *, streamed: bool) -> str:
    """As HuggingFaceLLM builds it; its stream does not use ``completion_to_prompt``."""
    if formatted:
        return prompt
    if obj.query_wrapper_prompt:
        prompt = obj.query_wrapper_prompt.format(query_str=prompt)
    if obj.completion_to_prompt and not streamed:
        return str(obj.completion_to_prompt(prompt))
    return f"{obj.system_prompt} {prompt}" if obj.system_prompt else prompt


def _llamaindex_llm_methods(cls: type) -> Methods:
    def complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = _full_prompt(leaf.obj, prompt, formatted, streamed=False)
        return _completion(leaf.ask("complete", _llamaindex_llm_body(leaf.obj, text)))

    async def acomplete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = _full_prompt(leaf.obj, prompt, formatted, streamed=False)
        return _completion(await leaf.aask("complete", _llamaindex_llm_body(leaf.obj, text)))

    def stream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        arguments = _llamaindex_llm_body(leaf.obj, _full_prompt(leaf.obj, prompt, formatted, streamed=True))
        arguments["body"]["stream"] = True

        def pieces() -> Iterator[Any]:
            text = ""
            for frame in leaf.stream("complete", arguments):
                if delta := text_of(frame):
                    text += delta
                    yield _completion_piece(text, delta)

        return pieces()

    async def astream_complete(leaf: Bound, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        arguments = _llamaindex_llm_body(leaf.obj, _full_prompt(leaf.obj, prompt, formatted, streamed=True))
        arguments["body"]["stream"] = True

        async def pieces() -> AsyncIterator[Any]:
            text = ""
            async for frame in leaf.astream("complete", arguments):
                if delta := text_of(frame):
                    text += delta
                    yield _completion_piece(text, delta)

        return pieces()

    async def achat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
        """CustomLLM's own would run ``chat`` on the event loop."""
        from llama_index.core.base.llms.generic_utils import completion_response_to_chat_response

        prompt = leaf.obj.messages_to_prompt(messages)
        return completion_response_to_chat_response(await leaf.obj.acomplete(prompt, formatted=True, **kwargs))

    async def astream_chat(leaf: Bound, messages: Sequence[Any], **kwargs: Any) -> Any:
        from llama_index.core.base.llms.generic_utils import astream_completion_response_to_chat_response

        prompt = leaf.obj.messages_to_prompt(messages)
        pieces = await leaf.obj.astream_complete(prompt, formatted=True, **kwargs)
        return astream_completion_response_to_chat_response(pieces)

    return {f.__name__: f for f in (complete, acomplete, stream_complete, astream_complete, achat, astream_chat)}


def _completion(reply: Mapping[str, Any]) -> Any:
    """``raw`` is the engine's reply; the original has the model's tensors there."""
    from llama_index.core.base.llms.types import CompletionResponse

    return CompletionResponse(text=text_of(reply), raw=dict(reply))


def _completion_piece(text: str, delta: str) -> Any:
    from llama_index.core.base.llms.types import CompletionResponse

    return CompletionResponse(text=text, delta=delta)


def _rerank_facts(leaf: Any) -> Facts:
    settings = {"max_length": 512, **getattr(leaf, "cross_encoder_kwargs", {})}  # the class's own default
    return Facts(model=leaf.model, options=cross_encoder_options(leaf.model, settings))


def _rerank_methods(cls: type) -> Methods:
    def _postprocess_nodes(leaf: Bound, nodes: Any, query_bundle: Any = None) -> Any:
        # the user's method runs, on a copy whose model is the component: it sorts, cuts and reports as it did
        twin = copy.copy(leaf.obj)
        twin._model = RemoteCrossEncoder(leaf)
        return cls._postprocess_nodes(twin, nodes, query_bundle)  # type: ignore[attr-defined]

    return {"_postprocess_nodes": _postprocess_nodes}


_CORE = "llama_index.core."
register_like(
    f"{_CORE}base.embeddings.base.BaseEmbedding",
    "llama_index.embeddings.huggingface.base.HuggingFaceEmbedding",
    _llamaindex_embedding_facts,
    "onnx",
    _llamaindex_embedding_methods,
)
register_like(
    f"{_CORE}base.llms.base.BaseLLM",
    "llama_index.llms.huggingface.base.HuggingFaceLLM",
    _llamaindex_llm_facts,
    "llamacpp",
    _llamaindex_llm_methods,
)
for _module in ("llama_index.postprocessor.sbert_rerank.base", "llama_index.core.postprocessor.sbert_rerank"):
    register_like(
        f"{_CORE}postprocessor.types.BaseNodePostprocessor",
        f"{_module}.SentenceTransformerRerank",
        _rerank_facts,
        "reranker",
        _rerank_methods,
        runs_users=True,
    )
