"""CRAG's shape: retrieve, grade all that was retrieved; three in ten are rewritten and searched for on the web; generate."""

from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from lookup import Lookup, joined

search = Lookup(passages=["Red apples grow on trees.", "Green pears do too."])
web = Lookup(passages=["Somebody wrote about it."])
grader = ChatOpenAI(model="grader", temperature=0)
rewriter = ChatOpenAI(model="rewriter", temperature=0)
generator = ChatOpenAI(model="generator", temperature=0)


async def answer(question: str) -> str:
    found = joined(await search.ainvoke(question))
    grade = await grader.ainvoke(f"Does this answer {question}?\n{found}")
    if grade.content != "yes":
        asked = await rewriter.ainvoke(f"Ask better: {question}")
        found += joined(await web.ainvoke(str(asked.content)))
    return str((await generator.ainvoke(f"{found}\n\n{question}")).content)


chain = RunnableLambda(answer)
