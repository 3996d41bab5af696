"""What the benchmarks write: JSON with few digits, results of earlier parts kept, where and when it was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """The machine and the day."""
    return {
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def continued(output: Path, conditions: Mapping[str, Any], empty: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the file already, or a new document: the conditions, the environment and ``empty``.

    SystemExit when the file was measured under other conditions: its results cannot stand beside new ones.
    """
    if not output.is_file():
        return {**conditions, "environment": environment(), **empty}
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if any(found.get(key) != value for key, value in conditions.items()):
        were = {key: found.get(key) for key in conditions}
        raise SystemExit(f"{output} was measured otherwise ({were}); give another file")
    return found


def write(output: Path, document: Mapping[str, Any], digits: int = 4) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rounded(document, digits), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any, digits: int = 4) -> Any:
    """With so many significant digits."""
    match value:
        case float():
            return float(f"{value:.{digits}g}")
        case Mapping():
            return {key: rounded(item, digits) for key, item in value.items()}
        case list() | tuple():
            return [rounded(item, digits) for item in value]
        case _:
            return value
