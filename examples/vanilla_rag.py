"""Questions about the Python language, answered from its own reference: a small LangChain RAG chain.

Needs an OpenAI-compatible server: the hosted one, or any local one through OPENAI_BASE_URL.

    python examples/vanilla_rag.py "What does the finally clause do?"
"""

import os
import sys

from corpus import passages
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    model=os.environ.get("EMBED_MODEL", "all-minilm-l6-v2"),
    check_embedding_ctx_length=False,  # send text; local servers do not take OpenAI's token ids
)
store = InMemoryVectorStore.from_documents(
    [Document(id=p.id, page_content=p.text, metadata=p.metadata) for p in passages()],
    embeddings,
)
retriever = store.as_retriever(search_kwargs={"k": 3})

prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question about Python in one or two sentences, using only the context."),
        ("human", "Context:\n{context}\n\nQuestion: {question}"),
    ]
)
llm = ChatOpenAI(
    model=os.environ.get("CHAT_MODEL", "smollm2-135m-instruct"),
    temperature=0,
    max_tokens=64,
)


def format_docs(docs: list[Document]) -> str:
    return "\n\n".join(doc.page_content for doc in docs)


chain = (
    {"context": retriever | format_docs, "question": RunnablePassthrough()}
    | prompt
    | llm
    | StrOutputParser()
)  # fmt: skip

if __name__ == "__main__":
    print(chain.invoke(" ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"))
