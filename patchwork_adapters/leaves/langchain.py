"""LangChain's leaves: models, embeddings, stores, retrievers, document compressors and tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.leaves.langchain_stores import export_in_memory, in_memory_methods
from patchwork_adapters.leaves.spec import Facts, LeafSpec, register

_CORE = "langchain_core."
#: What a tool calls, or is given, to reach the run that it is part of; there is no such run in another process.
_OF_THE_RUN = frozenset(
    {"interrupt", "get_stream_writer", "get_config", "get_store", "get_runtime", "dispatch_custom_event"}
)
_INJECTED = ("RunnableConfig", "Injected", "ToolRuntime")


def overridden(*names: str, below: str) -> Callable[[type], tuple[str, ...]]:
    """Those of ``names`` that the user's class defines itself, not the framework's base class ``below``.

    The base class compares methods with its own (``_should_stream`` does), and its defaults call the others: they must stay.
    """

    def cut(cls: type) -> tuple[str, ...]:
        own = []
        for base, name in zip(cls.__mro__, class_names(cls), strict=True):
            if name == below:
                break
            own.append(base)
        return tuple(name for name in names if any(name in vars(base) for base in own))

    return cut


def model_facts(leaf: Any) -> Facts:
    """Model name and URL by the attribute names that integrations share."""
    model = next(
        (value for name in ("model_name", "model", "model_id") if isinstance(value := getattr(leaf, name, None), str)),
        None,
    )
    return Facts(model=model, base_url=_base_url(leaf))


def _base_url(leaf: Any) -> str | None:
    for client in _openai_clients(leaf):
        return str(client.base_url).rstrip("/")
    value = next(
        (getattr(leaf, name) for name in ("base_url", "openai_api_base", "api_base") if getattr(leaf, name, None)), None
    )
    return str(value).rstrip("/") if value is not None else None


def _openai_clients(leaf: Any) -> Iterable[Any]:
    """A model holds its clients; embeddings and completion models hold a resource of theirs."""
    fields = vars(leaf)
    for name in ("root_client", "root_async_client", "client", "async_client"):
        value = fields.get(name)
        for candidate in (value, getattr(value, "_client", None)):
            if candidate is not None and "openai._base_client.BaseClient" in class_names(type(candidate)):
                yield candidate
                break


_chat = overridden(
    "_generate", "_agenerate", "_stream", "_astream", "_stream_chat_model_events", "_astream_chat_model_events", "get_num_tokens",
    "get_token_ids", below=f"{_CORE}language_models.chat_models.BaseChatModel",
)  # fmt: skip
_llm = overridden(
    "_generate", "_agenerate", "_call", "_acall", "_stream", "_astream", below=f"{_CORE}language_models.llms.BaseLLM"
)
_embeddings = overridden(
    "embed_query",
    "embed_documents",
    "aembed_query",
    "aembed_documents",
    below=f"{_CORE}embeddings.embeddings.Embeddings",
)
_store = overridden(
    "similarity_search", "similarity_search_with_score", "similarity_search_by_vector", "max_marginal_relevance_search", "get_by_ids",
    "asimilarity_search", "asimilarity_search_with_score", "asimilarity_search_by_vector", "amax_marginal_relevance_search", "aget_by_ids",
    "search", "asearch", below=f"{_CORE}vectorstores.base.VectorStore",
)  # fmt: skip
_retriever = overridden("_get_relevant_documents", "_aget_relevant_documents", below=f"{_CORE}retrievers.BaseRetriever")
_compressor = overridden(
    "compress_documents", "acompress_documents", below=f"{_CORE}documents.compressor.BaseDocumentCompressor"
)
_tool = overridden("_run", "_arun", below=f"{_CORE}tools.base.BaseTool")
_cross_encoder = overridden("score", below=f"{_CORE}cross_encoders.BaseCrossEncoder")


def _stays(cls: type) -> bool:
    """Tools made of functions are the user's control flow, and so are those that speak with the run they are part of."""
    if cls.__module__.startswith(_CORE) or not {"_run", "_arun"} & set(_tool(cls)):
        return True
    return any(_speaks_with_run(getattr(cls, name)) for name in _tool(cls))


def _speaks_with_run(method: Any) -> bool:
    code = inspect.unwrap(method).__code__
    taken = inspect.signature(method).parameters.values()
    return bool(_OF_THE_RUN.intersection(code.co_names)) or any(
        any(word in str(parameter.annotation) for word in _INJECTED) for parameter in taken
    )


register(LeafSpec(f"{_CORE}tools.base.BaseTool", "tool", "langchain", _tool, is_light=_stays))
register(LeafSpec(f"{_CORE}language_models.chat_models.BaseChatModel", "llm", "langchain", _chat, facts=model_facts))
register(LeafSpec(f"{_CORE}language_models.llms.BaseLLM", "llm", "langchain", _llm, facts=model_facts))
register(LeafSpec(f"{_CORE}embeddings.embeddings.Embeddings", "embedder", "langchain", _embeddings, facts=model_facts))
register(LeafSpec(f"{_CORE}vectorstores.base.VectorStore", "retriever", "langchain", _store, facade=True))
register(LeafSpec(f"{_CORE}retrievers.BaseRetriever", "retriever", "langchain", _retriever))
register(
    LeafSpec(
        f"{_CORE}documents.compressor.BaseDocumentCompressor", "reranker", "langchain", _compressor, facts=model_facts
    )
)
register(
    LeafSpec(f"{_CORE}cross_encoders.BaseCrossEncoder", "reranker", "langchain", _cross_encoder, facts=model_facts)
)

register(
    LeafSpec(
        f"{_CORE}vectorstores.in_memory.InMemoryVectorStore", "retriever", "langchain", _store, facade=True,
        inner=frozenset({"embedding"}), engine="pgvector", engine_methods=in_memory_methods, export=export_in_memory,
        writes=frozenset({"add_documents", "aadd_documents", "delete", "adelete"}),
        is_empty=lambda store: not store.store,
    )
)  # fmt: skip
for _cls, _kind, _cut in (
    ("langchain_openai.chat_models.base.BaseChatOpenAI", "llm", _chat),
    ("langchain_openai.llms.base.BaseOpenAI", "llm", _llm),
    ("langchain_openai.embeddings.base.OpenAIEmbeddings", "embedder", _embeddings),
    # those of before langchain-openai, which VLLMOpenAI and other clients of local servers are built on
    ("langchain_community.chat_models.openai.ChatOpenAI", "llm", _chat),
    ("langchain_community.llms.openai.BaseOpenAI", "llm", _llm),
    ("langchain_community.embeddings.openai.OpenAIEmbeddings", "embedder", _embeddings),
):
    register(
        LeafSpec(
            _cls, _kind, "langchain", _cut, facade=True, inner=frozenset(), facts=model_facts, speaks_openai=True,  # type: ignore[arg-type]
            openai_clients=_openai_clients,
        )
    )  # fmt: skip
