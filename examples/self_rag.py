"""Self-RAG (Asai et al., 2023), as LangGraph's tutorial has it: retrieve, keep what is relevant, generate, and check the answer.

An answer that the passages do not support is generated again; one that does not answer leads to another question. Both at most twice.
Needs an OpenAI-compatible server (OPENAI_BASE_URL).

    python examples/self_rag.py "What does the finally clause do?"
"""

import sys
from typing import TypedDict

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, StateGraph
from rag_parts import chat, joined, reference

MAX_TRIES = 2


class State(TypedDict, total=False):
    question: str
    search: str
    documents: list[Document]
    answer: str
    generated: int
    rewritten: int


store = reference()
retriever = store.as_retriever(search_kwargs={"k": 3})
yes_or_no = chat("grader", 4) | StrOutputParser() | (lambda text: "yes" in text.lower())

relevance = (
    ChatPromptTemplate.from_template("Passage:\n{passage}\n\nIs it about this question? {question}\nAnswer yes or no.")
    | yes_or_no
)
support = (
    ChatPromptTemplate.from_template(
        "Facts:\n{context}\n\nAnswer: {answer}\nDo the facts support it? Answer yes or no."
    )
    | yes_or_no
)
usefulness = (
    ChatPromptTemplate.from_template("Question: {question}\nAnswer: {answer}\nIs it answered? Answer yes or no.")
    | yes_or_no
)
rewriter = (
    ChatPromptTemplate.from_template("Ask this in other words.\nQuestion: {question}\nIn other words:")
    | chat("rewriter", 32)
    | StrOutputParser()
)
generator = (
    ChatPromptTemplate.from_template(
        "Answer the question in one or two sentences, using only the context.\nContext:\n{context}\n\nQuestion: {question}"
    )
    | chat("generator", 64)
    | StrOutputParser()
)


async def retrieve(state: State) -> State:
    return {"documents": await retriever.ainvoke(state.get("search") or state["question"])}


async def grade(state: State) -> State:
    items = [{"passage": d.page_content, "question": state["question"]} for d in state["documents"]]
    keep = await relevance.abatch(items)
    return {"documents": [d for d, relevant in zip(state["documents"], keep, strict=True) if relevant]}


def after_grading(state: State) -> str:
    return "generate" if state["documents"] or state.get("rewritten", 0) >= MAX_TRIES else "rewrite"


async def rewrite(state: State) -> State:
    search = await rewriter.ainvoke({"question": state.get("search") or state["question"]})
    return {"search": search, "rewritten": state.get("rewritten", 0) + 1}


async def generate(state: State) -> State:
    answer = await generator.ainvoke({"context": joined(state["documents"]), "question": state["question"]})
    return {"answer": answer, "generated": state.get("generated", 0) + 1}


async def after_generating(state: State) -> str:
    if state["generated"] >= MAX_TRIES:
        return "enough"
    if not await support.ainvoke({"context": joined(state["documents"]), "answer": state["answer"]}):
        return "unsupported"
    useful = await usefulness.ainvoke({"question": state["question"], "answer": state["answer"]})
    return "enough" if useful or state.get("rewritten", 0) >= MAX_TRIES else "useless"


builder = StateGraph(State)
builder.add_node("retrieve", retrieve)
builder.add_node("grade", grade)
builder.add_node("rewrite", rewrite)
builder.add_node("generate", generate)
builder.add_edge(START, "retrieve")
builder.add_edge("retrieve", "grade")
builder.add_conditional_edges("grade", after_grading, ["generate", "rewrite"])
builder.add_edge("rewrite", "retrieve")
builder.add_conditional_edges(
    "generate", after_generating, {"enough": END, "unsupported": "generate", "useless": "rewrite"}
)
graph = builder.compile()

if __name__ == "__main__":
    import asyncio

    question = " ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"
    print(asyncio.run(graph.ainvoke({"question": question}))["answer"])
