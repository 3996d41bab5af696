"""``inspect_chain``: the static component graph of a chain that a program already holds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from patchwork_adapters.chains import framework_of
from patchwork_adapters.errors import NoChainFound
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.placement import ByProtocol, Resolver, place
from patchwork_adapters.recorder import graph_of
from patchwork_adapters.walk import find_leaves


def inspect_chain(
    chain: Any,
    module: ModuleType | None = None,
    *,
    target: str = "",
    root: str = "chain",
    resolver: Resolver | None = None,
) -> ComponentGraph:
    """Look at a chain without running it. ``module``: its globals give leaves shorter names. Raises NoChainFound for another object."""
    framework = framework_of(chain, alone=True)
    if framework is None:
        raise NoChainFound(f"a {type(chain).__name__} is not a chain of LangChain, LangGraph or LlamaIndex")
    walk = find_leaves(chain, module, root)
    placed = place(walk.leaves, resolver or ByProtocol())
    return graph_of(target or root, framework, chain, walk, placed.components, placed.opaque)
