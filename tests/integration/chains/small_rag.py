"""A small RAG chain on the packaged models, and the same passages behind a LlamaIndex engine."""

import os

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ANIMALS = ("cat", "dog", "horse", "snake", "parrot", "whale", "bee", "lion", "ant", "crow", "frog", "goat")
PASSAGES = [f"A {animal} is number {n} in this list and eats {animal} food." for n, animal in enumerate(ANIMALS)]

embeddings = OpenAIEmbeddings(model=os.environ.get("EMBED_MODEL", "all-minilm-l6-v2"), check_embedding_ctx_length=False)
store = InMemoryVectorStore.from_documents(
    [Document(text, id=f"p{n}", metadata={"n": n}) for n, text in enumerate(PASSAGES)], embeddings
)
llm = ChatOpenAI(model=os.environ.get("CHAT_MODEL", "smollm2-135m-instruct"), temperature=0, max_tokens=12)


def join(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


chain = (
    {"context": store.as_retriever(search_kwargs={"k": 2}) | join, "question": RunnablePassthrough()}
    | ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")
    | llm
    | StrOutputParser()
)
