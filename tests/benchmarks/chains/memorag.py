"""MemoRAG's shape: a memory model gives clues out of a long context, retrieval, generation of a long answer."""

from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from lookup import Lookup, joined

memory = ChatOpenAI(model="memory", temperature=0)
search = Lookup(passages=["Red apples grow on trees.", "Green pears do too."])
generator = ChatOpenAI(model="generator", temperature=0)


async def answer(question: str) -> str:
    clues = str((await memory.ainvoke(question)).content)
    found = joined(await search.ainvoke(clues))
    return str((await generator.ainvoke(f"{found}\n\n{question}")).content)


chain = RunnableLambda(answer)
