"""LlamaIndex engines and workflows that construct their models where they need them."""

from __future__ import annotations

from typing import Any

from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_leaves import Caller, Judge, Text, Vectors, Words

TEXTS = [f"note {i} about {t}" for i, t in enumerate(("apples", "bread", "cherries"))]
NOTES = [TextNode(id_=f"n{i}", text=text) for i, text in enumerate(TEXTS)]


class Made(CustomQueryEngine):
    def custom_query(self, query_str: str) -> str:
        found = Words(TEXTS).retrieve(query_str)
        vector = Vectors(salt="made").get_query_embedding(query_str)
        text = Text(note="made").complete(f"{[n.node_id for n in found]} {query_str}").text
        return f"{text} {vector[0]:.3f}"


class Steps(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        kept = Judge(top_n=2).postprocess_nodes([NodeWithScore(node=n, score=0.5) for n in NOTES], query_str=ev.query)
        model: Any = Caller(note="step")
        first = await model.acomplete(ev.query)
        return StopEvent(result=[first.text, model.complete(first.text).text, [n.node_id for n in kept]])


engine = Made()
workflow = Steps(timeout=30)
