"""Inputs of a check: one JSON value a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchwork_adapters.errors import AdapterError

_ENVELOPE = frozenset({"input", "config", "resume"})


class BadInputs(AdapterError):
    """The file of inputs cannot be used; the message names the line."""

    status = 422
    title = "the inputs cannot be used"


@dataclass(frozen=True, slots=True)
class Case:
    input: Any
    config: Mapping[str, Any] = field(default_factory=dict)  #: RunnableConfig
    resume: tuple[Any, ...] = ()  #: answers to a graph's interrupts, in turn


def read_cases(path: Path) -> list[Case]:
    """Each line is an input, or ``{"input": ..., "config": ..., "resume": [...]}`` with one of the last two. Raises BadInputs."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputs(
            f"{path} cannot be read ({type(error).__name__}); give a file with one JSON value a line"
        ) from error
    return parse_cases(text, str(path))


def parse_cases(text: str, where: str) -> list[Case]:
    """As :func:`read_cases`, of a file's content; ``where`` names it in errors."""
    cases = [_case(line, f"{where}, line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not cases:
        raise BadInputs(f"{where} holds no inputs; write one JSON value a line")
    return cases


def case_of(value: Any, where: str = "an input") -> Case:
    """As :func:`read_cases` understands a value."""
    if not isinstance(value, dict) or "input" not in value or not value.keys() <= _ENVELOPE or len(value) == 1:
        return Case(value)
    config, resume = value.get("config", {}), value.get("resume", [])
    if not isinstance(config, dict) or not isinstance(resume, list):
        raise BadInputs(f"{where}: config must be an object and resume a list of answers to interrupts")
    return Case(value["input"], config, tuple(resume))


def _case(line: str, where: str) -> Case:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInputs(
            f"{where}: not JSON ({error.msg} at column {error.colno}); write one JSON value a line"
        ) from error
    return case_of(value, where)
