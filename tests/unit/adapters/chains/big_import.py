import hashlib
import json

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL = "http://127.0.0.1:9/v1"
passages = [f"passage {i} of a corpus that is embedded while the module is imported" for i in range(2000)]
store = InMemoryVectorStore.from_texts(
    passages,
    OpenAIEmbeddings(model="embed", base_url=URL, api_key="sk-secret", check_embedding_ctx_length=False),
    ids=[str(i) for i in range(2000)],
)
chain = (
    store.as_retriever()
    | ChatPromptTemplate.from_template("{x}")
    | ChatOpenAI(model="small", base_url=URL, api_key="sk-secret")
)


def contents() -> str:
    """Digest of ids, texts and vectors."""
    return hashlib.sha256(json.dumps(store.store, sort_keys=True).encode()).hexdigest()
