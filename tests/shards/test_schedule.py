"""Laws of schedules: exact shares in every phase, no repeat before a set is exhausted, caps kept or the plan refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.mixture import Mixture
from shards.phases import Phase
from shards.schedule import Schedule, position_of

NAMES = ("interleaved", "image", "mls", "music")
BATCH = 12


@st.composite
def shares(draw: st.DrawFn) -> Mapping[str, float]:
    parts = draw(st.lists(st.integers(0, 9), min_size=len(NAMES), max_size=len(NAMES)).filter(any))
    return {name: part / sum(parts) for name, part in zip(NAMES, parts, strict=True) if part}


@st.composite
def phases(draw: st.DrawFn, *, most: int = 4) -> Sequence[Phase]:
    """Phases of a few steps, each present or absent dataset as it comes, some of them approached gradually."""
    found, step = [Phase(draw(shares()))], 1
    for _ in range(draw(st.integers(0, most - 1))):
        step += draw(st.integers(1, 30))
        ramp = draw(st.sampled_from([0, 0, 3, 25]))
        found.append(Phase(draw(shares()), step, ramp))
        step += ramp
    return found


sizes = st.fixed_dictionaries({name: st.integers(1, 150) for name in NAMES})
seeds = st.integers(0, 2**40)
STEPS = 120


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    return Schedule(draw(phases()), draw(sizes), BATCH, draw(seeds))


@st.composite
def capped(draw: st.DrawFn) -> Schedule:
    """Caps that are sometimes reached; the last dataset has none, or nobody might be left."""
    caps = draw(st.dictionaries(st.sampled_from(NAMES[:-1]), st.floats(0.1, 9)))
    everywhere = [
        Phase({name: share / 2 for name, share in phase.shares.items() if name != "music"}, phase.first_step)
        for phase in draw(phases())
    ]
    full = [Phase({**p.shares, "music": 1 - sum(p.shares.values())}, p.first_step) for p in everywhere]
    return Schedule(full, draw(sizes), BATCH, draw(seeds), STEPS, caps, "drop")


@given(shares(), sizes, seeds, st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_a_schedule_of_one_phase_is_the_mixture(
    shares: Mapping[str, float], sizes: Mapping[str, int], seed: int, positions: list[int]
):
    sizes = {name: sizes[name] for name in shares}
    schedule, mixture = Schedule([Phase(shares)], sizes, BATCH, seed), Mixture(shares, sizes, seed)
    assert schedule.names == mixture.names
    for found, expected in zip(schedule.locate_many(positions), mixture.locate_many(positions), strict=True):
        assert (found == expected).all()
    assert schedule.fingerprint == mixture.fingerprint
    assert schedule.rows_drawn(positions[0]) == mixture.rows_drawn(positions[0])
    for rank in range(3):
        for size in (BATCH, 15):
            mine = schedule.batches([0, 7, 10**6], size, rank=rank, world_size=3)
            assert (mine == mixture.batches([0, 7, 10**6], size, rank=rank, world_size=3)).all()


@given(schedules())
@settings(max_examples=60)
def test_no_row_is_repeated_before_its_set_is_exhausted_whatever_the_shares_do(schedule: Schedule):
    """Read in order, every run of `size` rows that begins an epoch is all rows of the set, across phases too."""
    datasets, rows = schedule.locate_many(np.arange(STEPS * BATCH))
    for index, name in enumerate(schedule.names):
        mine, size = rows[datasets == index], schedule.sizes[name]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == list(range(size))
        rest = mine[len(mine) // size * size :]
        assert len(np.unique(rest)) == len(rest)


@given(schedules())
@settings(max_examples=60)
def test_a_dataset_gives_its_own_sequence_whatever_the_phases(schedule: Schedule):
    datasets, rows = schedule.locate_many(np.arange(STEPS * BATCH))
    for index, name in enumerate(schedule.names):
        mine = rows[datasets == index]
        _, alone = Mixture({name: 1.0}, schedule.sizes, schedule.seed).locate_many(np.arange(len(mine)))
        assert (mine == alone).all()


@given(schedules(), st.data())
def test_shares_are_exact_in_every_window_of_a_period_within_a_stretch(schedule: Schedule, data: st.DataObject):
    number = data.draw(st.integers(0, len(schedule.stretches) - 1))
    stretch = schedule.stretches[number]
    period = stretch.mixture.period
    last = number + 1 == len(schedule.stretches)
    room = 10**9 if last else schedule.stretches[number + 1].start - stretch.start - period
    if room < 0:
        return
    start = stretch.start + data.draw(st.integers(0, room))
    datasets, _ = schedule.locate_many(np.arange(start, start + period))
    counts = Counter(schedule.names[index] for index in datasets.tolist())
    assert counts == {name: round(stretch.mixture.shares[name] * period) for name in stretch.mixture.names}


@given(schedules(), st.lists(st.integers(0, 3000), min_size=1, max_size=40))
def test_many_positions_are_located_as_one_by_one(schedule: Schedule, positions: list[int]):
    datasets, rows = schedule.locate_many(positions)
    together = [(schedule.names[d], r) for d, r in zip(datasets.tolist(), rows.tolist(), strict=True)]
    assert together == [schedule.locate(position) for position in positions]


@given(schedules(), st.integers(0, 3000))
def test_rows_drawn_is_what_was_located(schedule: Schedule, stop: int):
    datasets, _ = schedule.locate_many(np.arange(stop))
    counts = np.bincount(datasets, minlength=len(schedule.names)).tolist()
    assert schedule.rows_drawn(stop) == dict(zip(schedule.names, counts, strict=True))
    assert schedule.epochs(stop) == {n: c / schedule.sizes[n] for n, c in zip(schedule.names, counts, strict=True)}


@given(schedules(), st.integers(0, 150), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_ranks_read_every_row_of_a_global_batch_once(schedule: Schedule, step: int, world_size: int):
    parts = [schedule.batch(step, BATCH, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(parts)) == list(range(step * BATCH, (step + 1) * BATCH))


@given(schedules(), st.integers(0, 100), st.integers(0, 100))
def test_rows_until_a_step_do_not_depend_on_phases_after_it(schedule: Schedule, later: int, step: int):
    """A plan may be changed ahead of a running job: what was read stays what it is, and the fingerprint says so."""
    last = schedule.phases[-1]
    first = last.first_step + last.ramp_steps + 1 + later
    changed = Schedule([*schedule.phases, Phase({"mls": 1.0}, first)], schedule.sizes, BATCH, schedule.seed)
    stop = (first - 1) * BATCH
    assert schedule.fingerprint_until(stop) == changed.fingerprint_until(stop)
    assert changed.fingerprint != schedule.fingerprint
    assert schedule.fingerprint_until(stop + 1) != changed.fingerprint_until(stop + 1)
    assert schedule.names_until(stop) == changed.names_until(stop)
    assert "mls" in changed.names_until(stop + 1)
    positions = np.arange(min(stop, step * BATCH))
    here, there = schedule.locate_many(positions), changed.locate_many(positions)
    assert [schedule.names[d] for d in here[0]] == [changed.names[d] for d in there[0]]
    assert (here[1] == there[1]).all()


@given(capped())
@settings(max_examples=80)
def test_a_cap_is_never_exceeded_and_a_dataset_leaves_only_when_a_batch_would_exceed_it(schedule: Schedule):
    datasets, _ = schedule.locate_many(np.arange(STEPS * BATCH))
    counts = dict(zip(schedule.names, np.bincount(datasets, minlength=len(schedule.names)).tolist(), strict=True))
    for name, cap in schedule.max_epochs.items():
        if name not in schedule.names:
            continue
        limit = int(cap * schedule.sizes[name])
        assert counts[name] <= limit
        for stretch in schedule.stretches:
            wanted = schedule_shares(schedule, stretch.start)
            if wanted.get(name) and name not in stretch.mixture.names:
                assert stretch.given[name] + BATCH > limit


@given(capped())
@settings(max_examples=40)
def test_those_that_stay_share_in_proportion(schedule: Schedule):
    for stretch in schedule.stretches:
        wanted = schedule_shares(schedule, stretch.start)
        left = {name: wanted[name] for name in stretch.mixture.names}
        for name, share in left.items():
            assert stretch.mixture.shares[name] == pytest.approx(share / sum(left.values()), abs=1e-12)


def schedule_shares(schedule: Schedule, position: int) -> Mapping[str, float]:
    """Shares of the phase at a position, as they were asked for."""
    return [p for p in schedule.phases if (p.first_step - 1) * BATCH <= position][-1].shares


def test_the_papers_quality_phase():
    """81,000 steps of Table 7, then 4,000 with better pictures: music goes on where it was."""
    pretrain = {"laion": 0.30, "mmc4": 0.05, "speech": 0.40, "music": 0.25}
    quality = {"journeydb": 0.30, "mmc4": 0.05, "speech": 0.40, "music": 0.25}
    rows = {"laion": 4_000_000, "journeydb": 60_000, "mmc4": 500_000, "speech": 2_280_000, "music": 222_223}
    schedule = Schedule([Phase(pretrain), Phase(quality, 81_001)], rows, 480)
    border = 81_000 * 480
    assert schedule.stretches[1].given["music"] == border // 4
    datasets, found = schedule.locate_many(np.arange(border - 200, border + 200))
    mine = found[datasets == schedule.names.index("music")]
    _, expected = Mixture({"music": 1.0}, rows).locate_many(np.arange(border // 4 - 50, border // 4 + 50))
    assert (mine == expected).all()
    assert schedule.rows_drawn(85_000 * 480)["journeydb"] == 4_000 * 480 * 3 // 10
    assert position_of(schedule, "journeydb", 0, stop=85_000 * 480) in range(border, border + 4)


def test_a_gradual_change_goes_through_the_shares_in_between():
    schedule = Schedule(
        [Phase({"a": 1.0}), Phase({"a": 0.2, "b": 0.8}, first_step=11, ramp_steps=100)], {"a": 9, "b": 9}, 10
    )
    found = [(stretch.start // 10 + 1, stretch.mixture.shares.get("b", 0.0)) for stretch in schedule.stretches]
    assert [step for step, _ in found] == [1, *range(11, 111, 10), 111]
    assert [share for _, share in found] == pytest.approx(np.linspace(0, 0.8, 12), abs=0.001)


@given(phases())
def test_stages_in_between_sum_to_one_and_stay_between(phases: Sequence[Phase]):
    schedule = Schedule(phases, dict.fromkeys(NAMES, 5), BATCH)
    for stretch in schedule.stretches:
        for name in stretch.mixture.names:
            wanted = [phase.shares.get(name, 0.0) for phase in phases]
            assert min(wanted) - 0.001 <= stretch.mixture.shares[name] <= max(wanted) + 0.001


def test_a_cap_that_the_plan_breaks_refuses_it_with_the_numbers():
    with pytest.raises(ConfigError) as error:
        Schedule([Phase({"a": 0.75, "b": 0.25})], {"a": 1000, "b": 50}, 100, steps=40, max_epochs={"b": 4.0, "a": 9})
    message = str(error.value)
    # 25 rows a step: the 200 rows of four epochs are read by the end of step 8, and 1,000 rows in the run.
    assert "'b' may be read 4 times and reaches that in step 9 of 40; the plan reads it 20 times" in message
    assert "'a'" not in message and 'when_exhausted = "drop"' in message


def test_a_cap_that_is_just_kept_refuses_nothing_and_one_may_read_ahead_of_the_end():
    schedule = Schedule([Phase({"a": 0.75, "b": 0.25})], {"a": 99, "b": 50}, 100, steps=8, max_epochs={"b": 4.0})
    assert schedule.epochs(800)["b"] == 4.0
    assert len(schedule.locate_many(np.arange(800, 900))[0]) == 100


def test_a_dataset_that_left_stays_away_in_later_phases():
    halves = {"a": 0.5, "b": 0.5}
    schedule = Schedule([Phase(halves), Phase(halves, 30)], {"a": 999, "b": 40}, 10, 0, 60, {"b": 1.0}, "drop")
    assert [(s.start // 10 + 1, s.mixture.names) for s in schedule.stretches] == [
        (1, ("a", "b")),
        (9, ("a",)),
        (30, ("a",)),
    ]
    assert schedule.epochs(600) == {"a": 560 / 999, "b": 1.0}


@given(schedules(), st.sampled_from(NAMES), st.integers(0, 400))
def test_the_position_of_the_nth_row_is_where_it_is_read(schedule: Schedule, name: str, nth: int):
    if name not in schedule.names:
        return
    stop = 2000
    datasets, _ = schedule.locate_many(np.arange(stop))
    mine = np.flatnonzero(datasets == schedule.names.index(name)).tolist()
    assert position_of(schedule, name, nth, stop=stop) == (mine[nth] if nth < len(mine) else None)


HALF = Phase({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phases": []}, "a first phase from step 1 on"),
        ({"phases": [Phase(HALF.shares, 5)]}, r"a first phase from step 1 on, found phases from \[5\]"),
        ({"phases": [Phase(HALF.shares, 1, 5)]}, "the first phase has ramp_steps"),
        ({"phases": [HALF, HALF]}, "in the order of their steps"),
        ({"phases": [HALF, Phase(HALF.shares, 10, 50), Phase(HALF.shares, 60)]}, "that takes 50 steps to change"),
        ({"phases": [HALF, Phase({"a": 1.0, "c": 0.1}, 9)]}, r"sum to 1, found 1.1 .*shares from step 9 on"),
        ({"phases": [HALF, Phase({"c": 1.0}, 9)]}, r"found none in \['c'\]"),
        ({"max_epochs": {"a": 3}, "steps": None}, "max_epochs needs to know how many steps"),
        ({"max_epochs": {"x": 3}}, r"max_epochs {'x': 3}: expected positive numbers for a, b"),
        ({"max_epochs": {"a": 0}}, "expected positive numbers"),
        ({"steps": 0}, "expected steps and rows"),
        ({"max_epochs": {"a": 1, "b": 1}, "when_exhausted": "drop"}, "every dataset has been read max_epochs times"),
    ],
)
def test_an_impossible_schedule_is_refused(changes: Mapping[str, object], words: str):
    given = {"phases": [HALF], "sizes": {"a": 50, "b": 50}, "batch_rows": 10, "steps": 100, **changes}
    with pytest.raises(ConfigError, match=words):
        Schedule(**given)  # pyright: ignore[reportArgumentType]


def test_positions_before_the_first_and_batches_of_another_size_are_refused():
    schedule = Schedule([HALF, Phase({"a": 1.0}, 3)], {"a": 5, "b": 5}, 10)
    with pytest.raises(IndexError, match="from 0 on"):
        schedule.locate(-1)
    with pytest.raises(ValueError, match="batches of 10 rows"):
        schedule.batch(0, 20)
