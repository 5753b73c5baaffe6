"""The nearest codebook vector, one level or several in a row (residual vector quantisation).

Always true float32, distances and residuals alike: half-precision products change 10 to 91 % of the codes (tokenizers
sheet 1.5, 5.2), so whatever is not float32 is refused, not widened, and TF32 and autocast are off inside. The squared
distance is ``|x|^2 - 2 x.e + |e|^2``; the first term is the same for every code and left out, half of the last is known
beforehand, so the nearest code is the largest of one addmm. That gives the same codes as the long form, without its
temporaries.

Letters: N latents, D their width, K codes of a codebook, Q levels, ... any leading axes.
"""

from __future__ import annotations

import torch

from pipeline.tokenizers.precision import arithmetic

_BLOCK = 1 << 16
"""Latents looked up at a time, which bounds the (N, K) scores to a few hundred MB."""


def half_norms(codebooks: torch.Tensor) -> torch.Tensor:
    """``|e|^2 / 2`` of every code: (..., K, D) float32 to (..., K) float32."""
    _require_float32(codebooks, "codebooks")
    return codebooks.square().sum(dim=-1) / 2


def nearest_codes(
    latents_ND: torch.Tensor, codebook_KD: torch.Tensor, half_norms_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Index of the code with the smallest squared distance to each latent; the lowest index if several are as near.

    Args:
        half_norms_K: of :func:`half_norms`, if they are at hand.

    Returns:
        (N,) int64.

    Raises:
        ValueError: anything that is not float32.
    """
    for tensor, what in ((latents_ND, "latents"), (codebook_KD, "codebook")):
        _require_float32(tensor, what)
    norms = half_norms(codebook_KD) if half_norms_K is None else half_norms_K
    _require_float32(norms, "half norms")
    with arithmetic("fp32"):
        blocks = [
            torch.addmm(norms, block, codebook_KD.t(), beta=-1).argmax(dim=1) for block in latents_ND.split(_BLOCK)
        ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def encode_residual(
    latents: torch.Tensor, codebooks_QKD: torch.Tensor, half_norms_QK: torch.Tensor | None = None
) -> torch.Tensor:
    """Each level is the nearest code to what the levels before it left over.

    Args:
        latents: (..., D) float32, e.g. (B, T, D), or (frames, D) of all clips one after another.
        half_norms_QK: of :func:`half_norms`, if they are at hand.

    Returns:
        (..., Q) int64.

    Raises:
        ValueError: anything that is not float32.
    """
    _require_float32(latents, "latents")
    norms_QK = half_norms(codebooks_QKD) if half_norms_QK is None else half_norms_QK
    residual_ND = latents.reshape(-1, latents.shape[-1])
    levels: list[torch.Tensor] = []
    for number, (codebook_KD, norms_K) in enumerate(zip(codebooks_QKD, norms_QK, strict=True)):
        levels.append(nearest_codes(residual_ND, codebook_KD, norms_K))
        if number + 1 < len(codebooks_QKD):
            residual_ND = residual_ND - codebook_KD[levels[-1]]
    return torch.stack(levels, dim=-1).reshape(*latents.shape[:-1], len(levels))


def decode_residual(codes: torch.Tensor, codebooks_QKD: torch.Tensor, *, first_level: int = 0) -> torch.Tensor:
    """The sum of the code vectors of all levels given.

    Args:
        codes: (..., levels) int64; level ``first_level`` and those above it.

    Returns:
        (..., D) in the codebooks' dtype.
    """
    total = codebooks_QKD[first_level][codes[..., 0]]
    for number in range(1, codes.shape[-1]):
        total = total + codebooks_QKD[first_level + number][codes[..., number]]
    return total


def _require_float32(tensor: torch.Tensor, what: str) -> None:
    if tensor.dtype != torch.float32:
        raise ValueError(
            f"nearest codes: expected {what} in float32, found {tensor.dtype}; half precision changes codes, so widen what "
            "the encoder gives before the look-up"
        )
