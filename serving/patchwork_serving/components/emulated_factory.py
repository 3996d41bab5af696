"""From a component's spec to its emulated engine; what the spec says wrongly is told with its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_serving.components.emulated import BatchTimes, EmulatedEmbedder, EmulatedReranker, EmulatedTime
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_profiles import checked_rows
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine
from patchwork_serving.errors import ConfigError
from patchwork_serving.release import ComponentSpec

_KNOWN = ("answers", "dim", "kind", "n_in", "n_out", "profile", "rows", "seed", "slower")
DEFAULT_DIM = 384


def build_emulated(spec: ComponentSpec, name: str) -> BatchEngine | ContinuousEngine:
    """Constructed, not started; ConfigError names the argument."""
    args, where = spec.engine_args, f"models.{name}.engine_args"
    unknown = sorted(set(args) - set(_KNOWN))
    if unknown and spec.way != "engine":  # the engine way adds what the user's own class was told
        raise ConfigError(f"{where}.{unknown[0]}: the emulated engine has no such argument; it has {', '.join(_KNOWN)}")
    rows, wish, slower = checked_rows(args.get("rows"), f"{where}.rows"), _wish(args, where), _slower(args, where)
    profile = str(args.get("profile", "rows"))
    try:
        if spec.kind == "llm":
            cost = TokenCost.fit(_with_tokens(rows, where)).scaled(slower)
            return EmulatedLlm(cost, wish, name=name, profile=profile, slots=spec.slots)
        times = BatchTimes(rows, slower)
    except IncompleteProfile as error:
        raise ConfigError(f"{where}.rows: {error}") from error
    if spec.kind == "reranker":
        return EmulatedReranker(times, name=name, profile=profile, wish=wish)
    dim = _integer(args, "dim", where) or DEFAULT_DIM
    return EmulatedEmbedder(times, name=name, profile=profile, dim=dim, wish=wish)


def in_its_time(engine: BatchEngine | ContinuousEngine, spec: ComponentSpec) -> BatchEngine:
    """The component's own engine, in the time of ``spec.emulate``."""
    assert spec.emulate is not None, "only called for components that are emulated"
    wish, where = spec.emulate, f"components.{spec.id}.emulate"
    times = BatchTimes(checked_rows(wish.get("rows"), f"{where}.rows"), _slower(wish, where))
    return EmulatedTime(engine, times, profile=str(wish.get("profile") or "rows"))


def _with_tokens(rows: tuple[Mapping[str, float], ...], where: str) -> tuple[Mapping[str, float], ...]:
    for index, row in enumerate(rows):
        if "n_in" not in row or "n_out" not in row:
            raise ConfigError(f"{where}.rows[{index}]: an LLM's rows need n_in and n_out, the tokens of each request")
    return rows


def _wish(args: Mapping[str, Any], where: str) -> Wish:
    seed = args.get("seed", 0)
    if type(seed) is not int:
        raise ConfigError(f"{where}.seed: must be an integer, not {seed!r}")
    return Wish(seed, _integer(args, "n_in", where), _n_out(args, where), _answers(args.get("answers"), where))


def _integer(args: Mapping[str, Any], name: str, where: str) -> int | None:
    value = args.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigError(f"{where}.{name}: must be an integer of at least 1, not {value!r}")
    return value


def _n_out(args: Mapping[str, Any], where: str) -> int | tuple[int, int] | None:
    match args.get("n_out"):
        case [int() as low, int() as high] if 1 <= low <= high:
            return low, high
        case list() | tuple() as wrong:
            raise ConfigError(f"{where}.n_out: must be a number of tokens, or [least, most], not {wrong!r}")
        case _:
            return _integer(args, "n_out", where)


def _answers(given: object, where: str) -> Mapping[str, float]:
    """Texts with weights: ``{"yes": 0.7, "no": 0.3}``."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f'{where}.answers: must be texts with weights, such as {{"yes": 0.7, "no": 0.3}}')
    for text, weight in given.items():
        # YAML reads a bare yes or no as a truth value
        if not isinstance(text, str):
            raise ConfigError(f'{where}.answers: {text!r} must be a text; write it in quotes, such as "yes": 0.7')
        if type(weight) not in (int, float) or not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"{where}.answers.{text}: must be a weight of at least 0, not {weight!r}")
    if sum(given.values()) <= 0:
        raise ConfigError(f"{where}.answers: one of the weights must be more than 0")
    return dict(given)


def _slower(args: Mapping[str, Any], where: str) -> float:
    value = args.get("slower", 1.0)
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}.slower: must be a number above 0, not {value!r}")
    return float(value)
