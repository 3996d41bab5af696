"""Operations of shared engines as Hugging Face's leaves ask for them, in both frameworks."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.chains import class_names
from patchwork_adapters.exact import user_class
from patchwork_adapters.leaves.huggingface_fields import Encoding, Unmapped
from patchwork_adapters.leaves.spec import Facts, LeafSpec, register, registered

_TEXTS_PER_CALL = 64  # others' calls get in between when somebody embeds thousands
_PROMPTS_AT_ONCE = 32

Methods = Mapping[str, Callable[..., Any]]


def register_like(
    base: str,
    cls: str,
    describe: Callable[[Any], Facts],
    engine: str,
    methods: Callable[[type], Methods],
    *,
    runs_users: bool = False,
) -> None:
    """``cls`` is a case of the framework's ``base``, with an engine that can stand in for it.

    ``runs_users``: the methods run those of the user's class; otherwise a subclass that has its own version of one runs as it is.
    """
    spec: LeafSpec = registered(base)

    def facts(leaf: Any) -> Facts:
        found = _described(describe, leaf)
        if found.why_own is not None or runs_users:
            return found
        changed = _changed(user_class(type(leaf)), cls, methods)
        return replace(found, why_own=f"its class has its own {', '.join(changed)}") if changed else found

    register(replace(spec, cls=cls, facade=True, inner=frozenset(), facts=facts, engine=engine, engine_methods=methods))


def _described(describe: Callable[[Any], Facts], leaf: Any) -> Facts:
    """Facts whose mapping may be refused: then the leaf runs the own way, and says why."""
    try:
        return describe(leaf)
    except Unmapped as error:
        model = next((getattr(leaf, n) for n in ("model_name", "model_id", "model") if hasattr(leaf, n)), None)
        return Facts(model=model, why_own=str(error))


def _changed(user: type, cls: str, methods: Callable[[type], Methods]) -> list[str]:
    """Which of the engine's methods a class derived from ``cls`` defines itself: its version would be lost."""
    below = itertools.takewhile(lambda pair: pair[1] != cls, zip(user.__mro__, class_names(user), strict=True))
    own = {name for base, _ in below for name in vars(base)}
    return sorted(own & set(methods(user))) if own else []


def _embed_call(texts: Sequence[str], how: Encoding) -> dict[str, Any]:
    return {"texts": [how.prefix + text for text in texts], "normalize": how.normalize}


def embed(leaf: Bound, texts: Sequence[str], how: Encoding) -> list[list[float]]:
    found: list[list[float]] = []
    for part in _parts(texts):
        found += leaf.ask("embed", _embed_call(part, how), size=len(part)).tolist()
    return found


async def aembed(leaf: Bound, texts: Sequence[str], how: Encoding) -> list[list[float]]:
    parts = _parts(texts)
    arrays = await asyncio.gather(*(leaf.aask("embed", _embed_call(part, how), size=len(part)) for part in parts))
    return [vector for array in arrays for vector in array.tolist()]


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[i : i + _TEXTS_PER_CALL] for i in range(0, len(texts), _TEXTS_PER_CALL)]


def ask_all(leaf: Bound, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """All at once, so that the engine can batch them; in turn where this thread is an event loop's, which must not wait for others."""
    if len(calls) == 1 or _on_a_loop():
        return [leaf.ask("complete", call) for call in calls]
    with ThreadPoolExecutor(min(len(calls), _PROMPTS_AT_ONCE)) as pool:
        waiting = [pool.submit(contextvars.copy_context().run, leaf.ask, "complete", call) for call in calls]
        return [future.result() for future in waiting]


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def text_of(reply: Mapping[str, Any]) -> str:
    """Of an OpenAI completion or one of its chunks."""
    return "".join(choice.get("text") or "" for choice in reply["choices"])


class RemoteCrossEncoder:
    """Has the one method of sentence_transformers.CrossEncoder that the framework classes call."""

    def __init__(self, leaf: Bound) -> None:
        self._leaf = leaf

    def predict(self, pairs: Sequence[tuple[str, str]]) -> Any:
        if not pairs:
            raise ValueError("no pairs to score")
        return self._leaf.ask("score", {"pairs": [tuple(pair) for pair in pairs]}, size=len(pairs))
