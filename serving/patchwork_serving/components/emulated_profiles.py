"""Measured service times that emulated engines follow: bundled ones by name, others from a JSON file, both as rows.

A row is ``{"batch", "seconds"}``, with ``n_in`` where it depends on the tokens of a text, and with ``n_in`` and ``n_out`` for an LLM:
``batch`` requests of ``n_in`` tokens, submitted at once, all done with ``n_out`` tokens each after ``seconds``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from patchwork_serving.errors import ConfigError

Row = Mapping[str, float]
EmulatedKind = Literal["llm", "embedder", "reranker", "retriever", "tool", "function"]

_KINDS = ("llm", "embedder", "reranker", "retriever", "tool", "function")
_NUMBERS = ("batch", "seconds", "n_in", "n_out")


@dataclass(frozen=True, slots=True)
class EmulatedProfile:
    name: str
    kind: EmulatedKind
    rows: tuple[Row, ...]
    device: str = ""
    dim: int | None = None  #: of an embedder's vectors


def bundled_names() -> list[str]:
    """Profiles that this package carries."""
    folder = files("patchwork_serving.components") / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_profile(name: str, folder: Path, where: str) -> EmulatedProfile:
    """A bundled profile, or a JSON file (relative to ``folder``). ConfigError begins with ``where`` and says what exists."""
    if name in bundled_names():
        text = (files("patchwork_serving.components") / "profiles" / f"{name}.json").read_text(encoding="utf-8")
    else:
        text = _file(name, folder, where)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: {name} must be a JSON object with kind and rows")
    kind = document.get("kind", "llm" if "load_s" in document else None)
    if kind not in _KINDS:
        raise ConfigError(f"{where}: {name}: kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    dim = document.get("dim")
    if dim is not None and (type(dim) is not int or dim < 1):
        raise ConfigError(f"{where}: {name}: dim must be a positive integer")
    rows = checked_rows(document.get("rows"), f"{where}: {name}: rows")
    return EmulatedProfile(str(document.get("name") or name), kind, rows, str(document.get("device", "")), dim)


def checked_rows(rows: object, where: str) -> tuple[Row, ...]:
    """Rows with nothing but finite numbers in them; ConfigError begins with ``where``."""
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ConfigError(f'{where}: must be a list of rows such as {{"batch": 1, "seconds": 0.02}}')
    return tuple(_row(row, f"{where}[{index}]") for index, row in enumerate(rows))


def _row(row: object, where: str) -> Row:
    if not isinstance(row, Mapping) or "batch" not in row or "seconds" not in row:
        raise ConfigError(f"{where}: needs batch and seconds")
    kept = {name: row[name] for name in _NUMBERS if row.get(name) is not None}
    for name, value in kept.items():
        least = 0 if name in ("seconds", "n_in") else 1
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:
            raise ConfigError(f"{where}.{name}: must be a number of at least {least}, not {value!r}")
    return kept


def _file(name: str, folder: Path, where: str) -> str:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if "/" not in name and not path.suffix:
        raise ConfigError(
            f"{where}: there is no profile {name!r}; bundled are {', '.join(bundled_names())}, or give a file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: cannot read {path} ({type(error).__name__}); give a file, or {', '.join(bundled_names())}"
        ) from error


def emulation(entry: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The arguments of an emulated engine with its profile's rows in them, so that no replica needs the file.

    ``entry`` has ``profile`` or ``rows``; ``kind`` and ``dim`` are filled in from the profile where the entry does not say.
    """
    answers = entry.get("answers")
    if isinstance(answers, Mapping) and (wrong := [text for text in answers if not isinstance(text, str)]):
        # YAML reads a bare yes or no as a truth value
        raise ConfigError(f'{where}.answers: {wrong[0]!r} must be a text; write it in quotes, such as "yes": 0.7')
    if isinstance(entry.get("rows"), Sequence) and not isinstance(entry.get("rows"), str):
        return {**entry, "rows": [dict(row) for row in checked_rows(entry["rows"], f"{where}.rows")]}
    name = entry.get("profile")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.profile: name a profile ({', '.join(bundled_names())}) or a file, or give rows")
    found = load_profile(name, folder, f"{where}.profile")
    filled: dict[str, Any] = {
        "kind": found.kind,
        **entry,
        "profile": found.name,
        "rows": [dict(row) for row in found.rows],
    }
    if found.dim is not None:
        filled.setdefault("dim", found.dim)
    return filled
