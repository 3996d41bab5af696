"""Profiles shaped like the four applications of the Patchwork paper, with service times as one H100 showed for a 3B model.

Prefill 87,500 tokens/s; one decode step 3.4 ms alone, 5.2 at batch 64, 6.1 at 128, 9.2 at 256 (vLLM, real shapes, dummy weights).
Input tokens of CRAG are the paper's (its table 3); output tokens and branch probabilities it does not give: they are assumed.
"""

from __future__ import annotations

from kit.planning import component, profile
from patchwork_scheduler.profile_model import ComponentProfile, Profile

PREFILL_TOKENS_PER_S = 87_500.0
DECODE_STEP_S = {1: 0.0034, 8: 0.0037, 16: 0.0041, 64: 0.0052, 128: 0.0061, 256: 0.0092}


def llm(name: str, *, tokens_in: float, tokens_out: float, visits: float = 1.0) -> ComponentProfile:
    """A 3B model on one H100 per replica."""
    seconds = {b: b * tokens_in / PREFILL_TOKENS_PER_S + tokens_out * step for b, step in DECODE_STEP_S.items()}
    return component(name, gpu=seconds, visits=visits)


def on_cores(name: str, *, fixed_s: float, per_call_s: float, visits: float = 1.0) -> ComponentProfile:
    """A replica per core; ``fixed_s`` is shared by the calls of a batch."""
    return component(name, cpu={b: fixed_s + b * per_call_s for b in (1, 8, 32)}, visits=visits)


def crag() -> Profile:
    """Retrieve, grade with all retrieved context; three in ten are rewritten and searched for on the web; generate."""
    return profile(
        on_cores("retriever", fixed_s=0.002, per_call_s=0.012),
        llm("grader", tokens_in=2950, tokens_out=4),
        on_cores("augmenter", fixed_s=0.0, per_call_s=0.001),
        llm("rewriter", tokens_in=88, tokens_out=32, visits=0.3),
        on_cores("web", fixed_s=0.0, per_call_s=0.02, visits=0.3),
        llm("generator", tokens_in=314, tokens_out=64),
        chain="crag.py",
    )


def ircot() -> Profile:
    """Retrieval and one reasoning step in turn, three times; then the answer."""
    return profile(
        on_cores("retriever", fixed_s=0.002, per_call_s=0.006, visits=3.0),
        llm("reasoner", tokens_in=1200, tokens_out=48, visits=3.0),
        llm("answer", tokens_in=1500, tokens_out=32),
        chain="ircot.py",
    )


def hipporag() -> Profile:
    """Entities out of the question, embedding, personalised PageRank on cores, generation."""
    return profile(
        llm("extractor", tokens_in=300, tokens_out=48),
        component("embedder", gpu={1: 0.0041, 64: 0.0042, 256: 0.0141}),
        on_cores("pagerank", fixed_s=0.0, per_call_s=0.06),
        llm("generator", tokens_in=1500, tokens_out=128),
        chain="hipporag.py",
    )


def memorag() -> Profile:
    """A memory model clues from a long context, retrieval, generation of a long answer."""
    return profile(
        llm("memory", tokens_in=900, tokens_out=32),
        on_cores("retriever", fixed_s=0.002, per_call_s=0.004),
        llm("generator", tokens_in=3072, tokens_out=256),
        chain="memorag.py",
    )
