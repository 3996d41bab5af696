"""Corrective RAG (Yan et al., 2024) as a LangGraph: retrieve, grade each passage, else rewrite and ask a second source, generate.

Needs an OpenAI-compatible server (OPENAI_BASE_URL) and a Postgres (DATABASE_URL) for the second source, a full-text index that stands
where the paper has a web search.

    python examples/crag.py "What does the finally clause do?"
"""

import operator
import sys
from typing import Annotated, TypedDict

from fulltext import full_text_search
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from rag_parts import chat, joined, reference


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    relevant: Annotated[list[tuple[int, Document]], operator.add]  # with the rank at which it was found
    search: str
    answer: str


class Graded(TypedDict):
    question: str
    rank: int
    document: Document


store = reference()
retriever = store.as_retriever(search_kwargs={"k": 4})
second_source = full_text_search()

grade_prompt = ChatPromptTemplate.from_template(
    "Passage:\n{passage}\n\nQuestion: {question}\nDoes the passage help to answer the question? Answer yes or no."
)
rewrite_prompt = ChatPromptTemplate.from_template(
    "Rewrite this question as a search query.\nQuestion: {question}\nQuery:"
)
answer_prompt = ChatPromptTemplate.from_template(
    "Answer the question in one or two sentences, using only the context.\nContext:\n{context}\n\nQuestion: {question}"
)
grader = grade_prompt | chat("grader", 4) | StrOutputParser()
rewriter = rewrite_prompt | chat("rewriter", 24) | StrOutputParser()
generator = answer_prompt | chat("generator", 64) | StrOutputParser()


async def retrieve(state: State) -> State:
    return {"documents": await retriever.ainvoke(state["question"])}


def each_document(state: State) -> list[Send]:
    return [
        Send("grade", {"question": state["question"], "rank": rank, "document": document})
        for rank, document in enumerate(state["documents"])
    ]


async def grade(item: Graded) -> State:
    verdict = await grader.ainvoke({"passage": item["document"].page_content, "question": item["question"]})
    return {"relevant": [(item["rank"], item["document"])] if "yes" in verdict.lower() else []}


def decide(state: State) -> str:
    return "generate" if state["relevant"] else "rewrite"


async def rewrite(state: State) -> State:
    return {"search": await rewriter.ainvoke({"question": state["question"]})}


async def search(state: State) -> State:
    found = await second_source.ainvoke(state["search"] or state["question"])
    return {"relevant": list(enumerate(found))}


async def generate(state: State) -> State:
    documents = [document for _, document in sorted(state["relevant"], key=lambda pair: pair[0])]
    return {"answer": await generator.ainvoke({"context": joined(documents), "question": state["question"]})}


builder = StateGraph(State)
builder.add_node("retrieve", retrieve)
builder.add_node("grade", grade)
builder.add_node("judge", lambda state: {})  # waits until all passages are graded
builder.add_node("rewrite", rewrite)
builder.add_node("search", search)
builder.add_node("generate", generate)
builder.add_edge(START, "retrieve")
builder.add_conditional_edges("retrieve", each_document, ["grade"])
builder.add_edge("grade", "judge")
builder.add_conditional_edges("judge", decide, ["generate", "rewrite"])
builder.add_edge("rewrite", "search")
builder.add_edge("search", "generate")
builder.add_edge("generate", END)
graph = builder.compile()

if __name__ == "__main__":
    import asyncio

    question = " ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"
    print(asyncio.run(graph.ainvoke({"question": question}))["answer"])
