"""Models behind an Ollama server, in both frameworks: their ``ollama`` clients are cut where a model of that name can be hosted here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.leaves import langchain as _langchain  # noqa: F401  registers the base classes
from patchwork_adapters.leaves import llamaindex as _llamaindex  # noqa: F401
from patchwork_adapters.leaves.spec import Facts, register, registered

_DEFAULT_URL = "http://127.0.0.1:11434"


def _clients(leaf: Any) -> Iterable[Any]:
    """Those that exist: some classes make theirs at the first call."""
    for name in ("_client", "_async_client"):
        client = getattr(leaf, name, None)
        if client is not None and "ollama._client.BaseClient" in class_names(type(client)):
            yield client


def _facts(leaf: Any) -> Facts:
    url = next((client._client.base_url for client in _clients(leaf)), None) or leaf.base_url or _DEFAULT_URL
    model = getattr(leaf, "model", None) or getattr(leaf, "model_name", None)  # the latter: LlamaIndex's embeddings
    return Facts(model=model, base_url=str(url).rstrip("/"))


_CORE = "langchain_core."
for _base, _cls in (
    (f"{_CORE}language_models.chat_models.BaseChatModel", "langchain_ollama.chat_models.ChatOllama"),
    (f"{_CORE}language_models.llms.BaseLLM", "langchain_ollama.llms.OllamaLLM"),
    (f"{_CORE}embeddings.embeddings.Embeddings", "langchain_ollama.embeddings.OllamaEmbeddings"),
    ("llama_index.core.base.llms.base.BaseLLM", "llama_index.llms.ollama.base.Ollama"),
    ("llama_index.core.base.embeddings.base.BaseEmbedding", "llama_index.embeddings.ollama.base.OllamaEmbedding"),
):
    register(
        replace(
            registered(_base),
            cls=_cls,
            facade=True,
            inner=frozenset(),
            facts=_facts,
            speaks_openai=True,
            openai_clients=_clients,
        )
    )
