"""The learning rate against its closed form, and the mistakes of other schedulers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import learning_rate


def test_the_paper_s_run_at_the_steps_that_matter():
    """81,000 steps, 3 % warm-up, peak 6e-5: first step, end of warm-up, middle, last."""

    def rate(step: int) -> float:
        return learning_rate(step, steps=81_000, peak=6e-5)

    assert rate(1) == pytest.approx(6e-5 / 2_430)
    assert rate(2_430) == 6e-5
    middle = 3e-5 * (1 + math.cos(math.pi * (40_000 - 2_430) / (81_000 - 2_430)))
    assert rate(40_000) == pytest.approx(middle) == pytest.approx(3.206e-5, rel=1e-3)
    assert rate(81_000) == 0.0


def test_it_does_not_rise_again_after_the_end():
    assert learning_rate(81_003, steps=81_000, peak=6e-5) == 0.0


@given(st.integers(1, 3_000), st.floats(1e-6, 1), st.floats(0, 0.9), st.floats(0, 1))
def test_it_rises_then_falls_and_stays_between_zero_and_the_peak(steps: int, peak: float, warmup: float, part: float):
    final = peak * part
    rates = [learning_rate(step, steps=steps, peak=peak, warmup=warmup, final=final) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates[:-1])
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == final or round(warmup * steps) == steps


def test_steps_count_from_one():
    with pytest.raises(ValueError, match="from 1 on, found 0"):
        learning_rate(0, steps=10, peak=1.0)
