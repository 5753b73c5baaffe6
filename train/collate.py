"""Rows become a batch: which ids are targets, and which position each id has in its own document.

A target is an id inside a loss span that does not open a document: the model must not learn to guess a document from
the one before it. With ``attention = "document"`` positions start again at every document, and the batch says where
documents are (:mod:`train.attention`).

Ids stay as narrow as they are stored until they are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from shards.mixed_rows import MixedRows, Rows
from shards.vocabulary import TokenIds
from train.attention import DocumentLayout, lay_out_documents
from train.masking import Masking
from train.speech_layout import SpeechLayout, lay_out_speech

Attention = Literal["row", "document"]
IGNORED = -100
"""Label of an id that is no target."""


@dataclass(frozen=True, slots=True)
class HostBatch:
    """One process's rows of a global batch; the arrays are filled again for a later batch.

    Attributes:
        token_ids: (rows, length), as stored.
        is_target: (rows, length).
        position_ids: (rows, length), or None when documents of a row see each other.
        datasets: (rows,) which dataset of the mixture each row is from.
        is_hidden: (rows, length) ids that the network does not see, with an objective that hides some.
        positions: (rows,) of the mixture; none where rows come from elsewhere.
    """

    token_ids: TokenIds
    is_target: npt.NDArray[np.bool_]
    position_ids: npt.NDArray[np.int32] | None
    datasets: npt.NDArray[np.int64]
    is_hidden: npt.NDArray[np.bool_] | None = None
    positions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def num_targets(self) -> int:
        """Ids that count for the loss."""
        return int(self.is_target.sum())


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass reads, on the device; labels are :data:`IGNORED` where an id is no target."""

    input_ids: torch.Tensor  # (rows, length)
    labels: torch.Tensor  # (rows, length)
    position_ids: torch.Tensor | None  # (rows, length)
    datasets: torch.Tensor  # (rows,)
    documents: DocumentLayout | None
    speech: SpeechLayout | None = None


def allocate(rows: int, length: int, dtype: np.dtype[Any], attention: Attention, *, hides: bool = False) -> HostBatch:
    """Buffers for :func:`fill`; ``hides`` if it will be given a masking."""
    return HostBatch(
        np.zeros((rows, length), dtype),
        np.zeros((rows, length), np.bool_),
        np.zeros((rows, length), np.int32) if attention == "document" else None,
        np.zeros(rows, np.int64),
        np.zeros((rows, length), np.bool_) if hides else None,
        np.zeros(rows, np.int64),
    )


def fill(
    batch: HostBatch, mixed: MixedRows, rows: Rows, *, start: int = 0, masking: Masking | None = None
) -> HostBatch:
    """Gather rows into a batch's buffers, in the order given, until they are full.

    Args:
        start: the first of the rows.
        masking: hides ids by the rows' positions, and says which are targets.
    """
    length = batch.token_ids.shape[1]
    part = slice(start, start + len(batch.token_ids))
    batch.datasets[:] = rows.datasets[part]
    batch.positions[:] = rows.positions[part]
    mixed.gather(rows, batch.token_ids, start=start)
    if masking is not None and batch.is_hidden is not None:
        for place, position in enumerate(rows.positions[part].tolist()):
            batch.is_target[place], batch.is_hidden[place] = masking.mark(batch.token_ids[place], position)
        return batch
    for place, (number, row) in enumerate(zip(rows.shards[part].tolist(), rows.rows[part].tolist(), strict=True)):
        shard = mixed.shard(number)
        starts = shard.document_starts(row)
        mark_targets(batch.is_target[place], shard.loss_spans(row), starts)
        if batch.position_ids is not None:
            batch.position_ids[place] = document_positions(starts, length)
    return batch


def mark_targets(
    out: npt.NDArray[np.bool_], loss_spans: npt.NDArray[np.int32], document_starts: npt.NDArray[np.int32]
) -> None:
    """Mark which ids of a row are targets.

    Args:
        out: (length,) filled whole.
        loss_spans: (spans, 2) half-open, disjoint.
        document_starts: (documents,).
    """
    out[:] = False
    # Rows have tens of spans: filling them one by one is faster than any pass over all ids.
    for start, stop in loss_spans.tolist():
        out[start:stop] = True
    out[document_starts] = False


def document_positions(document_starts: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
    """(length,) place of each id in its document; padding counts on from the last one."""
    sizes = np.diff(np.append(document_starts, length))
    return np.arange(length, dtype=np.int32) - np.repeat(document_starts, sizes).astype(np.int32)


def micro_batches(
    batch: HostBatch, rows: int, device: torch.device, *, masking: Masking | None = None
) -> Iterator[MicroBatch]:
    """Cut a batch into forward passes of ``rows`` rows and widen it on the device."""
    for start in range(0, len(batch.token_ids), rows):
        part = slice(start, start + rows)
        ids = torch.from_numpy(batch.token_ids[part]).to(device).long()
        labels = ids.masked_fill(torch.from_numpy(~batch.is_target[part]).to(device), IGNORED)
        positions = documents = speech = None
        if masking is not None and batch.is_hidden is not None:
            spans = masking.spans(batch.token_ids[part], batch.is_target[part])
            speech = lay_out_speech(spans, batch.is_hidden[part], masking, device)
        if batch.position_ids is not None:
            starts = np.flatnonzero(batch.position_ids[part] == 0)
            documents = lay_out_documents(starts, ids.numel(), device)
            positions = torch.from_numpy(batch.position_ids[part]).to(device).long()
        datasets = torch.from_numpy(batch.datasets[part]).to(device)
        yield MicroBatch(ids, labels, positions, datasets, documents, speech)
