"""Chains of LangChain's expression language, each over models, stores and retrievers of the user's own."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, MultiQueryRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline, EmbeddingsFilter
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_leaves import (
    AsyncChat,
    Busy,
    Chat,
    Completion,
    HashEmbeddings,
    Keywords,
    QuietChat,
    Rerank,
    Store,
    corpus,
)

embeddings = HashEmbeddings()
store = Store(embeddings, corpus())
memory_store = InMemoryVectorStore.from_documents(corpus(6, "kept"), HashEmbeddings("memory"))
chat, other_chat = AsyncChat(name_="main"), Chat(name_="other", temperature=0.5)
parser = StrOutputParser()


def joined(documents: list[Any]) -> str:
    return "\n".join(d.page_content for d in documents)


answer_prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
simple = {"context": store.as_retriever() | joined, "question": RunnablePassthrough()} | answer_prompt | chat | parser

fan_out = (
    RunnableParallel(
        near=store.as_retriever(search_kwargs={"k": 2}),
        kept=memory_store.as_retriever(search_kwargs={"k": 2}),
        question=RunnablePassthrough(),
    )
    | RunnableLambda(lambda x: {"context": joined(x["near"] + x["kept"]), "question": x["question"]})
    | RunnableParallel(short=answer_prompt | chat | parser, long=answer_prompt | other_chat | parser)
)

branch = RunnableBranch(
    (lambda question: "why" in question, ChatPromptTemplate.from_template("Reason: {x}") | chat | parser),
    (lambda question: "list" in question, ChatPromptTemplate.from_template("List: {x}") | other_chat | parser),
    Completion(note="default"),
)


def route(question: str) -> Runnable[Any, Any]:
    """What the lambda returns runs in its place."""
    return simple if "why" in question else answer_prompt.partial(context="none") | QuietChat(name_="made") | parser


dynamic = RunnableLambda(route)

assigned = RunnablePassthrough.assign(context=itemgetter("question") | store.as_retriever() | joined).assign(
    draft=answer_prompt | chat | parser
).assign(verdict=ChatPromptTemplate.from_template("GRADE {draft}") | other_chat | parser) | RunnablePassthrough().pick(
    ["draft", "verdict"]
)

history_prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
retrieval = create_retrieval_chain(
    create_history_aware_retriever(other_chat, store.as_retriever(), history_prompt),
    create_stuff_documents_chain(
        chat,
        ChatPromptTemplate.from_messages(
            [("system", "{context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
        ),
    ),
)

several = MultiQueryRetriever.from_llm(retriever=store.as_retriever(search_kwargs={"k": 2}), llm=other_chat)
ensemble = EnsembleRetriever(retrievers=[several, Keywords(documents=corpus())], weights=[0.6, 0.4])
compression = ContextualCompressionRetriever(
    base_retriever=ensemble,
    base_compressor=DocumentCompressorPipeline(
        transformers=[EmbeddingsFilter(embeddings=HashEmbeddings("filter"), k=4), Rerank(top_n=2)]
    ),
)
compressed = {"context": compression | joined, "question": RunnablePassthrough()} | answer_prompt | chat | parser

fragile = Chat(name_="fragile", fails_on="hard").with_retry(
    retry_if_exception_type=(Busy,), wait_exponential_jitter=False, stop_after_attempt=2
)
configurable = chat.configurable_fields(temperature=ConfigurableField(id="temperature")).configurable_alternatives(
    ConfigurableField(id="model"), default_key="main", other=other_chat
)
wrappers = (
    ChatPromptTemplate.from_template("{question}")
    | fragile.with_fallbacks([configurable.with_config(tags=["second"])], exceptions_to_handle=(Busy,))
    | parser
)
unguarded = ChatPromptTemplate.from_template("{question}") | Chat(name_="bare", fails_on="hard") | parser

histories: dict[str, InMemoryChatMessageHistory] = {}


def history_of(session_id: str) -> InMemoryChatMessageHistory:
    return histories.setdefault(session_id, InMemoryChatMessageHistory())


with_history = RunnableWithMessageHistory(
    history_prompt | chat, history_of, input_messages_key="input", history_messages_key="chat_history"
)
custom_retriever = (
    {"context": Keywords(documents=corpus(), k=3) | joined, "question": RunnablePassthrough()}
    | PromptTemplate.from_template("{context} {question}")
    | Completion()
)
