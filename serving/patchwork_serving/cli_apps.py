"""Finding the applications of this machine, and asking one what it knows of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import httpx

from patchwork_serving.config import Paths
from patchwork_serving.errors import UnknownApp, UsageError
from patchwork_serving.state import AppState, StateStore
from patchwork_serving.urls import checked, is_loopback, is_url

API_KEY_VARIABLE = "PATCHWORK_API_KEY"
INFO_TIMEOUT_S = 3.0


def store() -> StateStore:
    """The state of this machine."""
    return StateStore(Paths.from_env().state)


def url_of(name: str) -> str:
    """The URL of an application by name; a URL is taken as it is. Raises UnknownApp, and UsageError for what is no URL."""
    if is_url(name):
        return checked(name).rstrip("/")
    app = store().load(name)
    if app.is_for_programs():
        raise UnknownApp(
            f"{name} serves the programs that started it, and no HTTP; `patchwork deploy` serves a chain over HTTP"
        )
    return app.url.rstrip("/")


def auth_headers_for(name: str) -> dict[str, str]:
    """:func:`auth_headers` for ``url_of(name)``; none for a URL elsewhere, which the key was not made for."""
    return {} if is_url(name) and not is_loopback(name) else auth_headers()


def auth_headers() -> dict[str, str]:
    """The API key of the environment, for applications of this machine that ask for one."""
    key = os.environ.get(API_KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


def parsed_headers(given: Sequence[str]) -> dict[str, str]:
    """Of ``--header``. Raises UsageError; the value, which may be a secret, is not told."""
    found = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise UsageError("--header: write NAME: VALUE")
        found[name.strip().lower()] = value.strip()
    return found


def ask_info(url: str, timeout_s: float = INFO_TIMEOUT_S) -> dict[str, Any] | None:
    """``GET /info`` of an application; None when it does not answer."""
    try:
        answer = httpx.get(f"{url}/info", timeout=timeout_s, headers=auth_headers())
        document = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def app_status(app: AppState) -> dict[str, Any]:
    """One item of ``apps`` in ``status --json``; ``state`` is ``lost`` when its processes are gone, ``unreachable`` when silent."""
    info = ask_info(app.url.rstrip("/")) if app.url and not app.is_stale() else None
    told = {**(info or {}), **_mapping((info or {}).get("status"))}
    silent = "unreachable" if app.is_alive() else "lost"
    if app.is_for_programs() and app.is_alive():
        silent = "in use" if app.living_clients() else "lost"
    state = silent if info is None else "ready" if info.get("ready", True) else "starting"
    return {
        "name": app.name,
        "url": app.url,
        "state": state,
        "slo": app.slo_s,
        "emulated": _mapping(told.get("release")).get("emulated") or [],
        "replicas": told.get("replicas") or [],
        "window": told.get("window") or {},
        "decisions": told.get("decisions") or [],
        "scheduler": told.get("scheduler") or {},
        "target": app.target,
        "created_at": app.created_at,
        "clients": [client.pid for client in app.living_clients()],
        "orphaned": app.is_orphaned(),
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
