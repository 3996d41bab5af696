"""Leaves of every kind that answer at once with a constant: what a call of one costs is what the call itself costs."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_openai import ChatOpenAI
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import CustomLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery, VectorStoreQueryResult
from pydantic import SecretStr

QUESTION = "what does a passage of the corpus say about apples?"
PASSAGE = "a passage of the corpus " * 20
VECTOR = [i / 384 for i in range(384)]
USAGE: Any = {"input_tokens": 120, "output_tokens": 3, "total_tokens": 123}
ANSWER = ChatResult(generations=[ChatGeneration(message=AIMessage("a short answer", id="1", usage_metadata=USAGE))])
CHUNKS = [ChatGenerationChunk(message=AIMessageChunk(content=f"word{n} ", id="1")) for n in range(8)]
ASKED = [HumanMessage(f"{PASSAGE}and a question")]
FOUND = [Document(page_content=PASSAGE, id=str(n), metadata={"n": n, "source": f"file-{n}"}) for n in range(4)]
NODES = [
    NodeWithScore(node=TextNode(id_=str(n), text=PASSAGE, metadata={"n": n}), score=1.0 / (n + 1)) for n in range(4)
]
RESULT = VectorStoreQueryResult([n.node for n in NODES], [0.9, 0.8, 0.7, 0.6], ["0", "1", "2", "3"])
CHATTED = [ChatMessage(role="user", content=f"{PASSAGE}and a question")]
REPLIED = ChatResponse(message=ChatMessage(role="assistant", content="a short answer"))
COMPLETED = CompletionResponse(text="a short answer")
PIECES = [CompletionResponse(text=" ".join(["word"] * n), delta="word ") for n in range(1, 9)]


class Vectors(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTOR for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return VECTOR

    async def aembed_query(self, text: str) -> list[float]:
        return VECTOR


class Chat(BaseChatModel):
    temperature: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "bench"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ANSWER

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ANSWER

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from CHUNKS

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in CHUNKS:
            yield chunk


class Completion(LLM):
    @property
    def _llm_type(self) -> str:
        return "bench"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        return "a short answer"

    async def _acall(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        return "a short answer"


class Store(VectorStore):
    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return FOUND

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return FOUND

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> Store:  # type: ignore[override]
        return cls()


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return FOUND

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return FOUND


class Rerank(BaseDocumentCompressor):
    """Returns those that it was given, in another order."""

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        return documents[::-1]

    async def acompress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        return documents[::-1]


class Pairs(BaseCrossEncoder):
    def score(self, text_pairs: Any) -> list[float]:
        return [0.5 for _ in text_pairs]


class Adder(BaseTool):
    name: str = "adder"
    description: str = "adds"

    def _run(self, a: int, b: int, run_manager: Any = None) -> str:
        return "3 apples"

    async def _arun(self, a: int, b: int, run_manager: Any = None) -> str:
        return "3 apples"


class Text(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="bench")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return COMPLETED

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return COMPLETED

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return REPLIED

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return REPLIED

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return iter(PIECES)


class Embedding(BaseEmbedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        return VECTOR

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return VECTOR

    def _get_text_embedding(self, text: str) -> list[float]:
        return VECTOR


class Table(BasePydanticVectorStore):
    stores_text: bool = True

    @property
    def client(self) -> Any:
        return None

    def add(self, nodes: Sequence[Any], **kwargs: Any) -> list[str]:
        return []

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None: ...

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return RESULT

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return RESULT


class Judge(BaseNodePostprocessor):
    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return nodes[::-1]

    async def _apostprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return nodes[::-1]


class Words(LlamaIndexRetriever):
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return NODES

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return NODES


@dataclass(frozen=True, slots=True)
class Case:
    """One method of one leaf; ``acall`` where the class has an asynchronous one of its own."""

    name: str
    make: Callable[[], Any]
    call: Callable[[Any], Any]
    acall: Callable[[Any], Any] | None = None


HTTP_ANSWER = json.dumps({
    "id": "1", "object": "chat.completion", "created": 1, "model": "small",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a short answer"}}],
    "usage": {"prompt_tokens": 120, "completion_tokens": 3, "total_tokens": 123},
}).encode()  # fmt: skip


def openai_model() -> ChatOpenAI:
    model = ChatOpenAI(model="small", base_url="http://127.0.0.1:9/v1", api_key=SecretStr("none"), max_retries=0)
    for client in (model.root_client, model.root_async_client):
        packages = [base.__module__.partition(".")[0] for base in type(client._client).__mro__]
        httpx = sys.modules[next(package for package in packages if package.startswith("httpx"))]
        http: Any = client._client
        http._transport = httpx.MockTransport(
            lambda request, httpx=httpx: httpx.Response(
                200, content=HTTP_ANSWER, headers={"content-type": "application/json"}
            )
        )
        http._mounts = {}
    return model


def in_memory() -> InMemoryVectorStore:
    store = InMemoryVectorStore(Vectors())
    store.add_documents(FOUND)
    return store


async def _read(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


def _begun(chunks: Any) -> Iterator[Any]:
    """A stream that its first chunk has come of."""
    next(chunks)
    return chunks  # type: ignore[no-any-return]


async def _abegun(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    await anext(chunks)
    return chunks


FIRST = ", first chunk"  #: at the end of the name of a stream that is read so far
QUERY = VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=4)
BUNDLE = QueryBundle(QUESTION)
PAIRS = [(QUESTION, PASSAGE)] * 4
CASES = (
    Case("embedder, 384 numbers", Vectors, lambda x: x.embed_query(QUESTION), lambda x: x.aembed_query(QUESTION)),
    Case("chat model", Chat, lambda x: x._generate(ASKED), lambda x: x._agenerate(ASKED)),
    Case("chat model, stream of 8", Chat, lambda x: list(x._stream(ASKED)), lambda x: _read(x._astream(ASKED))),
    Case(
        f"chat model, stream of 8{FIRST}", Chat, lambda x: _begun(x._stream(ASKED)), lambda x: _abegun(x._astream(ASKED)),
    ),
    Case("completion model", Completion, lambda x: x._call(PASSAGE), lambda x: x._acall(PASSAGE)),
    Case("store, 4 found", Store, lambda x: x.similarity_search(QUESTION), lambda x: x.asimilarity_search(QUESTION)),
    Case(
        "exported store, 4 found", in_memory, lambda x: x.similarity_search_with_score_by_vector(VECTOR),
        lambda x: x.asimilarity_search_by_vector(VECTOR),
    ),
    Case(
        "retriever, 4 found", Shelf, lambda x: x._get_relevant_documents(QUESTION, run_manager=None),
        lambda x: x._aget_relevant_documents(QUESTION, run_manager=None),
    ),
    Case(
        "compressor, 4 documents", Rerank, lambda x: x.compress_documents(FOUND, QUESTION),
        lambda x: x.acompress_documents(FOUND, QUESTION),
    ),
    Case("cross-encoder, 4 pairs", Pairs, lambda x: x.score(PAIRS)),
    Case("tool", Adder, lambda x: x._run(1, 2), lambda x: x._arun(1, 2)),
    Case("LlamaIndex chat", Text, lambda x: x.chat(CHATTED), lambda x: x.achat(CHATTED)),
    Case("LlamaIndex completion", Text, lambda x: x.complete(PASSAGE), lambda x: x.acomplete(PASSAGE)),
    Case("LlamaIndex completion, stream of 8", Text, lambda x: list(x.stream_complete(PASSAGE))),
    Case(f"LlamaIndex completion, stream of 8{FIRST}", Text, lambda x: _begun(x.stream_complete(PASSAGE))),
    Case(
        "LlamaIndex embedding, 384 numbers", Embedding, lambda x: x._get_query_embedding(QUESTION),
        lambda x: x._aget_query_embedding(QUESTION),
    ),
    Case("LlamaIndex store, 4 found", Table, lambda x: x.query(QUERY), lambda x: x.aquery(QUERY)),
    Case(
        "LlamaIndex postprocessor, 4 nodes", Judge, lambda x: x._postprocess_nodes(NODES, BUNDLE),
        lambda x: x._apostprocess_nodes(NODES, BUNDLE),
    ),
    Case("LlamaIndex retriever, 4 found", Words, lambda x: x._retrieve(BUNDLE), lambda x: x._aretrieve(BUNDLE)),
)  # fmt: skip
