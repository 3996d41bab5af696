"""Tokens of a model call, as the values of LangChain and LlamaIndex tell them; by attribute, so that neither is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PROMPT = ("input_tokens", "prompt_tokens")
_OUTPUT = ("output_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Usage:
    prompt: int | None = None  #: None: not told
    output: int | None = None

    def plus(self, other: Usage, *, is_chunk: bool = False) -> Usage:
        """Chunks tell shares, or a sum at the end that counts the prompt once more."""
        prompt = (
            max((n for n in (self.prompt, other.prompt) if n is not None), default=None) if is_chunk else other.prompt
        )
        told = [n for n in (self.output, other.output) if n is not None]
        return Usage(prompt, (sum(told) if told else None) if is_chunk else other.output)


def usage_of(value: Any) -> Usage:
    """What a result, or a chunk of one, says; of several generations, all together."""
    found = [usage for usage in map(_read, _tables(value)) if usage is not None]
    if not found:
        return Usage()
    return Usage(_sum(u.prompt for u in found), _sum(u.output for u in found))


def _tables(value: Any) -> Iterator[Mapping[str, Any]]:
    """Where the counts stand: a message's usage, the model's report on the whole call, or the raw reply."""
    generations = getattr(value, "generations", None)
    if isinstance(generations, list):
        flat = [g for item in generations for g in (item if isinstance(item, list) else [item])]
        tables = [table for g in flat for table in _of_message(getattr(g, "message", None))]
        report = getattr(value, "llm_output", None)
        yield from tables or _named(report, "token_usage")
        return
    message = getattr(value, "message", None)
    if (tables := list(_of_message(message))) or (tables := list(_of_message(value))):
        yield from tables
        return
    raw = getattr(value, "raw", None) or value
    usage = raw.get("usage") if isinstance(raw, Mapping) else getattr(raw, "usage", None)
    if usage is not None:
        yield (
            usage if isinstance(usage, Mapping) else {name: getattr(usage, name, None) for name in (*_PROMPT, *_OUTPUT)}
        )
    elif isinstance(extra := getattr(value, "additional_kwargs", None), Mapping):
        yield extra


def _of_message(message: Any) -> Iterator[Mapping[str, Any]]:
    usage = getattr(message, "usage_metadata", None)
    if isinstance(usage, Mapping):
        yield usage


def _named(table: Any, name: str) -> Iterator[Mapping[str, Any]]:
    inner = table.get(name) if isinstance(table, Mapping) else None
    if isinstance(inner, Mapping):
        yield inner


def _read(table: Mapping[str, Any]) -> Usage | None:
    prompt = next((n for name in _PROMPT if isinstance(n := table.get(name), int)), None)
    output = next((n for name in _OUTPUT if isinstance(n := table.get(name), int)), None)
    return None if prompt is None and output is None else Usage(prompt, output)


def _sum(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
