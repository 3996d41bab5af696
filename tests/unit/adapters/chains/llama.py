from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.postprocessor import LLMRerank, SimilarityPostprocessor
from llama_index.core.schema import Document


class Embedding(BaseEmbedding):
    def _embed(self, text: str) -> list[float]:
        return [float(ord(c)) for c in f"{text:<8}"[:8]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)


class Echo(CustomLLM):
    note: str = ""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        if "Doc: " in prompt or "Document 1" in prompt:  # the reranker's question
            return CompletionResponse(text="Doc: 2, Relevance: 7\nDoc: 1, Relevance: 3")
        return CompletionResponse(text=f"{self.note}{len(prompt)}")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def words() -> Any:
            text = ""
            for word in f"{self.note}{len(prompt)} words".split():
                text += word
                yield CompletionResponse(text=text, delta=word)

        return words()


index = VectorStoreIndex.from_documents(
    [Document(text=text, metadata={"n": n}) for n, text in enumerate(("apple", "bread", "cherry", "date"))],
    embed_model=Embedding(),
)
query_engine = index.as_query_engine(
    llm=Echo(note="answer "),
    similarity_top_k=3,
    node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.0), LLMRerank(llm=Echo(note="judge "), top_n=2)],
)
