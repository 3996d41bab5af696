"""Which objects are chains, told by the names of their classes: nothing is imported to ask."""

from __future__ import annotations

from typing import Any, Literal

Framework = Literal["langchain", "langgraph", "llamaindex"]

#: base class -> framework, the first that a class inherits from counts
_CHAINS: dict[str, Framework] = {
    "langgraph.pregel.main.Pregel": "langgraph",
    "langgraph.pregel.Pregel": "langgraph",
    "langchain_core.runnables.base.Runnable": "langchain",
    "llama_index.core.base.base_query_engine.BaseQueryEngine": "llamaindex",
    "llama_index.core.chat_engine.types.BaseChatEngine": "llamaindex",
    "workflows.workflow.Workflow": "llamaindex",
    "llama_index.core.workflow.workflow.Workflow": "llamaindex",
}
#: Runnables that people compose; a chain only when the module has nothing else to offer.
_PARTS = (
    "langchain_core.prompts.base.BasePromptTemplate",
    "langchain_core.language_models.base.BaseLanguageModel",
    "langchain_core.output_parsers.base.BaseOutputParser",
    "langchain_core.output_parsers.base.BaseLLMOutputParser",
    "langchain_core.retrievers.BaseRetriever",
    "langchain_core.tools.base.BaseTool",
    "langchain_core.documents.compressor.BaseDocumentCompressor",
    "langchain_core.runnables.passthrough.RunnablePassthrough",
)


def class_names(cls: type) -> list[str]:
    """Qualified names along the method resolution order."""
    return [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]


def framework_of(value: Any, *, alone: bool = False) -> Framework | None:
    """The framework that ``value`` is a chain of, or None. ``alone``: a bare part, such as a retriever, counts as well."""
    if isinstance(value, type):
        return None
    names = class_names(type(value))
    framework = next((_CHAINS[name] for name in names if name in _CHAINS), None)
    return None if framework is None or (not alone and is_part(value)) else framework


def is_part(value: Any) -> bool:
    names = class_names(type(value))
    return any(part in names for part in _PARTS)
