"""Choosing the next id: greedy, or drawn from the likeliest (top-k, then top-p), with a repetition penalty.

Source: AnyGPT Table 9; the order of the steps (penalty, temperature, top-k, top-p) is that of ``transformers``. Every
draw comes from (seed, the request's key, the position), so an answer does not depend on what else is in its batch.

Only the ids that the grammar allows are looked at: K of them, fewer than the vocabulary's.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from inference.sampling_config import SamplingConfig

_MASKED = float("-inf")

GREEDY = SamplingConfig(temperature=0.0)


def choose(
    logits_BK: torch.Tensor, said_BK: torch.Tensor | None, sampling: SamplingConfig, uniforms_B: torch.Tensor
) -> torch.Tensor:
    """(B,) int64: which of the K ids each answer takes.

    Args:
        logits_BK: float, of allowed ids only.
        said_BK: bool, ids that the answer has; none is needed without a penalty.
        uniforms_B: float64 in [0, 1), see :func:`uniform`.
    """
    logits = penalised(logits_BK, said_BK, sampling)
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    kept, places = _likeliest(logits / sampling.temperature, sampling)
    # In double, so that many small probabilities add up to one.
    reached = kept.softmax(-1).cumsum(-1, dtype=torch.double)
    wanted = (uniforms_B * reached[:, -1])[:, None]
    rank = torch.searchsorted(reached, wanted, right=True).clamp(max=reached.shape[-1] - 1)
    return (rank if places is None else places.gather(-1, rank))[:, 0]


def log_probabilities(logits_BK: torch.Tensor, said_BK: torch.Tensor | None, sampling: SamplingConfig) -> torch.Tensor:
    """(B, K) log-probabilities of what :func:`choose` would draw from; with temperature 0 those of the model."""
    logits = penalised(logits_BK, said_BK, sampling)
    if sampling.temperature == 0.0:
        return logits.log_softmax(-1)
    logits = logits / sampling.temperature
    kept, places = _likeliest(logits, sampling)
    if places is None:
        return kept.log_softmax(-1)
    return torch.full_like(logits, _MASKED).scatter_(-1, places, kept.log_softmax(-1))


def penalised(logits_BK: torch.Tensor, said_BK: torch.Tensor | None, sampling: SamplingConfig) -> torch.Tensor:
    """Logits in float32, with what was said before made less likely."""
    logits, penalty = logits_BK.float(), sampling.repetition_penalty
    if penalty == 1.0 or said_BK is None:
        return logits
    return torch.where(said_BK, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _likeliest(logits: torch.Tensor, sampling: SamplingConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of the top-k and top-p, likeliest first, and their places; all of them in their own order if neither."""
    places = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, places = logits.topk(sampling.top_k, dim=-1)
    if sampling.top_p < 1.0:
        if places is None:
            logits, places = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        logits = logits.masked_fill(before >= sampling.top_p, _MASKED)
    return logits, places


def uniform(seed: int, key: str, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    # 52 bits: times a sum in double it stays below the sum, so no rounding reaches past the last id.
    return (int.from_bytes(_digest(seed, key, position)) >> 12) / (1 << 52)


def gumbels(seed: int, key: str, position: int, count: int) -> torch.Tensor:
    """(count,) float32 Gumbel noise: the largest log-probabilities plus noise are a draw without replacement."""
    philox = np.random.Philox(key=int.from_bytes(_digest(seed, key, position)))
    return torch.from_numpy(np.random.Generator(philox).gumbel(size=count).astype(np.float32))


def _digest(seed: int, key: str, position: int) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{key}\x1f{position}".encode(), digest_size=8).digest()
