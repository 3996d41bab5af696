from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    model="embed", base_url="http://127.0.0.1:9/v1", api_key="sk-secret", check_embedding_ctx_length=False
)
store = InMemoryVectorStore.from_documents([Document(page_content=f"passage {n}") for n in range(20)], embeddings)
llm = ChatOpenAI(model="small", base_url="http://127.0.0.1:9/v1", api_key="sk-secret")
chain = (
    {"context": store.as_retriever(), "question": RunnablePassthrough()}
    | ChatPromptTemplate.from_template("{context}\n{question}")
    | llm
    | StrOutputParser()
)
