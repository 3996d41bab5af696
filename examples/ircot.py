"""IRCoT (Trivedi et al., 2023) as a LangGraph: one sentence of reasoning and one retrieval in turn, until the answer is there.

Needs an OpenAI-compatible server (OPENAI_BASE_URL).

    python examples/ircot.py "What does the finally clause do?"
"""

import sys
from typing import TypedDict

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, StateGraph
from rag_parts import chat, joined, reference

MAX_STEPS = 3
MAX_PASSAGES = 6


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    thoughts: list[str]
    answer: str


store = reference()
retriever = store.as_retriever(search_kwargs={"k": 2})

reason_prompt = ChatPromptTemplate.from_template(
    "Context:\n{context}\n\nQuestion: {question}\nReasoning so far: {thoughts}\n"
    "Write the next sentence of the reasoning. If the question is answered, begin it with 'So the answer is'."
)
answer_prompt = ChatPromptTemplate.from_template(
    "Context:\n{context}\n\nQuestion: {question}\nReasoning: {thoughts}\nAnswer in one sentence."
)
reasoner = reason_prompt | chat("reasoner", 32) | StrOutputParser()
answerer = answer_prompt | chat("generator", 48) | StrOutputParser()


async def retrieve(state: State) -> State:
    thoughts = state.get("thoughts", [])
    found = await retriever.ainvoke(thoughts[-1] if thoughts else state["question"])
    known = {document.id: document for document in [*state.get("documents", []), *found]}
    return {"documents": list(known.values())[-MAX_PASSAGES:]}


async def reason(state: State) -> State:
    thoughts = state.get("thoughts", [])
    text = await reasoner.ainvoke(
        {"context": joined(state["documents"]), "question": state["question"], "thoughts": " ".join(thoughts)}
    )
    return {"thoughts": [*thoughts, text.strip().split("\n")[0]]}


def is_answered(state: State) -> str:
    done = "answer is" in state["thoughts"][-1].lower() or len(state["thoughts"]) >= MAX_STEPS
    return "respond" if done else "retrieve"


async def respond(state: State) -> State:
    text = await answerer.ainvoke(
        {"context": joined(state["documents"]), "question": state["question"], "thoughts": " ".join(state["thoughts"])}
    )
    return {"answer": text}


builder = StateGraph(State)
builder.add_node("retrieve", retrieve)
builder.add_node("reason", reason)
builder.add_node("respond", respond)
builder.add_edge(START, "retrieve")
builder.add_edge("retrieve", "reason")
builder.add_conditional_edges("reason", is_answered, ["retrieve", "respond"])
builder.add_edge("respond", END)
graph = builder.compile()

if __name__ == "__main__":
    import asyncio

    question = " ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"
    print(asyncio.run(graph.ainvoke({"question": question}))["answer"])
