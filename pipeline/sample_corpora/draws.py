"""Deterministic randomness: every draw comes from a seed and a stable key, never from a global generator.

Item 17 of a corpus is the same item whatever was rendered before it, in whichever process, whatever ``--limit`` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

OptionT = TypeVar("OptionT")


def generator(seed: int, *key: object) -> np.random.Generator:
    """A fresh generator for this seed and key."""
    return np.random.Generator(np.random.PCG64(stable_int(seed, *key)))


def pick(rng: np.random.Generator, options: Sequence[OptionT]) -> OptionT:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def balanced(options: Sequence[OptionT], index: int, seed: int, *key: object) -> OptionT:
    """The ``index``-th draw without replacement; every ``len(options)`` draws use each option exactly once."""
    epoch, place = divmod(index, len(options))
    return options[_order(len(options), seed, *map(str, key), epoch)[place]]


def stable_int(*key: object, num_bytes: int = 16) -> int:
    """An unsigned integer that depends on the key alone, on every machine and in every process."""
    return int.from_bytes(_digest(key, num_bytes), "little")


def stable_hex(*key: object, digits: int) -> str:
    """``digits`` hex digits (an even number, at most 128) that depend on the key alone."""
    return _digest(key, digits // 2).hex()


def _digest(key: tuple[object, ...], num_bytes: int) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=num_bytes).digest()


@lru_cache(maxsize=256)
def _order(size: int, seed: int, *key: object) -> tuple[int, ...]:
    return tuple(int(place) for place in generator(seed, "order", *key).permutation(size))
