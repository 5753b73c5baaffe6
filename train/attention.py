"""Causal attention that keeps the documents of a packed row apart, by computing each where it is.

A row of short documents needs a small part of its attention matrix: the blocks on the diagonal. Masking computes the
whole matrix and throws the rest away; here documents of similar length are gathered into small batches of their own,
attended to with torch's fused causal kernel, and put back. On two cores and picture-sized documents this takes a third
off a training step; the numbers are those of documents that were never packed.

It is registered under a name of its own, for which transformers makes no mask. So nothing depends on its detection of
packed rows, which is off, silently, whenever there is a mask or a cache.

Shapes: B rows, L ids a row, T = B * L ids, S slots (ids and padding, bucket after bucket), H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "anygpt_documents"

_SHORT = 128
"""Up to this length the fused kernel's backward pass on a CPU takes two to four times as long as the plain one."""


@dataclass(frozen=True, slots=True)
class DocumentLayout:
    """Where the documents of a batch are, and where they are computed.

    Attributes:
        buckets: (documents, padded length) of each.
        id_of_slot: (S,) flat position of the id in each slot; T for padding.
        slot_of_id: (T,).
    """

    buckets: tuple[tuple[int, int], ...]
    id_of_slot: torch.Tensor
    slot_of_id: torch.Tensor


def lay_out_documents(starts: npt.NDArray[np.int64], total: int, device: torch.device) -> DocumentLayout:
    """Group documents by length, padding none by more than an eighth (or to a multiple of 8).

    Args:
        starts: (documents,) ascending flat positions, the first 0; a document ends where the next begins.
        total: T.
    """
    lengths = np.diff(np.append(starts, total))
    # Steps of a sixteenth to an eighth of the length: 8 up to 128, then 16 up to 256, and so on.
    steps = np.maximum(8, 2 ** np.floor(np.log2(np.maximum(lengths, 2) - 0.5)).astype(np.int64) // 8)
    padded = -(-lengths // steps) * steps
    order = np.lexsort((starts, padded))
    sizes, counts = np.unique(padded, return_counts=True)
    first_slots = np.cumsum(padded[order]) - padded[order]
    within = np.arange(total) - np.repeat(starts, lengths)
    slot_of_document = np.empty_like(starts)
    slot_of_document[order] = first_slots
    slot_of_id = np.repeat(slot_of_document, lengths) + within
    id_of_slot = np.full(int(padded.sum()), total)
    id_of_slot[slot_of_id] = np.arange(total)
    return DocumentLayout(
        tuple(zip(counts.tolist(), sizes.tolist(), strict=True)),
        torch.from_numpy(id_of_slot).to(device),
        torch.from_numpy(slot_of_id).to(device),
    )


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
        return _fused_attention(query, key, value, scaling).transpose(1, 2), None
    rows, heads, length, size = query.shape
    inputs = (tensor.transpose(1, 2).reshape(rows * length, heads * size) for tensor in (query, key, value))
    sizes = [count * padded for count, padded in documents.buckets]
    # `split`, not slices: the gradient of a slice is a whole tensor of zeros with a little in it.
    slots = [torch.split(_reindex(t, documents.id_of_slot, documents.slot_of_id), sizes) for t in inputs]
    outputs = []
    for (count, padded), *bucket in zip(documents.buckets, *slots, strict=True):
        bucket_query, bucket_key, bucket_value = (t.view(count, padded, heads, size).transpose(1, 2) for t in bucket)
        short = padded <= _SHORT and query.device.type == "cpu"
        attend_to = _plain_attention if short else _fused_attention
        output = attend_to(bucket_query, bucket_key, bucket_value, scaling)
        outputs.append(output.transpose(1, 2).reshape(count * padded, heads * size))
    back = _reindex(torch.cat(outputs), documents.slot_of_id, documents.id_of_slot)
    return back.view(rows, length, heads, size), None


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
