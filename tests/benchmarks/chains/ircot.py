"""IRCoT's shape: retrieval and one step of reasoning in turn, five times; then the answer."""

from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from lookup import Lookup, joined

STEPS = 5

search = Lookup(passages=["Red apples grow on trees.", "Green pears do too."])
reasoner = ChatOpenAI(model="reasoner", temperature=0)
answerer = ChatOpenAI(model="answerer", temperature=0)


async def answer(question: str) -> str:
    thoughts = question
    for _ in range(STEPS):
        found = joined(await search.ainvoke(thoughts))
        thoughts = str((await reasoner.ainvoke(f"{found}\n\n{thoughts}")).content)
    return str((await answerer.ainvoke(f"{thoughts}\n\n{question}")).content)


chain = RunnableLambda(answer)
