"""A keyed bijection of the numbers below a size: the order of rows without a list of rows.

A Feistel network of four rounds on pairs (left, right) of ``range(a) * range(b)`` with ``a * b`` just above the size; what
falls outside goes through it again, which keeps it a bijection (cycle walking, Black & Rogaway 2002). A dataset of a
billion rows costs no memory, and every key is an order of its own. The same four rounds are part of
:data:`shards.mixture.ORDER_VERSION`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

# Odd constants of splitmix64 (Steele, Lea, Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUND_CONSTANTS = np.arange(1, 5, dtype=np.uint64) * _GOLDEN
_HALF = np.uint64(32)


def permute(offsets: Int64s, size: int, *, keys: Keys) -> Int64s:
    """Send each offset to its place in a keyed permutation of ``range(size)``.

    Args:
        offsets: (n,) in ``[0, size)``; ``size`` is at most 2**62.
        keys: (n,) the key of each offset; offsets with equal keys belong to one permutation.

    Returns:
        (n,) in ``[0, size)``.
    """
    one, other = (np.broadcast_to(np.uint64(side), offsets.shape) for side in sides(size))
    return permute_each(offsets, np.broadcast_to(np.int64(size), offsets.shape), one, other, keys=keys)


def permute_each(offsets: Int64s, sizes: Int64s, one: Keys, other: Keys, *, keys: Keys) -> Int64s:
    """:func:`permute`, each offset in a range of its own, whose rectangle has these :func:`sides`."""
    found = _feistel(offsets.astype(np.uint64), one, other, keys)
    limits = sizes.astype(np.uint64)
    walking = np.flatnonzero(found >= limits)
    while walking.size:
        found[walking] = _feistel(found[walking], one[walking], other[walking], keys[walking])
        walking = walking[found[walking] >= limits[walking]]
    return found.astype(np.int64)


def sides(size: int) -> tuple[int, int]:
    """Sides of the smallest near-square rectangle that holds so many numbers."""
    one = math.isqrt(size - 1) + 1
    return one, -(-size // one)


def key_of(seed: int, name: str) -> int:
    """A key that follows from a seed and a name, on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def numbered(keys: Keys, numbers: Int64s) -> Keys:
    """(n,) another key for each number: of an epoch, of a window."""
    return _mix(keys + numbers.astype(np.uint64) * _GOLDEN)


def _feistel(values: Keys, one: Keys, other: Keys, keys: Keys) -> Keys:
    left = values // other
    right = values - left * other
    for number, constant in enumerate(_ROUND_CONSTANTS):
        moved, still, modulus = (left, right, one) if number % 2 == 0 else (right, left, other)
        moved += _below(still, keys + constant, modulus)
        # Both terms are below the modulus: a subtraction is the remainder, and where it is not wanted it wraps around.
        np.minimum(moved, moved - modulus, out=moved)
    left *= other
    left += right
    return left


def _below(values: Keys, keys: Keys, modulus: Keys) -> Keys:
    """Pseudo-random numbers below ``modulus`` (at most 2**31), by the high half of a product instead of a division."""
    mixed = values * _MIX_1
    mixed += keys
    mixed ^= mixed >> _HALF
    mixed *= _MIX_2
    mixed >>= _HALF
    mixed *= modulus
    mixed >>= _HALF
    return mixed


def _mix(values: Keys) -> Keys:
    """splitmix64's finalizer: every bit of the input moves about half the bits of the output."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
