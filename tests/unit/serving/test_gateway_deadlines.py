"""Deadlines at the door: plain numbers, no clock."""

from __future__ import annotations

from typing import Any

import pytest

from patchwork_scheduler.model import SloClass
from patchwork_serving.gateway.deadlines import budget
from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.settings import GatewaySettings

SETTINGS = GatewaySettings(
    "rag",
    request_timeout_s=60.0,
    default_slo_s=5.0,
    slo_classes={"interactive": SloClass("interactive", 2.0, first_token_s=0.5)},
)


def test_without_headers_the_promise_is_the_default_and_the_work_may_last_until_the_timeout() -> None:
    found = budget({}, {}, SETTINGS, now=100.0)
    assert (found.deadline, found.slo_deadline, found.slo, found.first_token_deadline) == (
        160.0,
        105.0,
        "default",
        None,
    )


def test_a_timeout_header_is_enforced_and_cuts_the_promise() -> None:
    found = budget({"x-request-timeout-seconds": "1.5"}, {}, SETTINGS, now=100.0)
    assert (found.deadline, found.slo_deadline) == (101.5, 101.5)


def test_deadline_milliseconds_count_from_now() -> None:
    assert budget({"x-patchwork-deadline-ms": "250"}, {}, SETTINGS, now=100.0).deadline == 100.25


def test_of_several_deadlines_the_nearest_holds() -> None:
    headers = {"x-request-timeout-seconds": "3", "x-patchwork-deadline-ms": "9000"}
    assert budget(headers, {"patchwork_deadline_ms": 2000}, SETTINGS, now=100.0).deadline == 102.0


def test_an_slo_class_promises_and_does_not_enforce() -> None:
    found = budget({"x-patchwork-slo": "interactive"}, {}, SETTINGS, now=100.0)
    assert (found.deadline, found.slo_deadline, found.first_token_deadline) == (160.0, 102.0, 100.5)


def test_the_class_may_come_in_the_config() -> None:
    assert budget({}, {"patchwork_slo": "interactive"}, SETTINGS, now=0.0).slo == "interactive"


@pytest.mark.parametrize(
    "value",
    [
        "0",  # no time at all
        "-1",  # in the past
        "nan",  # compares with nothing
        "inf",  # never
        "1e999",  # overflows to infinity
        "soon",  # no number
        "",  # a header without a value
        "61",  # beyond the limit
    ],
)
def test_a_bad_timeout_is_the_clients_fault(value: str) -> None:
    with pytest.raises(InvalidRequest, match="x-request-timeout-seconds must be"):
        budget({"x-request-timeout-seconds": value}, {}, SETTINGS, now=0.0)


@pytest.mark.parametrize("value", [True, [], {}, 10**400, "x"])
def test_a_bad_deadline_in_the_config_is_the_clients_fault(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="patchwork_deadline_ms"):
        budget({}, {"patchwork_deadline_ms": value}, SETTINGS, now=0.0)


@pytest.mark.parametrize(("headers", "metadata"), [({"x-patchwork-slo": "gold"}, {}), ({}, {"patchwork_slo": 3})])
def test_an_unknown_class_is_refused_with_those_that_exist(headers: dict[str, str], metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="default, interactive"):
        budget(headers, metadata, SETTINGS, now=0.0)
