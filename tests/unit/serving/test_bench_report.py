"""Counts, percentiles, outcomes and the shape of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_serving import cli_bench
from patchwork_serving.bench.observe import OUTCOMES, Answer, Observation, outcome_of
from patchwork_serving.bench.page import page, seconds
from patchwork_serving.bench.report import LoadReport, percentiles, summarise
from patchwork_serving.bench.sustain import sustainable_rate

OK = Answer(200)
#: what programs rely on (design.md)
CONTRACT = {
    "type": "object",
    "required": [
        "offered_per_s", "completed_per_s", "goodput_per_s", "slo_s", "attained", "missed", "refused", "failed", "latency_s", "ttft_s",
        "overhead_s", "environment",
    ],
    "properties": {
        **{name: {"type": "number"} for name in ("offered_per_s", "completed_per_s", "goodput_per_s", "slo_s")},
        **{name: {"type": "integer", "minimum": 0} for name in OUTCOMES},
        **{name: {"$ref": "#/$defs/percentiles"} for name in ("latency_s", "ttft_s", "overhead_s")},
        "environment": {"type": "object"},
    },
    "$defs": {
        "percentiles": {
            "type": "object",
            "required": ["p50", "p95", "p99", "mean"],
            "additionalProperties": {"type": ["number", "null"]},
        }
    },
}  # fmt: skip


def seen(at: float, took: float, answer: Answer | None = OK, late: float = 0.0) -> Observation:
    return Observation(at, at + late, at + took, answer)


def report(
    observations: Sequence[Observation], slo_s: float = 1.0, start: float = 0.0, end: float = 10.0
) -> LoadReport:
    return LoadReport(**summarise(observations, slo_s, start, end))


@pytest.mark.parametrize(
    ("answer", "took", "outcome"),
    [
        (OK, 1.0, "attained"),  # at the deadline is in time
        (OK, 1.01, "missed"),
        (Answer(504, "DeadlinePassed"), 1.0, "missed"),
        (Answer(None, "timeout", gave_up=True), 10.0, "missed"),
        (Answer(429, "RequestRefused"), 0.0, "refused"),
        (Answer(503, "NotReady", retry_after=True), 0.0, "refused"),
        (Answer(503, "HTTP 503"), 0.0, "failed"),  # a proxy without a server
        (Answer(500, "ValueError"), 0.0, "failed"),
        (Answer(422, "InvalidRequest"), 0.0, "failed"),
        (Answer(None, "ConnectError"), 0.0, "failed"),
        (Answer(200, "stream ended early"), 0.5, "failed"),  # a 200 that broke off is no answer
        (None, 0.5, "cancelled"),
    ],
)
def test_what_became_of_a_request(answer: Answer | None, took: float, outcome: str) -> None:
    assert outcome_of(seen(0.0, took, answer), slo_s=1.0) == outcome


def test_a_request_that_left_late_is_timed_from_when_it_should_have_left() -> None:
    assert outcome_of(seen(at=5.0, took=1.2, late=0.9), slo_s=1.0) == "missed"


def test_requests_of_the_warm_up_and_after_the_window_are_not_counted() -> None:
    found = report([seen(0.5, 5.0), seen(2.0, 0.5), seen(3.0, 2.0), seen(12.0, 0.1)], start=1.0, end=11.0)
    assert found.counts == {"attained": 1, "missed": 1, "refused": 0, "failed": 0, "cancelled": 0}
    assert (found.offered_per_s, found.goodput_per_s) == (0.2, 0.1)


def test_throughput_counts_answers_that_came_in_the_window_whenever_they_were_asked_for() -> None:
    found = report([seen(0.0, 2.0), seen(2.0, 1.0), seen(9.0, 5.0)], start=1.0, end=11.0)
    assert found.completed_per_s == 0.2


def test_latencies_are_of_whole_answers_only() -> None:
    found = report([seen(0.0, 0.2), seen(1.0, 9.0, Answer(None, gave_up=True)), seen(2.0, 0.01, Answer(429))])
    assert found.latencies == pytest.approx([0.2])


@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.floats(0, 5), st.sampled_from([OK, Answer(429), Answer(500), Answer(504), None]))
    )
)
def test_every_offered_request_is_counted_once(rows: list[tuple[float, float, Answer | None]]) -> None:
    found = report([seen(at, took, answer) for at, took, answer in rows], start=2.0, end=15.0)
    assert found.offered == sum(2.0 <= at < 15.0 for at, _, _ in rows)


def test_percentiles_are_interpolated() -> None:
    assert percentiles([1.0, 2.0, 3.0, 4.0]) == pytest.approx({"p50": 2.5, "p95": 3.85, "p99": 3.97, "mean": 2.5})
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0, "mean": 7.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None, "mean": None}


def test_overhead_is_what_no_component_took() -> None:
    stages = {"total": 0.5, "queue": 0.1, "llm": 0.3, "store": 0.05}
    found = report([seen(0.0, 0.5, Answer(200, stages=stages)), seen(1.0, 0.5)])
    assert found.overheads == pytest.approx([0.15])  # the queue is part of the components' seconds
    assert found.stages["llm"] == [0.3]


def test_a_generator_that_was_late_says_so() -> None:
    assert not report([seen(at / 10, 0.1, late=0.001) for at in range(50)]).warnings()
    (warning,) = report([seen(at / 10, 0.1, late=0.2) for at in range(50)]).warnings()
    assert warning.startswith("the load generator itself was late: p99 200 ms")


def test_a_queue_that_grows_is_not_steady() -> None:
    growing = report([seen(at / 10, 0.1 + at / 50) for at in range(100)])
    assert not growing.steady
    assert report([seen(at / 10, 0.1) for at in range(100)]).steady


def test_emulated_engines_are_named_in_the_warnings() -> None:
    found = LoadReport(**summarise([seen(0.0, 0.1)], 1.0, 0.0, 1.0), environment={"emulated": ["llm"]})
    assert "emulated" in " ".join(found.warnings())


@pytest.mark.parametrize("observations", [[], [seen(0.0, 0.1)], [seen(0.0, 0.1, None)]])
def test_the_report_has_the_shape_that_programs_rely_on(observations: list[Observation]) -> None:
    document = json.loads(json.dumps(report(observations).to_json(), allow_nan=False))
    assert [error.message for error in jsonschema.Draft202012Validator(CONTRACT).iter_errors(document)] == []


def sweep(*attained: int) -> list[LoadReport]:
    """Ten requests a second more at each rate, and so many of every ten in time."""
    return [
        report([seen(n / rate / 10, 0.5 if n % 10 < good else 1.5) for n in range(100 * rate)])
        for rate, good in enumerate(attained, 1)
    ]


@pytest.mark.parametrize(
    ("attained", "sustained", "best"),
    [
        ((10, 9, 5), 20.0, 1),  # 18 a second in time, then 15
        ((10, 8, 9), 10.0, 2),  # a rate below that failed: what holds above it is luck
        ((8, 5), 0.0, 1),
    ],
)
def test_a_sweep_is_told_by_the_largest_goodput_and_the_last_rate_that_held(
    attained: tuple[int, ...], sustained: float, best: int, tmp_path: Path
) -> None:
    reports = sweep(*attained)
    document = cli_bench.write(tmp_path, "sweep", reports)
    assert document["sustained_per_s"] == sustained
    assert document["goodput_per_s"] == pytest.approx(reports[best].goodput_per_s)
    assert [point["offered_per_s"] for point in document["sweep"]] == [10.0 * n for n in range(1, len(attained) + 1)]


def test_the_page_needs_nothing_beside_it_and_escapes_what_it_shows(tmp_path: Path) -> None:
    plot = tmp_path / "x.png"
    plot.write_bytes(b"\x89PNG")
    text = page("<b>", [report([seen(0.0, 0.1)])], {"Latency": plot})
    assert "&lt;b&gt;" in text
    assert "data:image/png;base64,iVBORw==" in text
    assert "src=http" not in text


def test_a_load_without_a_whole_answer_has_a_page_too() -> None:
    assert "<td>-</td>" in page("none", [report([seen(0.0, 0.1, None)])], {})


def test_seconds_as_people_read_them() -> None:
    assert [seconds(None), seconds(0.0123), seconds(1.5)] == ["-", "12 ms", "1.50 s"]


def served(capacity: float, rate: float) -> LoadReport:
    """A server that answers ``capacity`` requests a second in time, and the rest late."""
    count = round(rate * 100)
    good = min(count, round(capacity * 100))
    return report([seen(100 * n / count, 0.1 if n < good else 5.0) for n in range(count)], end=100.0)


@pytest.mark.parametrize("low", [0.5, 2.0, 8.0, 40.0])
def test_the_sustainable_rate_is_found_from_above_and_from_below(low: float) -> None:
    found = sustainable_rate(lambda rate: served(9.0, rate), low, 100.0, tolerance=0.02)
    assert found.rate == pytest.approx(10.0, rel=0.03)  # 9 of 10 are 90 %
    assert not found.is_bound
    rates = [one.offered_per_s for one in found.reports]
    assert rates == sorted(rates)


def test_a_rate_that_is_sustained_at_the_largest_tried_is_only_a_bound() -> None:
    found = sustainable_rate(lambda rate: served(1000.0, rate), 2.0, 16.0)
    assert (found.rate, found.is_bound, len(found.reports)) == (16.0, True, 4)


def test_nothing_is_sustained_by_a_server_that_is_always_late() -> None:
    found = sustainable_rate(lambda rate: served(0.0, rate), 4.0, 16.0)
    assert (found.rate, len(found.reports)) == (0.0, 4)
