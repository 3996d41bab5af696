"""The graphs, costs and plan that the scheduler is measured on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

from kit.scheduled_graphs import crag
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.workload import Site, Way, Workload

#: Not in the profiles: one pgvector query on one connection, and a web search. Stated, not measured on that machine.
SEARCH_S, WEB_S = 0.0012, 0.3


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


GRAPHS: dict[str, Callable[[], Workload]] = {"crag": crag, "ircot": ircot}
