"""Whole-number codebooks: exact in any order, honest about what they minimise."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizers.kmeans import (
    NEAREST,
    Thrift,
    centroids,
    decode_residual,
    encode_residual,
    fit_cover,
    fit_kmeans,
    live,
    nearest,
    nearest_with_distance,
    squared_distances,
    steady,
)


def whole(seed: int, rows: int, columns: int, *, largest: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(-largest, largest + 1, (rows, columns)).astype(np.float32)


@given(st.integers(0, 10_000))
def test_nearest_is_nearest_with_ties_to_the_lowest_index(seed):
    vectors, entries = whole(seed, 40, 3, largest=3), whole(seed + 1, 12, 3, largest=3)
    exact = ((vectors[:, None].astype(int) - entries[None].astype(int)) ** 2).sum(axis=2)
    assert np.array_equal(squared_distances(vectors, entries), exact)
    owner, distance = nearest_with_distance(vectors, entries)
    assert np.array_equal(owner, exact.argmin(axis=1)) and np.array_equal(distance, exact.min(axis=1))


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_a_vector_finds_the_same_entry_whatever_is_looked_up_with_it(seed, rows):
    """Matrix products may be summed in another order for another shape; whole numbers do not care."""
    vectors, entries = whole(seed, 300, 64, largest=120), whole(seed + 1, 50, 64, largest=120)
    assert np.array_equal(nearest(vectors, entries)[:rows], nearest(vectors[:rows], entries))


def test_numbers_too_large_to_be_exact_are_refused():
    with pytest.raises(ValueError, match="stay below"):
        nearest(np.full((1, 4), 3000.0, np.float32), np.zeros((1, 4), np.float32))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 40))
def test_steady_codes_are_the_best_of_all_sequences(seed, switch, use):
    """Against every one of the 3^6 sequences."""
    vectors, entries = whole(seed, 6, 2, largest=4), whole(seed + 1, 3, 2, largest=4)
    table = squared_distances(vectors, entries)

    def cost(codes) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(codes))
        return (
            sum(table[t, code] for t, code in enumerate(codes))
            + switch * changes
            + use * sum(code != 0 for code in codes)
        )

    found = steady(vectors, entries, Thrift(switch, use))
    assert cost(found) == min(cost(codes) for codes in itertools.product(range(3), repeat=6))


def test_thrift_makes_codes_steadier_and_sparser():
    vectors, entries = whole(0, 400, 4), whole(1, 30, 4)
    free, dear = steady(vectors, entries, NEAREST), steady(vectors, entries, Thrift(switch=1500, use=50))
    assert np.array_equal(free, nearest(vectors, entries))
    assert np.count_nonzero(np.diff(dear)) < np.count_nonzero(np.diff(free)) / 2
    assert np.count_nonzero(steady(vectors, entries, Thrift(use=10**6))) == 0


@given(st.integers(0, 10_000))
def test_centroids_are_rounded_means(seed):
    vectors = whole(seed, 50, 3)
    owner = np.random.default_rng(seed).integers(0, 8, 50)
    means, count = centroids(vectors, owner, 10)
    assert count.sum() == 50
    for entry in range(10):
        mine = vectors[owner == entry]
        assert np.array_equal(means[entry], np.rint(mine.mean(axis=0, dtype=np.float64)) if len(mine) else np.zeros(3))


def test_kmeans_finds_the_groups_and_repeats_itself():
    centres = whole(3, 8, 5, largest=100)
    vectors = (centres[np.random.default_rng(0).integers(0, 8, 600)] + whole(4, 600, 5, largest=2)).astype(np.float32)
    entries = fit_kmeans(vectors, 16, seed=7, iterations=20)
    assert nearest_with_distance(vectors, entries)[1].max() <= nearest_with_distance(vectors, centres)[1].max()
    assert np.array_equal(entries, fit_kmeans(vectors, 16, seed=7, iterations=20))
    assert np.array_equal(entries, np.rint(entries))


def test_kmeans_with_fewer_vectors_than_entries_loses_nothing():
    vectors = whole(0, 5, 3)
    entries = fit_kmeans(vectors, 12, seed=0)
    assert entries.shape == (12, 3) and nearest_with_distance(vectors, entries)[1].max() == 0
    assert fit_kmeans(vectors, 0, seed=0).shape == (0, 3)


@given(st.integers(0, 10_000), st.floats(0.5, 8))
def test_a_cover_leaves_no_vector_out_and_no_two_entries_alike(seed, radius):
    vectors = whole(seed, 120, 4, largest=10)
    entries = fit_cover(vectors, 120, radius=radius)
    assert entries is not None
    limit = radius * radius * 4
    assert squared_distances(vectors, entries).min(axis=1).max() <= limit
    apart = squared_distances(entries, entries) + np.where(np.eye(len(entries)), np.inf, 0)
    assert apart.min() > limit
    assert fit_cover(vectors, len(entries), radius=radius) is not None
    assert fit_cover(vectors, len(entries) - 1, radius=radius) is None


def test_residual_levels_come_closer_level_by_level():
    vectors = whole(0, 500, 6, largest=60)
    books, rest = [], vectors
    for level in range(3):
        books.append(fit_kmeans(rest, 16, seed=level))
        rest = rest - books[-1][nearest(rest, books[-1])]
    codes = encode_residual(vectors, books, thrift=[NEAREST] * 3)
    assert codes.shape == (500, 3) and codes.dtype == np.uint16
    errors = [np.square(vectors - decode_residual(codes[:, : level + 1], books)).mean() for level in range(3)]
    assert errors[0] > errors[1] > errors[2]
    assert np.array_equal(vectors - decode_residual(codes, books), rest)


def test_the_filling_at_the_end_of_a_codebook_is_left_out():
    entries = np.concatenate([whole(0, 5, 3) + 100, np.zeros((11, 3), np.float32)])
    assert len(live(entries)) == 6 and np.array_equal(live(entries), entries[:6])
    assert len(live(entries[:5])) == 5 and len(live(np.zeros((4, 3), np.float32))) == 1
