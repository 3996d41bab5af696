"""Where a load was measured, and what the other side says of itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any


def environment(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of this machine, and of the application. ``emulated`` names its components that are, and is None where nobody says."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version(),
        "machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count(), "patchwork": version("patchwork-rag"),
        "emulated": emulated_of(info) if info is not None else None,
    }  # fmt: skip
    if info is not None:
        found["application"] = {key: info.get(key) for key in ("name", "framework", "slo")}
    return found


def emulated_of(info: Mapping[str, Any]) -> list[str]:
    """The components of an application that only take as long as real engines would, by what it says of itself."""
    release = info.get("release")
    found = release.get("emulated") if isinstance(release, dict) else None
    return [str(component) for component in found] if isinstance(found, list) else []
