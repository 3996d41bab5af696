from typing import Any, Literal, TypedDict

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    question: str
    documents: list[Any]
    answer: str


store = InMemoryVectorStore.from_texts(["one", "two"], DeterministicFakeEmbedding(size=8))
grader, writer = GenericFakeChatModel(messages=iter([])), GenericFakeChatModel(messages=iter([]))


def retrieve(state: State) -> dict[str, Any]:
    return {"documents": store.similarity_search(state["question"])}


def grade(state: State) -> dict[str, Any]:
    return {"documents": [d for d in state["documents"] if grader.invoke(str(d))]}


def rewrite(state: State) -> dict[str, Any]:
    return {"question": writer.invoke(state["question"]).content}


def generate(state: State) -> dict[str, Any]:
    return {"answer": writer.invoke(str(state)).content}


def clean(state: State) -> dict[str, Any]:
    return {}


def decide(state: State) -> Literal["clean", "rewrite"]:
    return "clean" if state["documents"] else "rewrite"


builder = StateGraph(State)
for node in (retrieve, grade, rewrite, clean, generate):
    builder.add_node(node)
builder.add_edge(START, "retrieve")
builder.add_edge("retrieve", "grade")
builder.add_conditional_edges("grade", decide)
builder.add_edge("rewrite", "retrieve")
builder.add_edge("clean", "generate")
builder.add_edge("generate", END)
app = builder.compile()
