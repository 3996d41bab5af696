"""The graphs, costs and plan that the scheduler is measured on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.simulate import ComponentPlan
from patchwork_scheduler.workload import Site, Way, Workload

#: Not in the profiles: one pgvector query on one connection, and a web search. Stated, not measured on that machine.
SEARCH_S, WEB_S = 0.0012, 0.3
#: What an engine prefills in one step at most, unless it is told otherwise (vLLM's default behind a serving process).
TOKEN_BUDGET = 2048


def load(path: File) -> Any:
    """A JSON file; exits with 2 and says which one is missing."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        print(
            f"error: {path} cannot be read ({type(error).__name__}); see --help for what the folder holds",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


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


def ircot() -> Workload:
    """A step of thought and a retrieval by turns, up to five times; then the answer."""
    return Workload(
        "embed",
        [
            # the sixth retrieval is not made: the fifth thought is followed by the answer
            Site("embed", "embedder", ways=(Way("search", 1.0),), max_visits=5),
            Site("search", "retriever", ways=(Way("rerank", 1.0),)),
            Site("rerank", "reranker", size=16, ways=(Way("think", 1.0),)),
            Site("think", "small", prompt_tokens=900, output_tokens=40, output_spread=0.4, max_visits=5,
                 ways=(Way("answer", 0.4), Way("embed", 0.6))),
            Site("answer", "large", prompt_tokens=1800, output_tokens=80, output_spread=0.3),
        ],
    )  # fmt: skip


def costs(profiles: File) -> dict[str, BatchCost | TokenCost]:
    encoders = load(profiles / "encoders.json")["rows"]
    return {
        "embedder": BatchCost.fit(encoders["embedder-minilm-l6"], n_in=16),
        "reranker": BatchCost.fit(encoders["reranker-bge-base"], n_in=256),
        "retriever": BatchCost((1.0, 2.0), (SEARCH_S, 2 * SEARCH_S)),
        "web": BatchCost.constant(WEB_S),
        "small": TokenCost.fit(load(profiles / "llama-3.2-3b.json")["rows"]),
        "large": TokenCost.fit(load(profiles / "llama-3.1-8b.json")["rows"]),
    }


def plan(token_budget: int = TOKEN_BUDGET) -> dict[str, ComponentPlan]:
    """For about 50 requests a second."""
    return {
        "embedder": ComponentPlan(1, max_batch=64), "reranker": ComponentPlan(2, max_batch=64), "retriever": ComponentPlan(1, max_batch=8),
        "web": ComponentPlan(24, max_batch=1),
        "small": ComponentPlan(2, token_budget=token_budget), "large": ComponentPlan(4, token_budget=token_budget),
    }  # fmt: skip


GRAPHS: dict[str, Callable[[], Workload]] = {"crag": crag, "ircot": ircot}
