"""Several replicas of the gateway answer as one."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from kit.gateway import LcelRunner, client, failing_chain, rag_chain
from patchwork_serving.gateway import Account, GatewaySettings, build_gateway
from patchwork_serving.gateway.account import together


def two_replicas() -> tuple[FastAPI, FastAPI]:
    """Each asks the other; what one tells has been through pickle, as between processes."""
    apps: dict[str, FastAPI] = {}

    def siblings_of(name: str) -> Callable[[], object]:
        async def ask() -> list[Account]:
            return [pickle.loads(pickle.dumps(app.state.gateway.account())) for app in apps.values()]

        return ask

    class Told(LcelRunner):
        async def status(self) -> dict[str, object]:
            return {"replicas": [{"component": "llm", "target": 2, "ready": 2, "queued": 3, "running": 4}]}

    for name in ("ingress#a", "ingress#b"):
        chain = rag_chain() if name.endswith("a") else failing_chain(KeyError("x"))
        apps[name] = build_gateway(
            Told(chain), GatewaySettings("rag"), ask_siblings=siblings_of(name), replica=name  # type: ignore[arg-type]
        )  # fmt: skip
    return apps["ingress#a"], apps["ingress#b"]


async def ask(app: FastAPI, times: int) -> None:
    async with client(app) as http:
        for _ in range(times):
            await http.post("/invoke", json={"input": "question"})


def values(exposed: httpx.Response, name: str) -> dict[str, float]:
    """Sample values by the replica that counted them."""
    families = text_string_to_metric_families(exposed.text)
    return {
        f"{s.labels.get('ingress')}:{s.labels.get('outcome', '')}": s.value
        for family in families
        for s in family.samples
        if s.name == name
    }


async def test_each_replica_tells_of_all_of_them_with_a_label_for_each() -> None:
    first, second = two_replicas()
    await ask(first, 3)
    await ask(second, 2)
    for app in (first, second):
        async with client(app) as http:
            exposed = await http.get("/metrics")
        assert values(exposed, "patchwork_requests_total") == {"ingress#a:attained": 3.0, "ingress#b:failed": 2.0}
        names = [line.split()[2] for line in exposed.text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))  # one family each, as the format wants


async def test_the_window_counts_all_requests_and_takes_percentiles_of_all() -> None:
    first, second = two_replicas()
    await ask(first, 3)
    await ask(second, 2)
    documents = []
    for app in (first, second):
        async with client(app) as http:
            documents.append((await http.get("/info")).json())
    for document in documents:
        window = document["window"]
        assert (window["requests"], window["attained"], window["failed"]) == (5, 3, 2)
        assert window["p50_s"] > 0
        assert document["in_flight"] == 0
        assert sorted(one["replica"] for one in document["ingress"]) == ["ingress#a", "ingress#b"]
    assert documents[0]["window"] == documents[1]["window"]


def told(judged: int, predicted: float, actual: float, site: str = "answer") -> dict[str, object]:
    """What one door knows of a state."""
    ratio = predicted / actual if judged else None
    error = abs(predicted - actual) if judged else None
    expected = {"work_s": actual, "work_p98_s": 2 * actual, "time_s": predicted}
    mean = {"predicted_s": predicted if judged else None, "actual_s": actual if judged else None, "mean_error_s": error}
    return {"site": site, "loop": 0, **expected, "judged": judged, **mean, "predicted_over_actual": ratio}


def account(*predictions: dict[str, object]) -> Account:
    return Account("ingress", (), (), 0, {"predictions": predictions})


def test_predictions_of_one_state_are_judged_together() -> None:
    accounts = [account(told(30, 2.0, 1.0)), account(told(10, 1.0, 2.0), told(0, 3.0, 3.0, "web"))]
    answer, web = together(accounts)["scheduler"]["predictions"]
    assert (answer["site"], answer["judged"]) == ("answer", 40)
    assert (answer["predicted_s"], answer["actual_s"]) == (1.75, 1.25)
    assert (answer["predicted_over_actual"], answer["mean_error_s"]) == (1.4, 1.0)
    assert (answer["work_s"], answer["time_s"]) == (1.25, 1.75)
    assert web == told(0, 3.0, 3.0, "web")


def test_one_that_has_judged_nothing_changes_nothing() -> None:
    [answer] = together([account(told(4, 2.0, 1.0)), account(told(0, 9.0, 9.0))])["scheduler"]["predictions"]
    assert answer == told(4, 2.0, 1.0)


def test_what_replicas_had_seen_of_prompts_is_weighted_by_calls() -> None:
    def knows(**prefixes: dict[str, float]) -> Account:
        return Account("ingress", (), (), 0, {"prefixes": prefixes})

    first = {"calls": 30, "seen_share": 0.8, "saved_share": 0.6}
    second = {"calls": 10, "seen_share": 0.4, "saved_share": 0.0}
    accounts = [knows(llm=first), knows(llm=second, grader=second), knows()]
    found = together(accounts)["scheduler"]["prefixes"]
    assert found["llm"] == pytest.approx({"calls": 40, "seen_share": 0.7, "saved_share": 0.45})
    assert found["grader"] == second


async def test_the_components_queues_are_gauges() -> None:
    first, _ = two_replicas()
    async with client(first) as http:
        text = (await http.get("/metrics")).text
    for name, value in (("queued", 3.0), ("running", 4.0), ("replicas", 2.0)):
        assert f'patchwork_component_{name}{{app="rag",component="llm"}} {value}' in text


async def test_a_gateway_that_is_alone_needs_no_label() -> None:
    app = build_gateway(LcelRunner(rag_chain()), GatewaySettings("rag"))
    await ask(app, 1)
    async with client(app) as http:
        exposed = await http.get("/metrics")
    assert values(exposed, "patchwork_requests_total") == {"None:attained": 1.0}
