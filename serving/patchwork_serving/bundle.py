"""What a deployed process is given at its start, and how it becomes the process that the user's module expects."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchwork_serving.config import Config
from patchwork_serving.release import ComponentSpec, Release

#: Set to something when the user has no key, because the clients of local models refuse to be built without one.
PLACEHOLDER_KEY = "patchwork-local"

#: Belong to a machine or a session, not to the user's program.
_NOT_CARRIED = (
    "RAY_", "PYTHON", "VIRTUAL_ENV", "LD_", "XDG_", "SSH_", "DBUS_", "LC_", "CONDA_", "UV_", "PIP_", "PATH", "HOME", "USER", "LOGNAME",
    "SHELL", "PWD", "OLDPWD", "TERM", "TMPDIR", "HOSTNAME", "SHLVL", "LANG", "DISPLAY", "MAIL", "_", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bundle:
    """Travels between our own processes only: it holds secrets, and is never written to disk or logged."""

    release: Release
    record: bytes = b""  #: the import record (design D4b)
    env: Mapping[str, str] = field(default_factory=dict)  #: the user's environment variables
    dsn: str | None = None
    postgres_home: str | None = (
        None  #: of the embedded Postgres that ``dsn`` names, when replicas can start it again; else None
    )
    api_key: str | None = None
    config: Config = field(default_factory=Config)

    def __repr__(self) -> str:
        return f"Bundle({self.release.name!r})"


def captured_environment(env: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The variables that the user's module may read, with those of ``patchwork.yaml`` over them."""
    kept = {name: value for name, value in env.items() if not _stays(name)}
    return {**kept, **extra}


def apply_environment(values: Mapping[str, str], env: MutableMapping[str, str] = os.environ) -> None:
    """Set the captured variables, and placeholders for what clients of local models insist on."""
    env.update(values)
    env.setdefault("OPENAI_API_KEY", PLACEHOLDER_KEY)
    # the hubs are asked at deploy time only; a replica that waits for a hub at its start is a replica that is down
    env.setdefault("TOKENIZERS_PARALLELISM", "false")


def enter_module_dir(folder: str) -> None:
    """Make the user's own imports and relative file names work as they do when the module is run from its folder."""
    if folder and Path(folder).is_dir() and folder not in sys.path:
        sys.path.insert(0, folder)


def version_of(spec: ComponentSpec, bundle: Bundle, *parts: object) -> str:
    """A digest that changes exactly when replicas of the component must be replaced: its count is not part of it."""
    code = bundle.release.settings.get("code", "")
    facts: dict[str, Any] = {
        "spec": [spec.id, spec.kind, spec.way, spec.engine, spec.model, dict(spec.engine_args), spec.emulate],
        "queue": [spec.max_batch, spec.max_wait_s, spec.slots, spec.policy, spec.cost],
        "collections": [c.name for c in bundle.release.collections] if spec.engine == "pgvector" else [],
        "dsn": hashlib.sha256((bundle.dsn or "").encode()).hexdigest() if spec.engine in ("pgvector", "own") else "",
        "code": code if spec.engine == "own" else "",
        "parts": parts,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _stays(name: str) -> bool:
    if name.startswith("PYTHON"):
        return True
    return any(
        name == prefix or (len(prefix) > 1 and prefix.endswith("_") and name.startswith(prefix))
        for prefix in _NOT_CARRIED
    )
