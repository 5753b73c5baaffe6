"""Causal attention that keeps the documents of a packed row apart, by computing each where it is.

A row of short documents needs a small part of its attention matrix: the blocks on the diagonal. Masking computes the
whole matrix and throws the rest away. On a GPU kernels for sequences of any length compute the blocks alone
(:mod:`train.attention_kernels`). On a CPU documents of similar length are gathered into small batches of their own,
attended to with torch's fused causal kernel, and put back: on two cores and picture-sized documents this takes a third
off a training step. Either way the numbers are those of documents that were never packed.

It is registered under a name of its own, for which transformers makes no mask. So nothing depends on its detection of
packed rows, which is off, silently, whenever there is a mask or a cache.

Shapes: B rows, L ids a row, T = B * L ids, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from train.attention_kernels import Kernel, varlen_kernel
from train.document_layout import DocumentLayout, lay_out_documents

__all__ = ["NAME", "DocumentLayout", "attend", "lay_out_documents", "set_kernel"]

NAME = "anygpt_documents"

_SHORT = 128
"""Up to this length the fused kernel's backward pass on a CPU takes two to four times as long as the plain one."""

_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def set_kernel(network: nn.Module, kernel: Kernel, *, cudnn: bool = False) -> None:
    """Say what computes every attention layer of a network; ``buckets`` and torch's own choice where nobody says.

    Args:
        kernel: for documents kept apart.
        cudnn: prefer cuDNN's attention for whole rows.
    """
    for name, module in network.named_modules():
        if name.endswith("self_attn"):
            module.document_kernel, module.prefers_cudnn = kernel, cudnn  # pyright: ignore[reportArgumentType]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    documents: DocumentLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface.

    Args:
        query: (B, H, L, D).
        key, value: (B, H or fewer, L, D).
        documents: None lets all documents of a row see each other.

    Returns:
        (B, L, H, D), and no attention weights.
    """
    if attention_mask is not None:
        raise ValueError("expected no attention mask: packed rows are told apart by their documents")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if documents is None:
        if getattr(module, "prefers_cudnn", False):
            with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
                return _fused_attention(query, key, value, scaling).transpose(1, 2), None
        return _fused_attention(query, key, value, scaling).transpose(1, 2), None
    kernel: Kernel = getattr(module, "document_kernel", "buckets")
    if kernel != "buckets":
        rows, heads, length, size = query.shape
        flat = [tensor.transpose(1, 2).reshape(rows * length, heads, size) for tensor in (query, key, value)]
        output = varlen_kernel(kernel)(flat[0], flat[1], flat[2], documents, scaling)
        return output.view(rows, length, heads, size), None
    return _bucketed_attention(query, key, value, documents, scaling), None  # pyright: ignore[reportCallIssue]


@torch.compiler.disable  # other buckets every time: a compiled one would be compiled again for every batch
def _bucketed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
) -> torch.Tensor:
    """(B, H, L, D) each -> (B, L, H, D)."""
    rows, heads, length, size = query.shape
    inputs = (tensor.transpose(1, 2).reshape(rows * length, heads * size) for tensor in (query, key, value))
    sizes = [count * padded for count, padded in documents.buckets]
    # `split`, not slices: the gradient of a slice is a whole tensor of zeros with a little in it.
    slots = [torch.split(_reindex(t, documents.id_of_slot, documents.slot_of_id), sizes) for t in inputs]
    outputs: list[torch.Tensor] = []
    for (count, padded), *bucket in zip(documents.buckets, *slots, strict=True):
        bucket_query, bucket_key, bucket_value = (t.view(count, padded, heads, size).transpose(1, 2) for t in bucket)
        short = padded <= _SHORT and query.device.type == "cpu"
        attend_to = _plain_attention if short else _fused_attention
        output = attend_to(bucket_query, bucket_key, bucket_value, scaling)
        outputs.append(output.transpose(1, 2).reshape(count * padded, heads * size))
    back = _reindex(torch.cat(outputs), documents.slot_of_id, documents.id_of_slot)
    return back.view(rows, length, heads, size)


def _fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal; all (B, H, L, D)."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)


def _plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same, with the attention matrix in memory."""
    rows, heads, length, size = query.shape
    flat_query, flat_key, flat_value = (t.reshape(rows * heads, length, size) for t in (query, key, value))
    later = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(later.expand(rows * heads, -1, -1), flat_query, flat_key.transpose(1, 2), alpha=scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(weights, flat_value).view(rows, heads, length, size)


def _reindex(source: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return _Reindex.apply(source, index, inverse)  # pyright: ignore[reportReturnType]


class _Reindex(torch.autograd.Function):
    """``source[index]``, an index of ``len(source)`` giving zeros; its gradient is the same with the inverse index."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index, inverse)
        return _select(source, index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return _select(gradients[0], inverse), None, None


def _select(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return F.pad(source, (0, 0, 0, 1)).index_select(0, index)


AttentionInterface.register(NAME, attend)
