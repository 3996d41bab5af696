"""The graph and the plan that the scheduler is measured and tested on."""

from __future__ import annotations

from patchwork_scheduler.simulate import ComponentPlan
from patchwork_scheduler.workload import Site, Way, Workload

#: What an engine prefills in one step at most, unless it is told otherwise (vLLM's default behind a serving process).
TOKEN_BUDGET = 2048


def crag() -> Workload:
    """Embed, search, four graders; for 30 % a rewrite and a web search; answer. Five components, 7.6 calls a request."""
    return Workload(
        "embed",
        [
            Site("embed", "embedder", ways=(Way("search", 1.0),)),
            Site("search", "retriever", ways=(Way("grade", 1.0),)),
            Site("grade", "small", fan=4, prompt_tokens=600, output_tokens=4, ways=(Way("rewrite", 0.3), Way("answer", 0.7))),
            Site("rewrite", "small", prompt_tokens=120, output_tokens=32, output_spread=0.3, ways=(Way("web", 1.0),)),
            Site("web", "web", ways=(Way("answer", 1.0),)),
            Site("answer", "large", prompt_tokens=1500, output_tokens=128, output_spread=0.3),
        ],
    )  # fmt: skip


def plan(token_budget: int = TOKEN_BUDGET) -> dict[str, ComponentPlan]:
    """For about 50 requests a second."""
    return {
        "embedder": ComponentPlan(1, max_batch=64), "reranker": ComponentPlan(2, max_batch=64), "retriever": ComponentPlan(1, max_batch=8),
        "web": ComponentPlan(24, max_batch=1),
        "small": ComponentPlan(2, token_budget=token_budget), "large": ComponentPlan(4, token_budget=token_budget),
    }  # fmt: skip
