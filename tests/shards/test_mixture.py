"""Laws of the mixture: exact shares, every row once an epoch, no order shared by epochs, ranks or seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.mixture import Mixture, permute

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


def test_a_batch_is_its_positions_whatever_the_number_of_ranks():
    """A rank takes a stretch of the permuted batch; together the ranks read the batch, apart they read all datasets."""
    mixture = Mixture(SHARES, SIZES)
    for step in (0, 1, 77):
        batch = mixture.batch(step, 400)
        assert sorted(batch) == list(range(step * 400, (step + 1) * 400))
        for ranks in (2, 4, 8):
            for rank in range(ranks):
                datasets, _ = mixture.locate_many(batch[rank * 400 // ranks : (rank + 1) * 400 // ranks])
                assert len(set(datasets.tolist())) == len(SHARES)


def test_strided_ranks_do_not_alias_with_the_schedule():
    """Two datasets of equal share alternate; unpermuted, two strided ranks would see one dataset each."""
    mixture = Mixture({"a": 0.5, "b": 0.5}, {"a": 50, "b": 50})
    for step in range(5):
        datasets, _ = mixture.locate_many(mixture.batch(step, 64)[0::2])
        assert 8 <= datasets.sum() <= 24


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
