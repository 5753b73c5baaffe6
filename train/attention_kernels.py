"""Kernels for the documents of a packed row on a GPU, behind one signature, and the choice among them.

Each takes all ids of a batch as one sequence with the places where documents begin. What they are:

* ``flash3``, ``flash2``: the packages ``flash_attn_interface`` (Hopper) and ``flash_attn``, where somebody installed them;
* ``varlen``: ``torch.nn.attention.varlen``, FlashAttention-2 as torch brings it, from 2.10 on; nothing to install;
* ``flex``: torch's flex attention, compiled by Triton; in any dtype, so also for a run in float32;
* ``buckets``: ours (:mod:`train.attention`), the one that runs, and has a gradient, on a CPU.

Shapes: T ids of the batch, H heads, D head size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.nn import functional as F

from shards.errors import ConfigError
from train.document_layout import DocumentLayout, lay_out_documents

Kernel = Literal["flash3", "flash2", "varlen", "flex", "buckets"]
Varlen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, DocumentLayout, float], torch.Tensor]
"""(query, key, value: (T, H, D) each, documents, scaling) -> (T, H, D)."""

_MODULES: dict[Kernel, str] = {
    "flash3": "flash_attn_interface",
    "flash2": "flash_attn",
    "varlen": "torch.nn.attention.varlen",
    "flex": "torch.nn.attention.flex_attention",
}
_TOLERANCE = 0.05
"""Of values of order one in 16 bits; documents that see each other differ by about one."""

_FLASH: tuple[Kernel, ...] = ("flash3", "flash2", "varlen")


def choose_kernel(wanted: Kernel | Literal["auto"], *, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel of a run.

    Args:
        wanted: ``auto`` takes the first of the list above that this machine has.
        dtype: of the weights.

    Raises:
        ConfigError: the one asked for is not installed, or cannot compute on this device or in this dtype.
    """
    if wanted == "auto":
        order: tuple[Kernel, ...] = (*_FLASH, "flex", "buckets")
        return next(kernel for kernel in order if not _obstacle(kernel, device, dtype))
    obstacle = _obstacle(wanted, device, dtype)
    if obstacle:
        raise ConfigError(
            f"engine.attention_kernel: expected one that runs here, found {wanted!r}, which {obstacle}; 'auto' takes "
            f"{choose_kernel('auto', device=device, dtype=dtype)!r}"
        )
    return wanted


def varlen_kernel(kernel: Kernel) -> Varlen:
    """The function behind a name; not for ``buckets``, which takes no flat sequence."""
    return {"flash3": _flash3, "flash2": _flash2, "varlen": _torch_varlen, "flex": _flex}[kernel]


def check_kernel(kernel: Kernel, *, device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Compare a kernel with torch's attention over one document after the other, on a few documents: a second at the start.

    A kernel that reads its offsets another way than we write them would let documents see each other without a word.

    Raises:
        ConfigError: it gives other values, or (on a GPU) other gradients.
    """
    starts = np.cumsum([0, 37, 1, 130])
    documents, scaling = lay_out_documents(starts, 300, device), head_size**-0.5
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(300, 2, head_size, generator=generator, device="cpu").to(device, dtype) for _ in range(4)]
    inputs, probe = [tensor.requires_grad_(device.type == "cuda") for tensor in drawn[:3]], drawn[3]
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    query, key, value = inputs
    found = [attention(query, key, value, documents, scaling) for attention in (varlen_kernel(kernel), _one_by_one)]
    pairs.append((found[0], found[1]))
    if device.type == "cuda":
        gradients = [torch.autograd.grad((output * probe).sum(), inputs) for output in found]
        pairs += list(zip(*gradients, strict=True))
    worst = max(float((ours.float() - theirs.float()).abs().max()) for ours, theirs in pairs)
    if not worst < _TOLERANCE:
        raise ConfigError(
            f"engine.attention_kernel: expected {kernel!r} to compute documents as if they were alone, found values that "
            f"differ by {worst:.3g}; choose another, or another version of its package"
        )


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    parts: list[torch.Tensor] = []
    for start, stop in pairwise(documents.host_offsets.tolist()):
        q, k, v = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)[0].transpose(0, 1))
    return torch.cat(parts)


def _obstacle(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel cannot be had; empty if it can."""
    if kernel == "buckets":
        return ""
    if device.type != "cuda":
        return "needs a GPU"
    if kernel in _FLASH and dtype not in (torch.bfloat16, torch.float16):
        return f"computes in 16 bits, not in {dtype}"
    if kernel in _FLASH and torch.cuda.get_device_capability(device) < (9 if kernel == "flash3" else 8, 0):
        return "needs a newer GPU"
    try:
        found = importlib.util.find_spec(_MODULES[kernel])
    except ModuleNotFoundError:
        found = None
    return "" if found else f"needs the module {_MODULES[kernel]}, which is not installed"


def _flash3(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    attention = import_module(_MODULES["flash3"]).flash_attn_varlen_func
    output = attention(query, key, value, softmax_scale=scaling, causal=True, **_offsets(documents))
    return cast(torch.Tensor, output[0] if isinstance(output, tuple) else output)  # early versions add the log-sum


def _flash2(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    attention = import_module(_MODULES["flash2"]).flash_attn_varlen_func
    output = attention(query, key, value, softmax_scale=scaling, causal=True, **_offsets(documents))
    return cast(torch.Tensor, output)


def _offsets(documents: DocumentLayout) -> dict[str, Any]:
    places, longest = documents.offsets, documents.longest
    return {"cu_seqlens_q": places, "cu_seqlens_k": places, "max_seqlen_q": longest, "max_seqlen_k": longest}


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    places, longest = documents.offsets, documents.longest
    # (-1, 0): everything before, nothing after.
    window = (-1, 0)
    output = varlen_attn(query, key, value, places, places, longest, longest, scale=scaling, window_size=window)
    return cast(torch.Tensor, output)


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    heads_first = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    output = _flex_attention(query.device.type)(*heads_first, block_mask=documents.block_mask, scale=scaling)
    return output[0].transpose(0, 1)


@lru_cache
def _flex_attention(device_type: str) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it makes the whole matrix of scores: right for a test on a CPU, too slow and large for a GPU.
    return cast(Callable[..., torch.Tensor], torch.compile(flex_attention) if device_type == "cuda" else flex_attention)
