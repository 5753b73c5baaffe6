"""Choosing the next id: greedy or nucleus (top-p), with a repetition penalty.

Source: AnyGPT Table 9. Every draw comes from (seed, the request's key, the position), so an answer does not depend on
what else is in its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from pydantic import Field

from configs.load import Config

_MASKED = float("-inf")


class SamplingConfig(Config):
    """How ids of one modality are drawn."""

    temperature: float = Field(default=1.0, ge=0.0)
    """0 takes the likeliest id."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the likeliest so many; 0: among all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw among the likeliest whose probabilities reach this together."""
    repetition_penalty: float = Field(default=1.0, ge=1.0)
    num_beams: int = Field(default=1, ge=1)
    """Hypotheses of a text that are kept; a medium is always drawn id by id."""
    length_penalty: float = Field(default=1.0, ge=0.0)
    """Hypotheses are compared by their log-probability over their length to this power."""


def choose(
    logits_BV: torch.Tensor,
    allowed_BV: torch.Tensor,
    history: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    position: int,
    sampling: SamplingConfig,
    seed: int,
) -> list[int]:
    """One id per answer.

    Args:
        logits_BV: (answers, vocabulary) float.
        allowed_BV: (answers, vocabulary) bool: what the grammar allows each answer now.
        history: ids of each answer so far, for the repetition penalty.
        keys: what each answer's random draws depend on.
    """
    logits = logits_BV.float().clone()
    if sampling.repetition_penalty != 1.0:
        _penalise(logits, history, sampling.repetition_penalty)
    logits.masked_fill_(~allowed_BV, _MASKED)
    if sampling.temperature == 0.0:
        return logits.argmax(-1).tolist()
    probabilities = (logits / sampling.temperature).softmax(-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0).double()
    reached = ordered.cumsum(-1)
    draws = torch.tensor([_uniform(seed, key, position) for key in keys], dtype=torch.double)
    rank = torch.searchsorted(reached, (draws * reached[:, -1])[:, None], right=True).clamp(max=ids.shape[-1] - 1)
    return ids.gather(-1, rank)[:, 0].tolist()


def _penalise(logits: torch.Tensor, history: Sequence[Sequence[int]], penalty: float) -> None:
    for row, ids in enumerate(history):
        if ids:
            seen = torch.tensor(sorted(set(ids)))
            values = logits[row, seen]
            logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)


def _uniform(seed: int, key: str, position: int) -> float:
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)
