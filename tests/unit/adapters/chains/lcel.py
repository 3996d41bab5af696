from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

store = InMemoryVectorStore.from_documents(
    [Document(page_content=text) for text in ("one", "two", "three")], DeterministicFakeEmbedding(size=8)
)
small, large = GenericFakeChatModel(messages=iter([])), GenericFakeChatModel(messages=iter([]))
judges = frozenset({"a", "b", "c"})


def is_hard(x: dict[str, object]) -> bool:
    return len(judges) > 2 and "why" in str(x)


chain = (
    {"context": store.as_retriever(), "question": RunnablePassthrough()}
    | ChatPromptTemplate.from_template("{context} {question}")
    | RunnableBranch((RunnableLambda(is_hard), large), small)
    | StrOutputParser()
)
