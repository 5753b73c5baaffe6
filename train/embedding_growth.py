"""New rows for embedding and head: the ids of dialogue markers and media that a text model does not know.

Source: AnyGPT (arXiv 2402.12226) section 3.2: the embeddings of new tokens are "initialized randomly"; its code draws
them from normal(0, ``initializer_range``). That is the default. ``mean`` begins near the mean of the old rows, so that no
new id is likelier than an average old one and the text loss hardly moves.

Transformers draws around the mean with the covariance of the old rows, shrunk, which costs a decomposition of a hidden x
hidden matrix, twice. The difference of two old rows taken at random has that very covariance (times two), so here a new
row is the mean plus such a difference, shrunk: the same first two moments for the price of a look-up.

Rows are a function of the seed, the name of the tensor and the numbers of rows; old rows are kept bit for bit.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

MEAN_SPREAD = 0.01
"""Standard deviation of ``mean`` rows around the mean, in those of the old rows: small, and not lost in bfloat16."""


def grow_rows(
    old: torch.Tensor, size: int, *, key: str, seed: int, how: Literal["random", "mean"], std: float
) -> torch.Tensor:
    """A matrix with the old rows and new ones after them.

    Args:
        old: (rows, D).
        key: of this matrix; embedding and head get different rows.
        std: of ``random`` rows.

    Returns:
        (size, D) in the dtype and on the device of ``old``; ``old`` itself if it has that many rows.
    """
    if len(old) == size:
        return old
    generator = torch.Generator().manual_seed(_seed_of(seed, key))
    grown = pad_rows(old, size)
    grown[len(old) :] = _new_rows(old, size - len(old), generator, how, std)
    return grown


def pad_rows(old: torch.Tensor, size: int) -> torch.Tensor:
    """(size, D): the old rows, then zeros; ``old`` itself if it has that many rows."""
    if len(old) == size:
        return old
    assert len(old) < size, f"a matrix of {len(old)} rows cannot grow to {size}"
    padded = old.new_zeros(size, old.shape[1])
    padded[: len(old)] = old
    return padded


def _new_rows(
    old: torch.Tensor, count: int, generator: torch.Generator, how: Literal["random", "mean"], std: float
) -> torch.Tensor:
    """(count, D) float32, drawn on the CPU, so that a run starts from the same weights on any machine."""
    if how == "random":
        return torch.empty(count, old.shape[1]).normal_(0.0, std, generator=generator)
    mean = old.mean(dim=0, dtype=torch.float64).float()  # adds up without a float32 copy of all rows
    pairs = torch.randint(len(old), (2, count), generator=generator).to(old.device)
    difference = old[pairs[0]].float() - old[pairs[1]].float()
    return mean + difference * (MEAN_SPREAD / 2**0.5)


def _seed_of(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") >> 1
