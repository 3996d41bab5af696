"""Taking chains apart: finds the heavy leaves of a LangChain, LangGraph or LlamaIndex chain and swaps them for calls to components."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchwork_adapters.inspection import inspect_chain
    from patchwork_adapters.query_engine import PatchworkQueryEngine
    from patchwork_adapters.remote import RemoteRunnable
    from patchwork_adapters.runnable import PatchworkRunnable

__all__ = ["PatchworkQueryEngine", "PatchworkRunnable", "RemoteRunnable", "inspect_chain"]

#: Loaded when asked for: importing this package must not import a framework.
_HOMES = {
    "PatchworkQueryEngine": "patchwork_adapters.query_engine",
    "PatchworkRunnable": "patchwork_adapters.runnable",
    "RemoteRunnable": "patchwork_adapters.remote",
    "inspect_chain": "patchwork_adapters.inspection",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
