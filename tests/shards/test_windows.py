"""Laws of reading through windows: every row once an epoch, a few files at a time, nothing else changed."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.mixture import Mixture
from shards.permutation import key_of, numbered
from shards.phases import Phase
from shards.schedule import Schedule
from shards.windows import Windows


def cuts(fewest: int) -> st.SearchStrategy[Windows]:
    """Datasets whose shards have so many rows or more."""
    return st.builds(Windows, st.lists(st.integers(fewest, 12), min_size=1, max_size=20).filter(any), st.integers(1, 8))


windows = cuts(0)
seeds = st.integers(0, 2**40)


def alone(cut: Windows, seed: int = 0) -> Mixture:
    return Mixture({"a": 1.0}, {"a": cut.num_rows}, seed, {"a": cut})


def epoch(mixture: Mixture, number: int) -> np.ndarray:
    size = mixture.sizes["a"]
    return mixture.locate_many(np.arange(number * size, (number + 1) * size))[1]


@given(windows, seeds, st.integers(0, 10**9))
def test_every_epoch_reads_every_row_once(cut: Windows, seed: int, number: int):
    assert sorted(epoch(alone(cut, seed), number)) == list(range(cut.num_rows))


@given(cuts(1), seeds, st.integers(0, 1000), st.data())
def test_a_run_of_rows_touches_the_files_of_as_many_windows_as_it_crosses(
    cut: Windows, seed: int, number: int, data: st.DataObject
):
    shards = cut.shards_of(epoch(alone(cut, seed), number))
    # Windows follow each other, so the shards that are met first are those of the first window.
    order = list(dict.fromkeys(shards.tolist()))
    ends = [number * len(order) // cut.num_windows for number in range(1, cut.num_windows + 1)]
    place, rows = 0, list[int]()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        members = order[start:end]
        assert len(members) <= cut.shards_per_window
        rows.append(sum(cut.shard_rows[shard] for shard in members))
        assert set(shards[place : place + rows[-1]].tolist()) == set(members)
        place += rows[-1]
    start = data.draw(st.integers(0, len(shards) - 1))
    assert len(set(shards[start : start + min(rows)].tolist())) <= 2 * cut.shards_per_window


@given(windows, seeds, st.lists(st.integers(0, 10**12), min_size=1, max_size=40))
def test_many_positions_are_located_as_one_by_one(cut: Windows, seed: int, positions: list[int]):
    mixture = alone(cut, seed)
    assert mixture.locate_many(positions)[1].tolist() == [mixture.locate(position)[1] for position in positions]


def test_many_epochs_at_once_are_read_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch):
    cut = Windows([3, 1, 4, 1, 5, 9, 2, 6], 3)
    positions = np.arange(0, 31 * 400, 7)
    expected = alone(cut).locate_many(positions)[1]
    monkeypatch.setattr("shards.windows._TABLE_CELLS", 20)
    assert (alone(cut).locate_many(positions)[1] == expected).all()


@given(windows.filter(lambda cut: cut.num_rows >= 12), seeds)
@settings(max_examples=50)
def test_epochs_and_seeds_have_orders_of_their_own(cut: Windows, seed: int):
    mixture = alone(cut, seed)
    orders = {tuple(epoch(mixture, number).tolist()) for number in range(4)}
    assert len(orders) > 1
    assert len(orders | {tuple(epoch(alone(cut, seed + 1), number).tolist()) for number in range(4)}) > len(orders)


def test_over_many_epochs_every_shard_comes_first_equally_often_and_meets_every_other():
    cut = Windows([4] * 12, 3)
    epochs = 3_000
    keys = numbered(np.full(epochs, key_of(3, "a"), np.uint64), np.arange(epochs))
    rows = cut.rows(np.repeat(np.arange(epochs), 12), np.tile(np.arange(12), epochs), keys=np.repeat(keys, 12))
    shards = cut.shards_of(rows).reshape(epochs, 12)
    counts, expected = np.bincount(shards[:, 0], minlength=12), epochs / 12
    assert ((counts - expected) ** 2 / expected).sum() < 11 + 10 * np.sqrt(22)
    met = Counter(
        pair for first in shards for pair in {(a, b) for a in first.tolist() for b in first.tolist() if a < b}
    )
    assert len(met) == 66 and min(met.values()) > epochs * 3 / 66 / 1.4


def test_windows_of_an_epoch_are_nearly_equally_large():
    """Nine shards by eights are five and four, not eight and one, whose rows would hardly be mixed."""
    cut = Windows([10] * 9, 8)
    shards = cut.shards_of(epoch(alone(cut), 0))
    assert sorted(len(set(part.tolist())) for part in (shards[:40], shards[40:])) == [4, 5]


def test_rows_of_a_window_are_torn_apart():
    cut = Windows([1000] * 4, 4)
    rows = np.concatenate([epoch(alone(cut), number) for number in range(5)])
    assert (np.diff(rows) == 1).sum() < 60
    assert (np.diff(cut.shards_of(rows)) == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_it_costs_memory_by_the_shard_and_not_by_the_row():
    mixture = alone(Windows([10**6] * 10_000))
    mixture.locate(0)
    tracemalloc.start()
    _, rows = mixture.locate_many(10**12 + np.arange(4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 4096 and len(np.unique(rows // 10**6)) <= 8
    assert peak < 4 << 20


SIZES = {"near": 50, "far": 40}
FAR = {"far": Windows([7, 9, 11, 13], 2)}
SHARES = {"near": 0.75, "far": 0.25}


def test_datasets_without_windows_keep_their_order_and_all_keep_their_turns():
    plain, cut = Mixture(SHARES, SIZES, 4), Mixture(SHARES, SIZES, 4, FAR)
    positions = np.arange(2000)
    (datasets, rows), (same, others) = plain.locate_many(positions), cut.locate_many(positions)
    assert (datasets == same).all()
    far = datasets == plain.names.index("far")
    assert (rows[~far] == others[~far]).all() and (rows[far] != others[far]).any()
    for rank in range(4):
        ranks = {"rank": rank, "world_size": 4}
        assert (plain.batches([3, 9], 16, **ranks) == cut.batches([3, 9], 16, **ranks)).all()
    assert plain.rows_drawn(777) == cut.rows_drawn(777)


def test_the_fingerprint_tells_windows_only_where_a_dataset_is_read_through_them():
    plain = Mixture(SHARES, SIZES)
    # Of the release before windows: runs that were begun with it go on.
    assert plain.fingerprint == Mixture(SHARES, SIZES, windows={}).fingerprint == "44e8ed4e869b6b4b"
    assert Mixture({"near": 1.0}, SIZES, windows=FAR).fingerprint == Mixture({"near": 1.0}, SIZES).fingerprint
    found = {
        Mixture(SHARES, SIZES, windows=windows).fingerprint
        for windows in ({}, FAR, {"far": Windows([7, 9, 11, 13], 3)}, {"far": Windows([9, 7, 11, 13], 2)})
    }
    assert len(found) == 4


@given(seeds, st.integers(1, 60), st.integers(0, 30))
def test_a_schedule_goes_on_in_its_windows_across_its_phases(seed: int, border: int, ramp: int):
    phases = [Phase(SHARES), Phase({"far": 0.5, "near": 0.5}, border + 1, ramp)]
    schedule = Schedule(phases, SIZES, 8, seed, windows=FAR)
    datasets, rows = schedule.locate_many(np.arange(120 * 8))
    mine = rows[datasets == schedule.names.index("far")]
    _, expected = Mixture({"far": 1.0}, SIZES, seed, FAR).locate_many(np.arange(len(mine)))
    assert (mine == expected).all()
    assert schedule.fingerprint != Schedule(phases, SIZES, 8, seed).fingerprint


@given(seeds, st.integers(0, 10**6))
def test_a_schedule_of_one_phase_is_the_mixture(seed: int, start: int):
    schedule, mixture = Schedule([Phase(SHARES)], SIZES, 8, seed, windows=FAR), Mixture(SHARES, SIZES, seed, FAR)
    positions = np.arange(start, start + 200)
    for found, expected in zip(schedule.locate_many(positions), mixture.locate_many(positions), strict=True):
        assert (found == expected).all()
    assert schedule.fingerprint == mixture.fingerprint


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="at least one of them in a window, found 2 shards and shards_per_window 0"):
        Windows([1, 2], 0)
    with pytest.raises(ConfigError, match="found 0 shards"):
        Windows([])
    with pytest.raises(ConfigError, match="windows over the 40 rows of 'far', found shards of 3"):
        Mixture(SHARES, SIZES, windows={"far": Windows([1, 2])})
