"""HippoRAG (Gutiérrez et al., 2024) in small, as an LCEL chain: entities of the question, personalised PageRank over a graph, generation.

Offline: a graph whose nodes are the terms of the reference (its index entries and headings) and its passages. Online: a model names the
entities of the question, the nearest terms are found by embedding, PageRank spreads from them, and the passages that it reaches answer.
Needs an OpenAI-compatible server (OPENAI_BASE_URL) and igraph.

    python examples/hipporag.py "What does the finally clause do?"
"""

import re
import sys

import igraph
from corpus import passages
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from rag_parts import chat, embeddings, joined

MIN_PASSAGES = 2  # a term of one passage connects nothing
TOP = 4
DAMPING = 0.5  # as in the paper


def terms_of(text: str) -> set[str]:
    """Quoted names, as the reference writes code (``"finally"``), and words in capitals inside (``ZeroDivisionError``)."""
    return {t.lower() for t in re.findall(r'"([A-Za-z_][\w.]*)"|\b([A-Z][a-z]+[A-Z]\w+)\b', text) for t in t if t}


def entity_graph() -> tuple[igraph.Graph, list[str]]:
    """Passages first, then terms; an edge where a passage has a term."""
    found = [terms_of(f"{p.title} {p.text}") | {p.topic.lower()} for p in passages()]
    counts: dict[str, int] = {}
    for terms in found:
        for term in terms:
            counts[term] = counts.get(term, 0) + 1
    names = sorted(term for term, count in counts.items() if count >= MIN_PASSAGES)
    number = {term: len(found) + n for n, term in enumerate(names)}
    edges = [(n, number[term]) for n, terms in enumerate(found) for term in sorted(terms) if term in number]
    return igraph.Graph(n=len(found) + len(names), edges=edges), names


graph, terms = entity_graph()
term_index = InMemoryVectorStore.from_texts(terms, embeddings, ids=[f"term-{n}" for n in range(len(terms))])
nearest_terms = term_index.as_retriever(search_kwargs={"k": 5})


def reached(found: list[Document]) -> list[Document]:
    """Passages by personalised PageRank from the terms found. A term shares its weight among its passages: with equal weights those of
    the rarest term would always win."""
    seeds = [len(passages()) + int(document.id.removeprefix("term-")) for document in found if document.id]
    weights = [0.0] * graph.vcount()
    for seed in seeds:
        weights[seed] = float(graph.degree(seed))
    scores = graph.personalized_pagerank(directed=False, damping=DAMPING, reset=weights)[: len(passages())]
    best = sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:TOP]
    return [Document(id=passages()[n].id, page_content=passages()[n].text) for n in best]


entity_prompt = ChatPromptTemplate.from_template(
    "List the Python keywords, names and notions in this question, separated by commas.\nQuestion: {question}\nList:"
)
answer_prompt = ChatPromptTemplate.from_template(
    "Answer the question in one or two sentences, using only the context.\nContext:\n{context}\n\nQuestion: {question}"
)
extractor = entity_prompt | chat("extractor", 32) | StrOutputParser()


def with_question(data: dict[str, str]) -> str:
    return f"{data['question']} {data['entities']}"


chain = (
    {"question": RunnablePassthrough(), "entities": {"question": RunnablePassthrough()} | extractor}
    | RunnablePassthrough.assign(context=with_question | nearest_terms | reached | joined)
    | answer_prompt
    | chat("generator", 64)
    | StrOutputParser()
)

if __name__ == "__main__":
    print(chain.invoke(" ".join(sys.argv[1:]) or "What does the finally clause of a try statement do?"))
