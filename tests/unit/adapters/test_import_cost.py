"""Importing the package imports no framework and nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import patchwork_adapters

HEAVY = [
    "ray",
    "psycopg",
    "torch",
    "vllm",
    "langchain_core",
    "llama_index",
    "langgraph",
    "openai",
    "numpy",
    "httpx",
    "pydantic",
]
#: May use a framework, but not the cluster, the database or a model engine.
FREE = ["swap", "walk", "target", "record", "bridge", "codec", "openai_cut", "recorder", "placement", "topology", "own"]


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_the_package_itself_is_light() -> None:
    assert imported_by("import patchwork_adapters") & set(HEAVY) == set()


def test_no_module_needs_the_cluster_or_a_framework_to_be_imported() -> None:
    loaded = imported_by("; ".join(f"import patchwork_adapters.{name}" for name in FREE))
    assert loaded & {"ray", "psycopg", "torch", "vllm", "langchain_core", "llama_index", "openai"} == set()


def test_public_names_are_those_of_the_contract() -> None:
    names = ["PatchworkQueryEngine", "PatchworkRunnable", "RemoteRunnable", "inspect_chain"]
    assert patchwork_adapters.__all__ == names
    for name in names:
        assert getattr(patchwork_adapters, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such"):
        patchwork_adapters.no_such  # noqa: B018
