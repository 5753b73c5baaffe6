"""Where the documents of a packed batch are, in the forms that attention kernels ask for.

The offsets are there at once: kernels for sequences of any length ask for no more. The rest is made when it is first
asked for, and once for all layers: buckets (documents of similar length, in small batches of their own) and the mask of
blocks of flex attention.

Shapes: T ids of the batch, row after row; S slots (ids and padding, bucket after bucket).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Buckets:
    """Documents by length.

    Attributes:
        sizes: (documents, padded length) of each.
        id_of_slot: (S,) flat position of the id in each slot; T for padding.
        slot_of_id: (T,).
    """

    sizes: tuple[tuple[int, int], ...]
    id_of_slot: torch.Tensor
    slot_of_id: torch.Tensor


@dataclass(frozen=True, eq=False)
class DocumentLayout:
    """The documents of one forward pass.

    Attributes:
        offsets: (documents + 1,) int32 on the device: flat positions where documents begin, and T.
        longest: ids of the longest document, rounded up to a power of two, so that few values ever occur.
        host_offsets: the same as ``offsets``, on the host.
    """

    offsets: torch.Tensor
    longest: int
    host_offsets: npt.NDArray[np.int64]

    @cached_property
    def by_length(self) -> Buckets:
        """Groups of similar length, none padded by more than an eighth (or to a multiple of 8)."""
        return _make_buckets(self.host_offsets, self.offsets.device)

    @cached_property
    def block_mask(self) -> Any:
        """Of flex attention, over all T ids as one sequence."""
        from torch.nn.attention.flex_attention import create_block_mask

        total, device = int(self.host_offsets[-1]), self.offsets.device
        lengths = torch.from_numpy(np.diff(self.host_offsets)).to(device)
        document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=total)

        def same_document_before(
            batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
        ) -> torch.Tensor:
            del batch, head
            return (document[query] == document[key]) & (query >= key)

        return create_block_mask(same_document_before, None, None, total, total, device=device)

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """See :class:`Buckets`."""
        return self.by_length.sizes

    @property
    def id_of_slot(self) -> torch.Tensor:
        """See :class:`Buckets`."""
        return self.by_length.id_of_slot

    @property
    def slot_of_id(self) -> torch.Tensor:
        """See :class:`Buckets`."""
        return self.by_length.slot_of_id


def lay_out_documents(starts: npt.NDArray[np.int64], total: int, device: torch.device) -> DocumentLayout:
    """Describe the documents of a batch.

    Args:
        starts: (documents,) ascending flat positions, the first 0; a document ends where the next begins.
        total: T.
    """
    offsets = np.append(starts, total).astype(np.int64)
    longest = int(np.diff(offsets).max())
    return DocumentLayout(
        torch.from_numpy(offsets.astype(np.int32)).to(device), 1 << (longest - 1).bit_length(), offsets
    )


def _make_buckets(offsets: npt.NDArray[np.int64], device: torch.device) -> Buckets:
    starts, total, lengths = offsets[:-1], int(offsets[-1]), np.diff(offsets)
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
    return Buckets(
        tuple(zip(counts.tolist(), sizes.tolist(), strict=True)),
        torch.from_numpy(id_of_slot).to(device),
        torch.from_numpy(slot_of_id).to(device),
    )
