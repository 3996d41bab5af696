"""Where a load was measured, and what the other side says of itself."""

from __future__ import annotations

import ipaddress
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit


def environment(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of this machine, and of the application's ``/info`` where it has one; ``emulated`` is None where nobody says."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version(),
        "machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count(), "patchwork": version("patchwork-rag"),
        "emulated": is_emulated(info) if info is not None else None,
    }  # fmt: skip
    if info is not None:
        found["application"] = {key: info.get(key) for key in ("name", "framework", "slo")}
    return found


def is_emulated(info: Mapping[str, Any]) -> bool:
    """Whether the application says that an engine of it only takes as long as a real one would."""
    if "emulated" in info:
        return bool(info["emulated"])
    release = info.get("release")
    components = release.get("components") if isinstance(release, dict) else None
    if not isinstance(components, list):
        return False
    return any(isinstance(one, dict) and (one.get("emulated") or one.get("engine") == "emulated") for one in components)


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
