"""MemoRAG (Qian et al., 2024) in small, as an LCEL chain: a model that knows the whole drafts clues, which are searched for.

The memory is the table of contents of the reference, given to the memory model with each question (the same beginning every time, which
engines keep). Needs an OpenAI-compatible server (OPENAI_BASE_URL).

    python examples/memorag.py "What does the finally clause do?"
"""

import sys

from corpus import passages
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from rag_parts import chat, joined, reference

MAX_CLUES = 3
MAX_TOPICS = 60
TOP = 4

store = reference()
retriever = store.as_retriever(search_kwargs={"k": 2})
memory = ", ".join(sorted({p.topic for p in passages()})[:MAX_TOPICS])

clue_prompt = ChatPromptTemplate.from_messages(
    [
        ("system", f"You have read a book about Python. Its topics are: {memory}."),
        (
            "human",
            "Write three short phrases from the book that help to answer, one on each line.\nQuestion: {question}",
        ),
    ]
)
answer_prompt = ChatPromptTemplate.from_template(
    "Answer the question in one or two sentences, using only the context.\nContext:\n{context}\n\nQuestion: {question}"
)


def lines(text: str) -> list[str]:
    return [line.strip(" -*0123456789.") for line in text.splitlines() if line.strip(" -*0123456789.")][:MAX_CLUES]


def merged(found: list[list[Document]]) -> list[Document]:
    """Of all that was found, each passage once, best ranks first."""
    ranked = [(rank, n, d) for n, documents in enumerate(found) for rank, d in enumerate(documents)]
    known = {d.id: d for _, _, d in sorted(ranked, key=lambda item: item[:2], reverse=True)}
    return list(reversed(known.values()))[:TOP]


drafter = clue_prompt | chat("memory", 48) | StrOutputParser() | lines
chain = (
    {"question": RunnablePassthrough(), "clues": {"question": RunnablePassthrough()} | drafter}
    | RunnablePassthrough.assign(
        context=(lambda data: [data["question"], *data["clues"]]) | retriever.map() | merged | joined
    )
    | answer_prompt
    | chat("generator", 96)
    | StrOutputParser()
)

if __name__ == "__main__":
    print(chain.invoke(" ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"))
