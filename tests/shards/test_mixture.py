"""Laws of the mixture: exact shares, every row once an epoch, no order shared by epochs, ranks or seeds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dealing import LONGEST_CYCLE, colour_edges
from shards.errors import ConfigError
from shards.mixture import Mixture
from shards.permutation import permute

# Paper, Table 7, with sizes that are small and awkward.
SHARES = {"interleaved": 0.05, "image": 0.30, "mls": 0.13, "speech": 0.27, "music": 0.25}
SIZES = {"interleaved": 7, "image": 101, "mls": 64, "speech": 1, "music": 23}


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    parts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    total = sum(parts)
    shares = {f"d{number}": part / total for number, part in enumerate(parts)}
    sizes = {name: draw(st.integers(1, 200)) for name in shares}
    return Mixture(shares, sizes, seed=draw(st.integers(0, 2**40)))


@given(mixtures(), st.integers(0, 10**12))
def test_every_period_holds_exactly_the_shares(mixture: Mixture, first_period: int):
    start = first_period * mixture.period
    datasets, _ = mixture.locate_many(np.arange(start, start + mixture.period))
    counts = Counter(mixture.names[index] for index in datasets.tolist())
    assert counts == {name: round(share * mixture.period) for name, share in mixture.shares.items()}


@given(mixtures(), st.integers(0, 10**6), st.integers(1, 500))
def test_any_stretch_is_within_a_few_rows_of_the_shares(mixture: Mixture, start: int, length: int):
    """At each end a dataset is off by half a row, and by its share of the half rows of all others."""
    datasets, _ = mixture.locate_many(np.arange(start, start + length))
    counts = np.bincount(datasets, minlength=len(mixture.names))
    for count, name in zip(counts, mixture.names, strict=True):
        assert abs(count - mixture.shares[name] * length) <= 1 + len(mixture.names)


@given(mixtures())
@settings(max_examples=50)
def test_every_epoch_reads_every_row_of_a_dataset_once(mixture: Mixture):
    positions = np.arange(mixture.period * 20)
    datasets, rows = mixture.locate_many(positions)
    for index, name in enumerate(mixture.names):
        mine, size = rows[datasets == index], mixture.sizes[name]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(mixtures(), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_many_positions_are_located_as_one_by_one(mixture: Mixture, positions: list[int]):
    datasets, rows = mixture.locate_many(positions)
    together = [(mixture.names[d], r) for d, r in zip(datasets.tolist(), rows.tolist(), strict=True)]
    assert together == [mixture.locate(position) for position in positions]


@given(st.integers(1, 300), st.integers(0, 2**63))
def test_a_permutation_is_a_bijection_for_every_size_and_key(size: int, key: int):
    image = permute(np.arange(size), size, keys=np.full(size, key, np.uint64))
    assert sorted(image) == list(range(size))


@pytest.mark.parametrize("size", [5, 97])
def test_over_many_epochs_every_row_comes_first_equally_often(size: int):
    """Chi-squared against uniform; the bound is ten standard deviations away from its mean."""
    epochs = 4_000
    mixture = Mixture({"a": 1.0}, {"a": size}, seed=3)
    _, rows = mixture.locate_many(np.arange(epochs) * size)
    counts, expected = np.bincount(rows, minlength=size), epochs / size
    assert ((counts - expected) ** 2 / expected).sum() < size - 1 + 10 * np.sqrt(2 * (size - 1))


def test_neighbours_are_torn_apart():
    """Row n + 1 does not follow row n more often than chance: shards are shuffled, not merely rotated."""
    size = 1_000
    mixture = Mixture({"a": 1.0}, {"a": size})
    _, rows = mixture.locate_many(np.arange(20 * size))
    followers = (np.diff(rows) == 1).sum()
    assert followers < 60


def test_a_dataset_of_a_billion_rows_costs_no_memory_and_repeats_nothing():
    mixture = Mixture({"a": 1.0}, {"a": 10**9})
    _, rows = mixture.locate_many(np.arange(100_000))
    assert len(np.unique(rows)) == 100_000
    assert rows.min() < 10**5 and rows.max() > 10**9 - 10**5


@st.composite
def worlds(draw: st.DrawFn) -> tuple[int, int]:
    """Rows of a batch, and ranks that it divides over."""
    world_size = draw(st.integers(1, 12))
    return world_size * draw(st.integers(1, 12)), world_size


def read_by(mixture: Mixture, steps: int, size: int, rank: int, world_size: int) -> np.ndarray:
    """(steps, datasets): rows of each dataset that a rank reads at each step."""
    positions = mixture.batches(np.arange(steps), size, rank=rank, world_size=world_size)
    datasets, _ = mixture.locate_many(positions.reshape(-1))
    found = datasets.reshape(positions.shape)
    return np.stack([(found == index).sum(axis=1) for index in range(len(mixture.names))], axis=1)


@given(mixtures(), worlds(), st.integers(0, 10**9))
def test_the_ranks_read_the_batch_each_row_once(mixture: Mixture, world: tuple[int, int], step: int):
    size, world_size = world
    parts = [mixture.batch(step, size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {size // world_size}
    assert sorted(np.concatenate(parts)) == list(range(step * size, (step + 1) * size))


@given(mixtures(), worlds())
def test_every_rank_has_exactly_the_shares_in_any_window_of_its_period(mixture: Mixture, world: tuple[int, int]):
    size, world_size = world
    cycle = mixture.period // math.gcd(size, mixture.period)
    counts = np.array([round(share * cycle * size) for share in mixture.shares.values()])
    cycles = 1 if not (counts % world_size).any() else world_size
    window = cycle * cycles
    for rank in {0, world_size // 2, world_size - 1}:
        read = read_by(mixture, 2 * window + 3, size, rank, world_size)
        total = np.concatenate([np.zeros((1, len(counts)), np.int64), read.cumsum(axis=0)])
        assert (total[window:] - total[:-window] == counts * cycles // world_size).all()


@pytest.mark.parametrize(("size", "world_size"), [(8, 2), (8, 4), (480, 8), (480, 60), (100, 4)])
def test_in_between_a_rank_is_within_a_few_rows_of_its_shares(size: int, world_size: int):
    mixture = Mixture(SHARES, SIZES)
    shares = np.array(list(SHARES.values()))
    for rank in range(min(world_size, 8)):
        total = read_by(mixture, 200, size, rank, world_size).cumsum(axis=0)
        expected = np.arange(1, 201)[:, None] * (size // world_size) * shares
        assert abs(total - expected).max() < 4


def test_a_cycle_that_is_too_long_to_be_dealt_at_once_is_dealt_in_pieces():
    mixture = Mixture({"a": 0.3333, "b": 0.6667}, {"a": 10, "b": 10})
    size, world_size, steps = 472, 8, 600
    assert mixture.period * size // math.gcd(size, mixture.period) > LONGEST_CYCLE
    for rank in range(world_size):
        total = read_by(mixture, steps, size, rank, world_size).cumsum(axis=0)
        expected = np.arange(1, steps + 1)[:, None] * (size // world_size) * np.array([0.3333, 0.6667])
        assert abs(total - expected).max() < 6
    together = [mixture.batches([7, 599], size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(together, axis=1)[1]) == list(range(599 * size, 600 * size))


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused():
    with pytest.raises(ValueError, match="expected a batch that divides over the ranks, found 8 over 3"):
        Mixture(SHARES, SIZES).batch(0, 8, world_size=3)


@given(st.integers(1, 9), st.data())
def test_no_two_edges_of_a_vertex_have_one_colour(num_colours: int, data: st.DataObject):
    """Of any bipartite multigraph whose vertices have at most so many edges."""
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
    kept: list[tuple[int, int]] = []
    for one, other in pairs:
        if sum(a == one for a, _ in kept) < num_colours and sum(b == other for _, b in kept) < num_colours:
            kept.append((one, other))
    left, right = np.array(kept, np.int64).T
    colours = colour_edges(left, right, num_colours)
    assert colours.min() >= 0 and colours.max() < num_colours
    for side in (left, right):
        assert len({*zip(side.tolist(), colours.tolist(), strict=True)}) == len(kept)


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    one, same, other = (Mixture({"a": 1.0}, {"a": 50}, seed=seed) for seed in (0, 0, 1))
    positions = np.arange(100)
    first, again, different = (mixture.locate_many(positions)[1] for mixture in (one, same, other))
    assert (first == again).all()
    assert (first != different).any()
    assert (first[:50] != first[50:]).any()
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_epochs_count_what_was_drawn():
    mixture = Mixture(SHARES, SIZES)
    for stop in (0, 1, 99, 100, 12_345):
        datasets, _ = mixture.locate_many(np.arange(stop))
        counts = np.bincount(datasets, minlength=len(mixture.names))
        assert mixture.rows_drawn(stop) == dict(zip(mixture.names, counts.tolist(), strict=True))
    assert mixture.epochs(100) == {
        "interleaved": 5 / 7,
        "image": 30 / 101,
        "mls": 13 / 64,
        "speech": 27.0,
        "music": 25 / 23,
    }


def test_thirds_are_shares_too():
    mixture = Mixture({"a": 1 / 3, "b": 2 / 3}, {"a": 5, "b": 5})
    assert mixture.period == 3


@pytest.mark.parametrize(
    ("shares", "sizes", "words"),
    [
        ({"a": 0.5, "b": 0.4}, {"a": 1, "b": 1}, "sum to 1, found 0.9"),
        ({"a": 1.5, "b": -0.5}, {"a": 1, "b": 1}, r"shares in \[0, 1\]"),
        ({"a": 0.5, "b": 0.5}, {"a": 1, "b": 0}, r"rows in every dataset with a share, found none in \['b'\]"),
        ({"a": 0.5, "b": 0.5}, {"a": 1}, "found none in"),
        ({}, {}, "sum to 1"),
    ],
)
def test_an_impossible_mixture_is_refused_with_the_numbers(shares: dict[str, float], sizes: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        Mixture(shares, sizes)


def test_a_dataset_without_a_share_is_never_read():
    mixture = Mixture({"a": 1.0, "b": 0.0}, {"a": 3, "b": 3})
    assert mixture.names == ("a",)
