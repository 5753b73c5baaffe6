"""Near pairs by sorted arrays: exactly those that comparing all with all would find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_jobs.dedup_near import (
    LSH_WEIGHTS,
    block_masks,
    components,
    concatenate,
    hamming_pairs,
    minhash_pairs,
    similarity,
)


def always(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.ones(len(left), bool)


def pairs_of(found) -> set[tuple[int, int]]:
    left, right = concatenate(list(found))
    return {(min(pair), max(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}


def clusters_of(pairs: set[tuple[int, int]]) -> dict[int, int]:
    """Everything in a pair, and the smallest number it is connected with."""
    left, right = (np.array([pair[side] for pair in sorted(pairs)], np.int64) for side in (0, 1))
    nodes, roots = components(left, right)
    return dict(zip(nodes.tolist(), roots.tolist(), strict=True))


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_distance=st.integers(0, 6),
    copies=st.lists(st.tuples(st.integers(0, 39), st.sets(st.integers(0, 63), max_size=8)), max_size=20),
)
def test_all_that_is_within_the_distance_is_connected_and_nothing_else(seed: int, max_distance: int, copies):
    """Hashes with planted copies that differ in any bits, near and just too far."""
    hashes = np.random.Generator(np.random.PCG64(seed)).integers(2**64, size=40, dtype=np.uint64)
    changed = [hashes[of] ^ np.uint64(sum(1 << bit for bit in bits)) for of, bits in copies]
    hashes = np.concatenate([hashes, np.array(changed, np.uint64)])
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if int(hashes[i] ^ hashes[j]).bit_count() <= max_distance
    }
    found = pairs_of(hamming_pairs(hashes, always, max_distance=max_distance))
    assert found <= expected
    assert clusters_of(found) == clusters_of(expected)


@settings(deadline=None)
@given(st.integers(2, 10**9), st.integers(0, 8), st.sampled_from([16, 64]), st.data())
def test_near_hashes_agree_in_all_bits_of_some_key_however_many_there_are(count, max_distance, bits, data):
    masks = block_masks(count, max_distance=max_distance, bits=bits)
    differing = data.draw(st.sets(st.integers(0, bits - 1), min_size=max_distance, max_size=max_distance))
    change = sum(1 << bit for bit in differing)
    assert any(not mask & change for mask in masks)
    assert all(0 < mask < 1 << bits for mask in masks) or max_distance == 0


def test_more_hashes_get_longer_keys():
    """Else 300 million pictures would share 8,192 buckets."""
    few, many = (block_masks(count, max_distance=4) for count in (1_000, 300_000_000))
    assert min(mask.bit_count() for mask in many) > min(mask.bit_count() for mask in few)
    assert 300_000_000 / 2 ** min(mask.bit_count() for mask in many) < 20


def test_what_is_near_must_be_near_in_other_ways_too():
    hashes = np.zeros(3, np.uint64)
    assert pairs_of(hamming_pairs(hashes, lambda left, right: left + right != 2, max_distance=0)) == {(0, 1), (1, 2)}


def test_minhash_pairs_are_those_of_datasketch():
    """The same candidates as MinHashLSH has, of which those are kept that are as similar as asked."""
    generator = np.random.Generator(np.random.PCG64(0))
    rows = []
    for _ in range(60):
        hashes = generator.integers(2**32, size=128, dtype=np.uint32)
        for changed in (0, 10, 24, 40):
            copy = hashes.copy()
            copy[generator.choice(128, changed, replace=False)] = generator.integers(
                2**32, size=changed, dtype=np.uint32
            )
            rows.append(copy)
    minhashes = np.array(rows)
    lsh, expected = MinHashLSH(threshold=0.8, num_perm=128, weights=LSH_WEIGHTS), set[tuple[int, int]]()
    for number, hashes in enumerate(minhashes):
        known = MinHash(hashvalues=hashes, scheme="affine32")
        expected |= {(other, number) for other in lsh.query(known)}
        lsh.insert(number, known)
    expected = {(i, j) for i, j in expected if (minhashes[i] == minhashes[j]).mean() >= 0.8}
    assert len(expected) > 80
    found = pairs_of(minhash_pairs(minhashes, np.arange(len(minhashes)), threshold=0.8))
    assert found <= expected
    assert clusters_of(found) == clusters_of(expected)
    assert similarity(minhashes, np.array([0]), np.array([1]))[0] == pytest.approx(118 / 128)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(31, 60)), max_size=40))
def test_components_name_the_smallest_of_what_hangs_together(edges: list[tuple[int, int]]):
    left, right = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    nodes, roots = components(left, right)
    root = {node: node for edge in edges for node in edge}
    for _ in root:
        for one, other in edges:
            root[one] = root[other] = min(root[one], root[other])
    assert dict(zip(nodes.tolist(), roots.tolist(), strict=True)) == root


def test_a_thousand_near_copies_are_not_compared_each_with_each():
    """Half a million pairs hang together by a few thousand comparisons."""
    compared = 0

    def count(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(left)
        return always(left, right)

    hashes = np.arange(1 << 10, dtype=np.uint64)
    found = pairs_of(hamming_pairs(hashes, count, max_distance=4))
    assert set(clusters_of(found).values()) == {0}
    assert compared < 5 * len(hashes)


def test_nothing_has_no_pairs():
    assert pairs_of(hamming_pairs(np.empty(0, np.uint64), always, max_distance=4)) == set()
    assert pairs_of(minhash_pairs(np.empty((0, 128), np.uint32), np.empty(0, np.int64), threshold=0.8)) == set()
