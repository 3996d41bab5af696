from __future__ import annotations

from patchwork_serving.gateway.window import Window, percentile


def test_a_window_counts_what_finished_within_it() -> None:
    window = Window(60.0)
    window.add("attained", 1.0, now=0.0)
    window.add("missed", 3.0, now=30.0, slo="batch")
    window.add("refused", 0.0, now=40.0)
    summary = window.summary(now=59.0)
    classes = summary.pop("classes")
    assert summary == {
        "requests": 3, "attained": 1, "missed": 1, "refused": 1, "failed": 0, "cancelled": 0, "attained_share": 0.5,
        "p50_s": 1.0, "p95_s": 3.0, "p99_s": 3.0,
    }  # fmt: skip
    shares = {name: (one["requests"], one["refused"], one["attained_share"]) for name, one in classes.items()}
    assert shares == {"default": (2, 1, 1.0), "batch": (1, 0, 0.0)}
    assert window.summary(now=60.0)["attained"] == 0


def test_an_empty_window_has_no_percentiles() -> None:
    assert Window().summary(now=0.0)["p99_s"] is None


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99)] == [50.0, 95.0, 99.0]
