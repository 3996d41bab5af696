"""The component graph as a Mermaid flowchart."""

from __future__ import annotations

from patchwork_adapters.graph import END, START, CallSite, Component, ComponentGraph, Edge, Opaque
from patchwork_serving.cli_inspect import to_mermaid

LLM = Component("llm", "llm", "langchain_openai.ChatOpenAI", "protocol", "llamacpp", model="small")
STORE = Component("end", "retriever", "langchain_core.InMemoryVectorStore", "engine", "pgvector")


def test_call_sites_are_joined_by_their_edges() -> None:
    graph = ComponentGraph(
        "x.py", "langchain", (LLM, STORE), (CallSite("end#1", "end"), CallSite("llm#1", "llm")),
        (Edge(START, "end#1", "data"), Edge("end#1", "llm#1", "cond", 0.5), Edge("llm#1", END, "data", 1.0)),
    )  # fmt: skip
    assert to_mermaid(graph).splitlines() == [
        "flowchart LR",
        '  n_end_1[("end#1<br/>pgvector")]',
        '  n_llm_1(["llm#1<br/>small"])',
        '  n___start__(("request"))',
        '  n___end__(("answer"))',
        "  n___start__ --> n_end_1",
        "  n_end_1 -.->|50%| n_llm_1",
        "  n_llm_1 --> n___end__",
    ]


def test_without_samples_the_components_stand_alone_and_opaque_parts_are_shown() -> None:
    graph = ComponentGraph("x.py", "langchain", (LLM,), opaque=(Opaque('f("x")', "raw client"),))
    assert to_mermaid(graph).splitlines() == [
        "flowchart LR",
        '  n_llm(["llm<br/>small"])',
        '  n_opaque_0["f(#quot;x#quot;): opaque"]:::opaque',
        "  classDef opaque stroke-dasharray: 4 4",
    ]
