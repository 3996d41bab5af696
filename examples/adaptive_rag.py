"""Adaptive-RAG (Jeong et al., 2024) as a LangGraph: a small model says how hard a question is; none, one or several retrievals follow.

Needs an OpenAI-compatible server (OPENAI_BASE_URL).

    python examples/adaptive_rag.py "What does the finally clause do?"
"""

import sys
from typing import TypedDict

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, StateGraph
from rag_parts import chat, joined, reference

MAX_STEPS = 2


class State(TypedDict, total=False):
    question: str
    way: str
    search: str
    documents: list[Document]
    steps: int
    answer: str


store = reference()
retriever = store.as_retriever(search_kwargs={"k": 3})
classifier = (
    ChatPromptTemplate.from_template(
        "How is this question answered best: A without looking anything up, B with one look into the reference, C with"
        " several? Answer A, B or C.\nQuestion: {question}\nAnswer:"
    )
    | chat("grader", 4)
    | StrOutputParser()
)
follow_up = (
    ChatPromptTemplate.from_template(
        "Context:\n{context}\n\nQuestion: {question}\nWhat else must be looked up? Answer with one short phrase."
    )
    | chat("rewriter", 16)
    | StrOutputParser()
)
generator = (
    ChatPromptTemplate.from_template(
        "Answer the question in one or two sentences.\nContext:\n{context}\n\nQuestion: {question}"
    )
    | chat("generator", 64)
    | StrOutputParser()
)


async def classify(state: State) -> State:
    verdict = (await classifier.ainvoke({"question": state["question"]})).strip().upper()
    return {"way": {"A": "none", "C": "several"}.get(verdict[:1], "one"), "documents": [], "steps": 0}


def first_step(state: State) -> str:
    return "generate" if state["way"] == "none" else "retrieve"


async def retrieve(state: State) -> State:
    found = await retriever.ainvoke(state.get("search") or state["question"])
    known = {d.id: d for d in [*state["documents"], *found]}
    return {"documents": list(known.values()), "steps": state["steps"] + 1}


def next_step(state: State) -> str:
    return "ask_on" if state["way"] == "several" and state["steps"] < MAX_STEPS else "generate"


async def ask_on(state: State) -> State:
    return {"search": await follow_up.ainvoke({"context": joined(state["documents"]), "question": state["question"]})}


async def generate(state: State) -> State:
    return {"answer": await generator.ainvoke({"context": joined(state["documents"]), "question": state["question"]})}


builder = StateGraph(State)
builder.add_node("classify", classify)
builder.add_node("retrieve", retrieve)
builder.add_node("ask_on", ask_on)
builder.add_node("generate", generate)
builder.add_edge(START, "classify")
builder.add_conditional_edges("classify", first_step, ["generate", "retrieve"])
builder.add_conditional_edges("retrieve", next_step, ["ask_on", "generate"])
builder.add_edge("ask_on", "retrieve")
builder.add_edge("generate", END)
graph = builder.compile()

if __name__ == "__main__":
    import asyncio

    question = " ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"
    print(asyncio.run(graph.ainvoke({"question": question}))["answer"])
