"""Costs fitted from rows as a profile has them."""

from __future__ import annotations

import pytest

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile

ENGINE = TokenCost(base_s=0.004, prefill_s=1e-5, sequence_s=2e-5, context_s=3e-8)


def rows(engine: TokenCost) -> list[dict[str, float]]:
    """What profiling ``engine`` in whole batches gives."""
    prefills = [(n, 1, b) for b in (1, 4, 16, 64) for n in (128, 512, 2048)]
    decodes = [(512, 129, b) for b in (1, 4, 16, 64, 128, 256)] + [(3072, 129, b) for b in (16, 64)]
    return [{"n_in": n, "n_out": o, "batch": b, "seconds": seconds(engine, n, o, b)} for n, o, b in prefills + decodes]


def seconds(engine: TokenCost, n_in: int, n_out: int, batch: int) -> float:
    return engine.step_s(n_in * batch, 0) + (n_out - 1) * engine.step_s(0, batch, round(batch * (n_in + n_out / 2)))


def test_an_engine_is_found_again_from_its_profile() -> None:
    fitted = TokenCost.fit(rows(ENGINE))
    for n_in, n_out, batch in ((512, 129, 1), (512, 129, 64), (3072, 129, 64), (2048, 1, 16)):
        assert seconds(fitted, n_in, n_out, batch) == pytest.approx(seconds(ENGINE, n_in, n_out, batch), rel=0.1)


def test_a_small_prefill_costs_a_whole_step_and_a_large_one_by_the_token() -> None:
    assert ENGINE.step_s(10, 0) == ENGINE.step_s(300, 0) == 0.004
    assert ENGINE.step_s(4000, 0) == pytest.approx(2 * ENGINE.step_s(2000, 0))


def test_prefill_within_a_step_is_the_inverse_of_the_step() -> None:
    tokens = ENGINE.prefill_within(0.020, sequences=50, context_tokens=10_000)
    assert ENGINE.step_s(round(tokens), 50, 10_000) == pytest.approx(0.020, rel=1e-3)
    assert ENGINE.prefill_within(0.003, sequences=0) == 0.0


def test_a_slower_host_lengthens_every_step() -> None:
    slower = ENGINE.with_overhead(0.001, 0.002)
    assert slower.step_s(0, 3) == pytest.approx(ENGINE.step_s(0, 3) + 0.001)
    assert slower.step_s(4000, 3) == pytest.approx(ENGINE.step_s(4000, 3) + 0.003)
    assert ENGINE.scaled(2.0).alone_s(1000, 100) == pytest.approx(2 * ENGINE.alone_s(1000, 100))


@pytest.mark.parametrize(
    "bad",
    [
        [],  # nothing
        [{"n_in": 128, "n_out": 1, "batch": 1, "seconds": 0.1}],  # no decode
        [{"n_in": 128, "n_out": 9, "batch": b, "seconds": 0.1} for b in (1, 2, 3)],  # no prefill
    ],
)
def test_a_profile_that_lacks_a_kind_of_row_is_refused(bad: list[dict[str, float]]) -> None:
    with pytest.raises(IncompleteProfile):
        TokenCost.fit(bad)


def test_batches_cost_what_lies_between_the_profiled_points() -> None:
    cost = BatchCost((1, 4, 16), (0.002, 0.005, 0.011))
    assert [cost(size) for size in (0, 1, 2.5, 4, 10, 16)] == pytest.approx([0.002, 0.002, 0.0035, 0.005, 0.008, 0.011])
    assert cost(32) == pytest.approx(0.019)  # along the last slope
    assert cost.per_item_s(16) == pytest.approx(0.011 / 16)


def test_a_larger_batch_measured_faster_is_taken_for_noise() -> None:
    points = [(1, 0.003), (4, 0.0028), (16, 0.0031)]
    cost = BatchCost.fit([{"batch": b, "seconds": s, "n_in": 16} for b, s in points])
    assert [cost(b) for b in (1, 4, 16)] == [0.0028, 0.0028, 0.0031]


def test_the_rows_of_the_nearest_longer_text_are_used() -> None:
    measured = [{"n_in": n, "batch": 1, "seconds": n / 1000} for n in (16, 128, 512)]
    assert [BatchCost.fit(measured, n_in=n)(1) for n in (10, 100, 2000)] == [0.016, 0.128, 0.512]
    with pytest.raises(IncompleteProfile, match="no rows"):
        BatchCost.fit([])
