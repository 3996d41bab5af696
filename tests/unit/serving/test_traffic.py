"""What a gateway counts for the autoscaler."""

from __future__ import annotations

from patchwork_serving.gateway.metrics import GatewayMetrics


def test_requests_are_counted_when_they_come_and_late_ones_when_they_end() -> None:
    metrics = GatewayMetrics("app")
    metrics.open_run("one")
    metrics.open_run("two")
    metrics.traffic.called("llm")
    assert metrics.traffic.report() == {"requests": 2, "late": 0, "calls": {"llm": 1}}
    metrics.close_run("one")
    metrics.observe_request("/invoke", "default", "missed", 3.0)
    metrics.observe_request("/invoke", "default", "refused", 0.0)  # never ran
    assert metrics.traffic.report() == {"requests": 3, "late": 2, "calls": {"llm": 1}}
