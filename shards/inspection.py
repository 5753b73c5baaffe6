"""What the inspector shows, before it becomes a page: rows or samples as stretches of one modality each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards.manifest import Manifest
from shards.packed import sidecar_path
from shards.reader import PackedDataset
from shards.records import TokenizedSample, table_to_samples
from shards.storage import arrow_source
from shards.vocabulary import TokenIds, Vocabulary

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive ids of one document and one modality; a medium with its two markers is one stretch.

    Attributes:
        trained: (n,) whether each id is in a loss span.
    """

    modality: str
    start: int
    token_ids: TokenIds
    trained: Flags

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document, or a piece of one, within a row."""

    title: str
    direction: str
    draw: int
    stretches: tuple[Stretch, ...]

    def __len__(self) -> int:
        return sum(len(stretch) for stretch in self.stretches)


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A packed row taken apart."""

    number: int
    place: str
    num_tokens: int
    sequence_length: int
    documents: tuple[ShownDocument, ...]


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` numbers from ``range(total)``, evenly spread, first and last included."""
    if wanted >= total:
        return list(range(total))
    if wanted < 2:
        return list(range(min(wanted, total)))
    return [number * (total - 1) // (wanted - 1) for number in range(wanted)]


def shown_rows(dataset: PackedDataset, wanted: int) -> Iterator[ShownRow]:
    """Rows spread evenly over the dataset, taken apart."""
    for number in spread(dataset.num_rows, wanted):
        shards, local = dataset.locate([number])
        entry = dataset.manifest.shards[int(shards[0])]
        sidecar = _sidecar_of(dataset.folder / entry.path, int(local[0]))
        num_tokens = int(dataset.num_tokens([number])[0])
        token_ids = dataset.gather([number])[0, :num_tokens]
        trained = np.zeros(num_tokens, np.bool_)
        for begin, end in dataset.loss_spans(number).tolist():
            trained[begin:end] = True
        starts = [*dataset.document_starts(number).tolist(), num_tokens]
        documents = tuple(
            _document(token_ids, trained, start, stop, sidecar.get(start, {}), dataset.vocabulary)
            for start, stop in itertools.pairwise(starts)
        )
        yield ShownRow(number, f"{entry.path} · row {int(local[0])}", num_tokens, dataset.sequence_length, documents)


def shown_samples(folder: Path, manifest: Manifest, wanted: int) -> Iterator[TokenizedSample]:
    """Samples spread evenly over a dataset of sample shards."""
    numbers = spread(manifest.num_rows, wanted)
    first = 0
    for entry in manifest.shards:
        here = [number - first for number in numbers if first <= number < first + entry.num_rows]
        if here:
            yield from table_to_samples(pq.read_table(arrow_source(folder / entry.path)).take(here))
        first += entry.num_rows


def cut_stretches(token_ids: TokenIds, trained: Flags, start: int, vocabulary: Vocabulary) -> tuple[Stretch, ...]:
    """The ids of one document as stretches.

    Args:
        start: position of the first id in its row.
    """
    if not len(token_ids):
        return ()
    modality = vocabulary.modality_index()[token_ids]
    begins = np.zeros(len(token_ids), np.bool_)
    begins[0] = True
    begins[1:] = modality[1:] != modality[:-1]
    for block in vocabulary.blocks.values():
        begins |= token_ids == block.start_id
        begins[1:] |= token_ids[:-1] == block.end_id
    bounds = [*np.flatnonzero(begins).tolist(), len(token_ids)]
    names = vocabulary.modality_names()
    return tuple(
        Stretch(names[int(modality[begin])], start + begin, token_ids[begin:end], trained[begin:end])
        for begin, end in itertools.pairwise(bounds)
    )


def _document(
    token_ids: TokenIds, trained: Flags, start: int, stop: int, placement: dict[str, Any], vocabulary: Vocabulary
) -> ShownDocument:
    stretches = cut_stretches(token_ids[start:stop], trained[start:stop], start, vocabulary)
    title = str(placement.get("sample_id", "(no sidecar)"))
    if placement.get("offset"):
        title += f" (from id {placement['offset']} on)"
    return ShownDocument(title, str(placement.get("direction", "")), int(placement.get("draw", 0)), stretches)


def _sidecar_of(shard: Path, row: int) -> dict[int, dict[str, Any]]:
    """Placements of one row by their start; empty without a sidecar."""
    path = sidecar_path(shard)
    if not path.is_file():
        return {}
    records = pq.read_table(path, filters=[("row", "=", row)]).to_pylist()
    return {record["start"]: record for record in records}
