"""The applications that are compared: examples, what they are asked, and the H100 engines that are emulated for each of their parts."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from patchwork_scheduler.cost import TokenCost
from patchwork_serving.components.emulated_profiles import load_profile

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
CHAT, EMBED = "smollm2-135m-instruct", "all-minilm-l6-v2"
LLM_PROFILE = "llama-3.2-3b-h100"
#: Questions of each part of a run (learning, each load, streams, those that tell the SLO), and words of a passage in a question.
PART, WORDS = 250, 12


@dataclass(frozen=True)
class Application:
    """An example and what it is asked. ``emulated``: its models' arguments, each an engine of its own that takes an H100's time."""

    name: str
    file: Path
    attribute: str
    emulated: Mapping[str, Any]
    wraps: str | None = None  #: the key of the question, for a chain that takes an object
    needs_postgres: bool = False  #: the chain itself reads DATABASE_URL
    inputs: Path = EXAMPLES / "questions.jsonl"
    calls: Mapping[str, float] = field(default_factory=dict)  #: of each LLM by a request, in the mean
    streams: bool = True

    @property
    def target(self) -> str:
        return f"{self.file}:{self.attribute}"

    def values(self, part: int = 0) -> list[Any]:
        """What loads ask, in turn; no two alike, and no two parts of a run begin alike, as long as each asks at most PART."""
        asked = [self.value(question) for question in _questions()]
        start = part * PART % len(asked)
        return asked[start:] + asked[:start]

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.inputs.read_text(encoding="utf-8").splitlines() if line.strip()]

    def value(self, question: str) -> Any:
        return {self.wraps: question} if self.wraps else question

    def capacity_per_s(self, slower: float) -> float:
        """Requests per second at which the first of its LLM engines is full, if there is one of each: a guide for choosing rates."""
        cost = TokenCost.fit(load_profile(LLM_PROFILE, Path(), "benchmark").rows).scaled(slower)
        return 1.0 / max(number * _occupied_s(cost, self.emulated[model]) for model, number in self.calls.items())


@cache
def _questions() -> list[str]:
    """One about each passage of the corpus: the example's fifty would be answered from engines' caches of prompts after a minute, and
    whoever refuses some of them would have fewer there than whoever answers all."""
    sys.path.insert(0, str(EXAMPLES))
    from corpus import passages  # type: ignore[import-not-found]

    found = {f"What does the reference say about: {' '.join(one.text.split()[:WORDS])}?": None for one in passages()}
    asked = list(found)
    random.Random(0).shuffle(asked)
    return asked


def _occupied_s(cost: TokenCost, arguments: Mapping[str, Any]) -> float:
    n_out = arguments["n_out"]
    return cost.occupied_s(arguments["n_in"], n_out if isinstance(n_out, int) else round(sum(n_out) / 2))


#: Token counts are those of the shapes of the paper's applications on an H100 (docs/benchmarks/README.md).
LLM = {"profile": LLM_PROFILE}
EMBEDDER = {EMBED: {"profile": "minilm-l6-h100"}}
ANSWER = {**LLM, "n_in": 1500, "n_out": [32, 64]}
GENERATOR = {"generator": ANSWER}
REWRITER = {"rewriter": {**LLM, "n_in": 200, "n_out": [8, 24]}}
GRADER = {**LLM, "n_in": 600, "n_out": 4}

_ALL = (
    Application("vanilla", EXAMPLES / "vanilla_rag.py", "chain", {**EMBEDDER, CHAT: ANSWER}, calls={CHAT: 1}),
    # four graders; for 30 % of questions none of them says yes (h100/README.md)
    Application(
        "crag", EXAMPLES / "crag.py", "graph",
        {**EMBEDDER, **GENERATOR, **REWRITER, "grader": {**GRADER, "answers": {"yes": 0.26, "no": 0.74}}},
        wraps="question", needs_postgres=True, calls={"grader": 4, "rewriter": 0.3, "generator": 1},
    ),
    Application(
        "ircot", EXAMPLES / "ircot.py", "graph",
        {
            **EMBEDDER, **GENERATOR,
            "reasoner": {
                **LLM, "n_in": 1200, "n_out": [16, 32], "answers": {"So the answer is this.": 0.33, "One thing follows.": 0.67},
            },
        },
        wraps="question", calls={"reasoner": 2.1, "generator": 1},
    ),
    Application(
        "hipporag", EXAMPLES / "hipporag.py", "chain",
        {**EMBEDDER, **GENERATOR, "extractor": {**LLM, "n_in": 300, "n_out": [8, 32]}},
        calls={"extractor": 1, "generator": 1},
    ),
    Application(
        "memorag", EXAMPLES / "memorag.py", "chain",
        {**EMBEDDER, **GENERATOR, "memory": {**LLM, "n_in": 2000, "n_out": [24, 48]}},
        calls={"memory": 1, "generator": 1},
    ),
    # three passages, the support and the usefulness are graded, about one answer in two is made again
    Application(
        "self_rag", EXAMPLES / "self_rag.py", "graph",
        {**EMBEDDER, **GENERATOR, **REWRITER, "grader": {**GRADER, "answers": {"yes": 0.7, "no": 0.3}}},
        wraps="question", calls={"grader": 4.5, "rewriter": 0.2, "generator": 1.3},
    ),
    Application(
        "adaptive_rag", EXAMPLES / "adaptive_rag.py", "graph",
        {**EMBEDDER, **GENERATOR, **REWRITER, "grader": {**GRADER, "n_in": 200, "answers": {"A": 0.2, "B": 0.5, "C": 0.3}}},
        wraps="question", calls={"grader": 1, "rewriter": 0.3, "generator": 1},
    ),
    # the questions are plain ones for the most part: one index, one answer
    Application(
        "subquestion", EXAMPLES / "llamaindex_router.py", "query_engine", {**EMBEDDER, CHAT: {**ANSWER, "n_out": [24, 48]}},
        calls={CHAT: 1.5}, streams=False,
    ),
)  # fmt: skip
APPLICATIONS = {app.name: app for app in _ALL}
#: Those of the paper's evaluation and the plain one: what a comparison measures unless it is told otherwise.
COMPARED = ("vanilla", "crag", "ircot", "hipporag", "memorag")
