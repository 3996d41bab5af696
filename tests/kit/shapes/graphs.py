"""LangGraph: conditional edges, loops, Send, Command, subgraphs with interrupts, functional graphs and agents."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langchain_leaves import AsyncChat, Chat, HashEmbeddings, Store, corpus
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, RetryPolicy, Send, interrupt

store = Store(HashEmbeddings(), corpus())
writer, grader, rewriter = AsyncChat(name_="writer"), Chat(name_="grader"), Chat(name_="rewriter")


class Crag(TypedDict, total=False):
    question: str
    documents: list[str]
    tries: int
    answer: str
    grades: Annotated[list[str], operator.add]


def retrieve(state: Crag) -> Crag:
    found = store.as_retriever(search_kwargs={"k": 3}).invoke(state["question"])
    return {"documents": [d.page_content for d in found]}


async def grade(state: Crag) -> Crag:
    grades = [(await grader.ainvoke(f"GRADE {state['question']} {text}")).text for text in state["documents"]]
    return {"grades": grades, "documents": [t for t, g in zip(state["documents"], grades, strict=True) if g == "yes"]}


def grade_now(state: Crag) -> Crag:
    grades = [grader.invoke(f"GRADE {state['question']} {text}").text for text in state["documents"]]
    return {"grades": grades, "documents": [t for t, g in zip(state["documents"], grades, strict=True) if g == "yes"]}


def decide(state: Crag) -> str:
    return "generate" if len(state["documents"]) > 1 or state.get("tries", 0) >= 2 else "rewrite"


def rewrite(state: Crag) -> Command[Literal["retrieve"]]:
    better = rewriter.invoke(f"Rewrite: {state['question']}").text
    return Command(update={"question": better, "tries": state.get("tries", 0) + 1}, goto="retrieve")


def generate(state: Crag) -> Crag:
    return {"answer": writer.invoke(f"{state['documents']} {state['question']}").text}


def crag() -> Any:
    from langchain_core.runnables import RunnableLambda

    builder = StateGraph(Crag)
    builder.add_node("retrieve", retrieve)
    builder.add_node("grade", RunnableLambda(grade_now, afunc=grade))
    builder.add_node("rewrite", rewrite)
    builder.add_node("generate", generate, retry_policy=RetryPolicy(max_attempts=2))
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "grade")
    builder.add_conditional_edges("grade", decide)
    builder.add_edge("generate", END)
    return builder.compile()


crag_graph = crag()


class Parts(TypedDict, total=False):
    topics: list[str]
    topic: str
    written: Annotated[list[str], operator.add]
    whole: str


def spread(state: Parts) -> list[Send]:
    return [Send("write", {"topic": topic}) for topic in state["topics"]]


def write(state: Parts) -> Parts:
    return {"written": [writer.invoke(state["topic"]).text]}


def gather(state: Parts) -> Parts:
    return {"whole": rewriter.invoke(" ".join(sorted(state["written"]))).text}


_parts = StateGraph(Parts)
_parts.add_node("write", write)
_parts.add_node("gather", gather)
_parts.add_conditional_edges(START, spread, ["write"])
_parts.add_edge("write", "gather")
map_reduce = _parts.compile()


class Talk(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    approved: str


def draft(state: Talk) -> Talk:
    return {"messages": [writer.invoke(state["messages"])]}


def approve(state: Talk) -> Talk:
    return {"approved": interrupt({"draft": state["messages"][-1].text})}


def finish(state: Talk) -> Talk:
    return {"messages": [rewriter.invoke([*state["messages"], ("human", f"approved: {state['approved']}")])]}


_inner = StateGraph(Talk)
_inner.add_node("draft", draft)
_inner.add_node("approve", approve)
_inner.add_edge(START, "draft")
_inner.add_edge("draft", "approve")
_outer = StateGraph(Talk)
_outer.add_node("reviewed", _inner.compile())
_outer.add_node("finish", finish)
_outer.add_edge(START, "reviewed")
_outer.add_edge("reviewed", "finish")
interrupted = _outer.compile(checkpointer=InMemorySaver())


@task
def search(question: str) -> list[str]:
    return [d.page_content for d in store.similarity_search(question, k=2)]


@entrypoint(checkpointer=InMemorySaver())
def functional(question: str) -> str:
    found = search(question).result()
    return str(writer.invoke(f"{found} {question}").text)


@tool
def look_up(query: str) -> str:
    """Search the notes."""
    return "\n".join(d.page_content for d in store.similarity_search(query, k=2))


agent = create_agent(AsyncChat(name_="agent"), [look_up], system_prompt="Use the notes.")
