"""What the comparison of applications makes of its measurements: rates, windows, and a machine whose speed changes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench_applications
from baselines import measuring
from baselines.applications import APPLICATIONS, PART
from baselines.systems import Engines

from patchwork_serving.bench import LoadOptions
from patchwork_serving.bench.run import NotAnswered

REAL = Engines(emulated=False)


def asked(**given: Any) -> argparse.Namespace:
    options = {
        "rates": None, "loads": "0.5,1,2", "window": [25.0], "warmup": [5.0], "learn": 50, "stream": 10.0, "arrivals": "poisson",
    }  # fmt: skip
    return argparse.Namespace(**{**options, **given})


def point(offered_per_s: float, attained_share: float, **given: Any) -> dict[str, Any]:
    return {
        "offered_per_s": offered_per_s, "attained_share": attained_share, "goodput_per_s": offered_per_s * attained_share, "missed": 0,
        "offered": 100, **given,
    }  # fmt: skip


def loads(**given: Any) -> measuring.Loads:
    return bench_applications._loads(APPLICATIONS["vanilla"], REAL, asked(**given), 0.5)


def test_real_engines_are_loaded_in_multiples_of_one_request_after_another() -> None:
    assert loads().rates == [1.0, 2.0, 4.0]
    assert loads(loads=None, rates="3,7").rates == [3.0, 7.0]


def test_windows_and_warm_ups_are_one_for_all_or_one_for_each() -> None:
    found = loads(window=[10.0, 20.0, 30.0])
    assert (found.windows_s, found.warmups_s) == ([10.0, 20.0, 30.0], [5.0] * 3)
    with pytest.raises(SystemExit, match="2 windows or warm-ups for 3 loads"):
        loads(warmup=[1.0, 2.0])


def test_on_a_slower_machine_the_same_arrivals_come_further_apart() -> None:
    first, later = (
        bench_applications._loads(APPLICATIONS["vanilla"], REAL, asked(), mean_s, slower)
        for mean_s, slower in ((0.5, 1.0), (0.6, 1.2))
    )
    for one, other in ((first.windows_s, later.windows_s), (first.warmups_s, later.warmups_s)):
        expected = [rate * seconds for rate, seconds in zip(first.rates, one, strict=True)]
        assert [rate * seconds for rate, seconds in zip(later.rates, other, strict=True)] == pytest.approx(expected)


def test_what_was_measured_on_a_slower_machine_is_brought_to_the_speed_of_the_first() -> None:
    run = {"points": (points := [point(1.0, 1.0), point(2.0, 0.5)]), **measuring.summary(points), "streams": None}
    systems = {"whole": {"2 processes": run}, "ours": {"1 ingress": {**run, "slower": 1.5}}}
    ratios = measuring.compared(systems, medium=1)["ratios"]["ours/whole"]
    assert ratios["peak_goodput_per_s"] == pytest.approx(1.5)
    assert ratios["goodput_at_medium"] == pytest.approx(1.5)
    assert ratios["fewer_not_in_time"] == pytest.approx(0.0)  # a share of requests has no speed


def test_the_sustainable_rate_lies_between_two_of_the_grid() -> None:
    assert measuring.sustainable([point(1.0, 1.0), point(2.0, 0.8), point(3.0, 0.0)]) == pytest.approx(1.5)
    assert measuring.sustainable([point(1.0, 0.95), point(2.0, 0.9)]) == 2.0


def test_streams_that_nobody_answers_lose_no_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> Any:
        raise NotAnswered("POST /stream: 504")

    monkeypatch.setattr(measuring, "run_load", nobody)
    streams = measuring._first_chunks("http://127.0.0.1:1", APPLICATIONS["vanilla"], "poisson", LoadOptions(slo_s=1.0))
    assert streams == {"not_answered": "POST /stream: 504"}
    points = [point(1.0, 1.0), point(2.0, 0.0)]
    run = {**measuring.summary(points), "points": points, "streams": streams}
    best = measuring.compared({"whole": {"2 processes": run}}, medium=1)["best"]["whole"]
    assert (best["first_chunk_p50_s"], best["peak_goodput_per_s"]) == (None, 1.0)


def test_no_question_is_asked_twice_in_a_run() -> None:
    app = APPLICATIONS["vanilla"]
    parts = [0, 1, 2, 3, 4, measuring.STREAMED, measuring.UNLOADED]
    asked = [question for part in parts for question in app.values(part)[:PART]]
    assert len(set(asked)) == len(asked) == len(parts) * PART
