"""HippoRAG's shape: entities out of the question, their embedding, personalised PageRank on cores, generation."""

from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from lookup import Lookup, joined

extractor = ChatOpenAI(model="extractor", temperature=0)
embeddings = OpenAIEmbeddings(model="entities", check_embedding_ctx_length=False)
pagerank = Lookup(passages=["Red apples grow on trees.", "Green pears do too."])
generator = ChatOpenAI(model="generator", temperature=0)


async def answer(question: str) -> str:
    entities = str((await extractor.ainvoke(question)).content)
    vector = await embeddings.aembed_query(entities)
    found = joined(await pagerank.ainvoke(f"{question} {vector[0]:.3f}"))
    return str((await generator.ainvoke(f"{found}\n\n{question}")).content)


chain = RunnableLambda(answer)
