"""A plan is what a run reads: counted row by row where that is possible, and the same arithmetic where it is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.mix_plan import Holding, check_ranks, format_plan, plan_mix, rows_of
from shards.mixture import Mixture
from shards.phases import Phase
from shards.schedule import Schedule

SHARES = {"image": 0.5, "speech": 0.3, "music": 0.2}
BATCH = 20


@given(
    st.fixed_dictionaries({name: st.integers(1, 300) for name in SHARES}),
    st.integers(1, 60),
    st.integers(2, 70),
    st.sampled_from([None, 1.5]),
)
@settings(max_examples=60)
def test_a_plan_is_what_is_read(sizes: Mapping[str, int], steps: int, change: int, cap: float | None):
    """Rows, epochs, first repeats and the step from which a cap keeps a set out, against reading row by row."""
    later = {"image": 0.2, "speech": 0.3, "music": 0.5}
    caps = {"music": cap} if cap else {}
    schedule = Schedule([Phase(SHARES), Phase(later, change)], sizes, BATCH, 3, 60, caps, "drop")
    holdings = {name: Holding(rows, {"text": 10.0 * rows}) for name, rows in sizes.items()}
    plan = plan_mix(schedule, holdings, steps=steps, sequence_length=16)

    datasets, rows = schedule.locate_many(np.arange(steps * BATCH))
    for one in plan.datasets:
        places = np.flatnonzero(datasets == schedule.names.index(one.name))
        mine = rows[places]
        assert one.rows_read == len(mine)
        assert one.share == len(mine) / (steps * BATCH)
        assert one.epochs == len(mine) / sizes[one.name]
        seen = np.full(sizes[one.name], False)
        repeat = None
        for place, row in zip(places.tolist(), mine.tolist(), strict=True):
            if seen[row]:
                repeat = place // BATCH + 1
                break
            seen[row] = True
        assert one.first_repeat == repeat
        assert one.tokens["text"] == pytest.approx(10 * len(mine))
        if one.left_before is not None:
            assert one.name == "music" and not len(places[places >= (one.left_before - 1) * BATCH])
    assert sum(one.rows_read for one in plan.datasets) == steps * BATCH
    assert plan.tokens["text"] == pytest.approx(10 * steps * BATCH)
    assert plan.stretches[0].first_step == 1 and all(s.first_step <= steps for s in plan.stretches)


def test_a_dataset_that_its_cap_keeps_out_says_from_when():
    schedule = Schedule([Phase(SHARES)], dict.fromkeys(SHARES, 100), BATCH, 0, 50, {"music": 1.0}, "drop")
    plan = plan_mix(schedule, dict.fromkeys(SHARES, Holding(100, {})), steps=50, sequence_length=16)
    # Four rows of music a step: a hundred are read by the end of step 25.
    assert {one.name: one.left_before for one in plan.datasets} == {"image": None, "speech": None, "music": 26}
    assert [stretch.first_step for stretch in plan.stretches] == [1, 26]
    text = format_plan(plan, "toy")
    assert "capped, leaves before step 26" in text
    assert "tokens   not known for every dataset" in text
    assert "from step 26 on exact in any 8 rows: image 0.625, speech 0.375" in text


@given(st.floats(1, 1e15), st.integers(1, 10_000), st.floats(0.01, 1))
def test_rows_hold_their_tokens_and_one_row_less_does_not(tokens: float, sequence_length: int, fill: float):
    rows = rows_of(tokens, sequence_length=sequence_length, fill=fill)
    assert rows * sequence_length * fill >= tokens * (1 - 1e-12)
    assert rows == 1 or (rows - 1) * sequence_length * fill <= tokens * (1 + 1e-12)


@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 10, 20])
def test_the_rank_check_counts_what_ranks_read(world_size: int):
    """Against a plain count of names, rank by rank and step by step."""
    mixture = Mixture(SHARES, dict.fromkeys(SHARES, 1000))
    check = check_ranks(mixture, world_size, batch_rows=BATCH, steps=12)
    exact, farthest = None, 0.0
    counts = [dict.fromkeys(SHARES, 0) for _ in range(world_size)]
    for step in range(check.steps):
        off: list[float] = []
        for rank, mine in enumerate(counts):
            for position in mixture.batch(step, BATCH, rank=rank, world_size=world_size).tolist():
                mine[mixture.locate(position)[0]] += 1
            off += [abs(count - SHARES[name] * (step + 1) * BATCH / world_size) for name, count in mine.items()]
        farthest = max(farthest, *off)
        if max(off) < 1e-9 and exact is None:
            exact = step + 1
    assert (check.rows, check.exact_after) == (BATCH // world_size, exact)
    assert check.farthest == pytest.approx(farthest)


def test_ranks_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(ConfigError, match="20 rows does not divide over 7 ranks"):
        check_ranks(Mixture(SHARES, dict.fromkeys(SHARES, 5)), 7, batch_rows=BATCH, steps=3)
