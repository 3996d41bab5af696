"""A chain that stays in its own program names its call-sites as a deployed one does, for as long as it is connected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda, RunnableParallel

from patchwork_adapters import PatchworkRunnable, sites
from patchwork_adapters.connection import Unconnected
from patchwork_adapters.sites import site_of
from patchwork_serving import connect as connecting


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def where(question: str) -> str:
    return site_of("leaf")


def place(chain: Any, question: str = "x") -> str:
    found: str = chain.invoke(question)["b"]
    return found


LINE = where.__code__.co_firstlineno + 1


def test_call_sites_are_told_while_a_wrapper_is_connected_and_not_before_or_after() -> None:
    chain = RunnableLambda(str) | RunnableParallel(b=RunnableLambda(where))
    assert place(chain) == "leaf"
    with PatchworkRunnable(chain) as wrapped:
        assert place(wrapped) == f"leaf@2/{{b}}/where:{LINE}"
    assert place(chain) == "leaf"
    wrapped.close()
    with PatchworkRunnable(chain) as again:
        assert place(again) == f"leaf@2/{{b}}/where:{LINE}"
    assert place(chain) == "leaf"


async def test_a_wrapped_chain_inside_another_one_has_the_sites_that_it_has_alone() -> None:
    chain = RunnableLambda(str) | RunnableParallel(b=RunnableLambda(where))
    with PatchworkRunnable(chain) as wrapped:
        outer = RunnableLambda(str) | RunnableLambda(str) | wrapped
        assert place(outer) == f"leaf@2/{{b}}/where:{LINE}"
        assert (await outer.ainvoke("x"))["b"] == f"leaf@2/{{b}}/where:{LINE}"


def test_two_connections_end_in_any_order() -> None:
    chain = RunnableLambda(str) | RunnableParallel(b=RunnableLambda(where))
    first = connecting.connect(chain, name=None, slo_s=None)
    second = connecting.connect(chain, name=None, slo_s=None)
    first.close()
    first.close()
    assert place(chain) == f"leaf@2/{{b}}/where:{LINE}"
    second.close()
    assert place(chain) == "leaf"
    assert not isinstance(second, Unconnected)


def test_a_failed_connection_leaves_no_call_sites_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(connecting, "swap", fails)
    chain = RunnableLambda(str) | RunnableParallel(b=RunnableLambda(where))
    with pytest.raises(RuntimeError):
        connecting.connect(chain, name=None, slo_s=None)
    assert sites.site_of("leaf") == "leaf"
