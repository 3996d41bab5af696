"""What the larger examples share: models behind an OpenAI-compatible URL, and the reference in a vector store.

Each part of an application may have a model of its own: GRADER_MODEL, REWRITER_MODEL and so on, else CHAT_MODEL.
"""

import os

from corpus import passages
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    model=os.environ.get("EMBED_MODEL", "all-minilm-l6-v2"),
    check_embedding_ctx_length=False,  # send text; local servers do not take OpenAI's token ids
)


def chat(part: str, max_tokens: int) -> ChatOpenAI:
    """The model of one part of an application: ``chat("grader", 4)`` reads GRADER_MODEL."""
    default = os.environ.get("CHAT_MODEL", "smollm2-135m-instruct")
    return ChatOpenAI(
        model=os.environ.get(f"{part.upper()}_MODEL", default), temperature=0, max_completion_tokens=max_tokens
    )


def reference() -> InMemoryVectorStore:
    """The passages of ``corpus``, embedded."""
    documents = [Document(id=p.id, page_content=p.text, metadata=p.metadata) for p in passages()]
    return InMemoryVectorStore.from_documents(documents, embeddings)


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)
