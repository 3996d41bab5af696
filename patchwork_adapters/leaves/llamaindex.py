"""LlamaIndex's leaves: models, embeddings, vector stores, postprocessors with a model inside, and retrievers that stand alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from patchwork_adapters.leaves.langchain import overridden
from patchwork_adapters.leaves.llamaindex_stores import export_simple, simple_methods
from patchwork_adapters.leaves.spec import Facts, LeafSpec, register

_CORE = "llama_index.core."
_SPANNED = "__dispatcher_span_decorated__"  #: on functions whose calls the framework's span handlers see
_CHAT = frozenset({"chat", "achat", "stream_chat", "astream_chat"})
_COMPLETION = frozenset({"complete", "acomplete", "stream_complete", "astream_complete"})
_STREAMS = frozenset({"stream_chat", "astream_chat", "stream_complete", "astream_complete"})
#: Postprocessors of the framework that only cut, sort or rewrite what they are given.
_LIGHT_MODULES = (
    f"{_CORE}postprocessor.node",
    f"{_CORE}postprocessor.metadata_replacement",
    f"{_CORE}postprocessor.node_recency",
)


def _facts(leaf: Any) -> Facts:
    model = next(
        (value for name in ("model", "model_name") if isinstance(value := getattr(leaf, name, None), str)), None
    )
    base_url = getattr(leaf, "api_base", None)
    return Facts(model=model, base_url=base_url.rstrip("/") if isinstance(base_url, str) else None)


def _embedding_facts(leaf: Any) -> Facts:
    """An embedding may send another name than the one it is known by: a model per purpose, or a name of the user's own."""
    facts = _facts(leaf)
    private = getattr(leaf, "__pydantic_private__", None) or {}
    sent = private.get("_query_engine")
    return Facts(sent if isinstance(sent, str) else facts.model, facts.base_url)


def _openai_clients(leaf: Any) -> Iterable[Any]:
    """Clients are created at the first call; those are cut by the hook on their class."""
    private = getattr(leaf, "__pydantic_private__", None) or {}
    return [client for name in ("_client", "_aclient") if (client := private.get(name)) is not None]


def _announced(name: str, original: Any, override: Callable[..., Any]) -> Callable[..., Any]:
    """Overrides replace methods that the class, or the framework for it, has decorated: handlers must go on seeing their calls."""
    override = _with_events(name, original, override)
    if not getattr(original, _SPANNED, False):
        return override
    from llama_index.core.instrumentation import get_dispatcher

    override.__dict__.pop(_SPANNED, None)  # copied from the original; with it the decorator adds nothing
    override.__dict__["__signature__"] = inspect.signature(original)  # else the decorator works it out at each call
    spanned: Callable[..., Any] = get_dispatcher(original.__module__).span(override)
    return spanned


def _with_events(name: str, original: Any, override: Callable[..., Any]) -> Callable[..., Any]:
    from llama_index.core.llms import callbacks

    if getattr(getattr(original, "__code__", None), "co_filename", None) != callbacks.__file__:
        return override
    # the decorators take a function with this mark for one that another decorator has done already, and then add nothing
    override.__dict__.pop("__wrapped__", None)
    override.__dict__["__signature__"] = inspect.signature(original)
    decorate = callbacks.llm_chat_callback() if name in _CHAT else callbacks.llm_completion_callback()
    decorated: Callable[..., Any] = decorate(override)
    return decorated


def _is_light(cls: type) -> bool:
    return cls.__module__ in _LIGHT_MODULES


def _is_mock(cls: type) -> bool:
    return cls.__module__ == f"{_CORE}llms.mock"


def _llm_cut(cls: type) -> tuple[str, ...]:
    # the nearest framework base below which methods are the user's: CustomLLM derives four of the eight from the others
    below = (
        f"{_CORE}llms.custom.CustomLLM"
        if any(b.__qualname__ == "CustomLLM" for b in cls.__mro__)
        else f"{_CORE}llms.llm.LLM"
    )
    return overridden(*sorted(_CHAT | _COMPLETION), below=below)(cls)


_embedding_cut = overridden(
    "_get_query_embedding", "_aget_query_embedding", "_get_text_embedding", "_aget_text_embedding", "_get_text_embeddings",
    "_aget_text_embeddings", below=f"{_CORE}base.embeddings.base.BaseEmbedding",
)  # fmt: skip
_store_cut = overridden(
    "query", "aquery", "get_nodes", "aget_nodes", below=f"{_CORE}vector_stores.types.BasePydanticVectorStore"
)
_postprocess_cut = overridden(
    "_postprocess_nodes", "_apostprocess_nodes", below=f"{_CORE}postprocessor.types.BaseNodePostprocessor"
)
_retriever_cut = overridden("_retrieve", "_aretrieve", below=f"{_CORE}base.base_retriever.BaseRetriever")

register(
    LeafSpec(
        f"{_CORE}base.llms.base.BaseLLM", "llm", "llamaindex", _llm_cut, facts=_facts, is_light=_is_mock, returns_stream=_STREAMS,
        wrap=_announced,
    )
)  # fmt: skip
register(
    LeafSpec(
        f"{_CORE}base.embeddings.base.BaseEmbedding",
        "embedder",
        "llamaindex",
        _embedding_cut,
        facts=_facts,
        wrap=_announced,
    )
)
register(
    LeafSpec(
        f"{_CORE}vector_stores.types.BasePydanticVectorStore",
        "retriever",
        "llamaindex",
        _store_cut,
        facade=True,
        wrap=_announced,
    )
)
register(
    LeafSpec(
        f"{_CORE}postprocessor.types.BaseNodePostprocessor",
        "reranker",
        "llamaindex",
        _postprocess_cut,
        facts=_facts,
        is_light=_is_light,
        wrap=_announced,
    )
)
register(
    LeafSpec(f"{_CORE}base.base_retriever.BaseRetriever", "retriever", "llamaindex", _retriever_cut, wrap=_announced)
)
register(
    LeafSpec(
        f"{_CORE}vector_stores.simple.SimpleVectorStore", "retriever", "llamaindex", _store_cut, facade=True, inner=frozenset(),
        engine="pgvector", engine_methods=simple_methods, export=export_simple,
        is_empty=lambda store: not store.data.embedding_dict,
        writes=frozenset({"add", "async_add", "delete", "adelete", "delete_nodes", "adelete_nodes", "clear", "aclear"}),
    )
)  # fmt: skip
register(
    LeafSpec(
        "llama_index.llms.openai.base.OpenAI", "llm", "llamaindex", _llm_cut, facade=True, inner=frozenset(), facts=_facts,
        speaks_openai=True, openai_clients=_openai_clients, returns_stream=_STREAMS, wrap=_announced,
    )
)  # fmt: skip
register(
    LeafSpec(
        "llama_index.embeddings.openai.base.OpenAIEmbedding", "embedder", "llamaindex", _embedding_cut, facade=True, inner=frozenset(),
        facts=_embedding_facts, speaks_openai=True, openai_clients=_openai_clients, wrap=_announced,
    )
)  # fmt: skip
