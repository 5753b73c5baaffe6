"""What the inspector shows, before it becomes a page: rows or samples as stretches of one modality each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.manifest import Manifest
from shards.open_shard import buffer_view
from shards.packed import sidecar_path
from shards.reader import PackedDataset
from shards.records import TokenizedSample, table_to_samples
from shards.storage import arrow_source
from shards.vocabulary import TokenIds, Vocabulary

Flags = npt.NDArray[np.bool_]
_BATCH = 256


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
    """A document, or a piece of one, within a row.

    Attributes:
        sample_id, source, direction: of the sidecar; empty without one. ``source`` is the dataset of samples.
        offset: where its first id is in the document; above 0 it is a later piece.
    """

    sample_id: str
    source: str
    direction: str
    draw: int
    offset: int
    start: int
    stretches: tuple[Stretch, ...]

    def __len__(self) -> int:
        return sum(len(stretch) for stretch in self.stretches)

    @property
    def title(self) -> str:
        """The sample id, and where a piece begins."""
        return (self.sample_id or "(no sidecar)") + (f" (from id {self.offset} on)" if self.offset else "")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of its stretches, each once, in the order they come."""
        return tuple(dict.fromkeys(stretch.modality for stretch in self.stretches))


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


def shown_rows(dataset: PackedDataset, numbers: Sequence[int]) -> Iterator[ShownRow]:
    """Rows of a packed dataset by number, taken apart.

    Raises:
        IndexError: a number is not one of the dataset's rows.
    """
    for number in numbers:
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


def shown_samples(folder: Path, manifest: Manifest, numbers: Sequence[int]) -> Iterator[TokenizedSample]:
    """Samples of a dataset of sample shards by number, ascending; only their row groups are read.

    Raises:
        DatasetError: a shard is missing or cut.
    """
    wanted = np.unique(np.asarray(numbers, np.int64))
    first = 0
    for entry in manifest.shards:
        begin, end = np.searchsorted(wanted, (first, first + entry.num_rows))
        if begin < end:
            yield from read_rows(folder / entry.path, (wanted[begin:end] - first).tolist())
        first += entry.num_rows


def read_rows(path: Path, rows: Sequence[int]) -> Iterator[TokenizedSample]:
    """Samples of one shard by their rows, ascending; some hundred of them are in memory at a time.

    Raises:
        DatasetError: the shard is missing, cut, or has fewer rows.
    """
    try:
        with pq.ParquetFile(arrow_source(path)) as file:
            for batch, local in _batches_with(file, sorted(rows)):
                yield from table_to_samples(pa.Table.from_batches([batch]).take(local))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected a Parquet shard, found {error}; run anygpt-verify") from error


def read_placements(shard: Path, rows: Sequence[int], columns: Sequence[str] | None) -> pa.Table | None:
    """What the sidecar of a packed shard says of some rows, in its order; None without a sidecar.

    Args:
        columns: with ``row`` among them; None reads all.

    Raises:
        DatasetError: the sidecar is damaged.
    """
    path = sidecar_path(shard)
    if not path.is_file():
        return None
    parts: list[pa.Table] = []
    try:
        # By row group and by hand: a filter of read_table is ten times slower.
        with pq.ParquetFile(path, read_dictionary=["dataset", "direction"]) as file:
            for group in range(file.num_row_groups):
                of_group = buffer_view(file.read_row_group(group, ["row"], use_threads=False)["row"].combine_chunks())
                if len(chosen := np.flatnonzero(np.isin(of_group, rows))):
                    parts.append(file.read_row_group(group, columns, use_threads=False).take(pa.array(chosen)))
            return pa.concat_tables(parts) if parts else None
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path}: expected the samples of each row, found {error}; run anygpt-verify") from error


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
    token_ids: TokenIds, trained: Flags, start: int, stop: int, placement: Mapping[str, Any], vocabulary: Vocabulary
) -> ShownDocument:
    stretches = cut_stretches(token_ids[start:stop], trained[start:stop], start, vocabulary)
    sample_id, source, direction = (str(placement.get(name, "")) for name in ("sample_id", "dataset", "direction"))
    draw, offset = (int(placement.get(name, 0)) for name in ("draw", "offset"))
    return ShownDocument(sample_id, source, direction, draw, offset, start, stretches)


def _sidecar_of(shard: Path, row: int) -> dict[int, dict[str, Any]]:
    """Placements of one row by their start; empty without a sidecar."""
    found = read_placements(shard, [row], None)
    return {record["start"]: record for record in found.to_pylist()} if found is not None else {}


def _batches_with(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[pa.RecordBatch, list[int]]]:
    """Batches that hold one of the rows, and where in them; other row groups are left alone."""
    first = 0
    left = list(rows)
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        here = [row - first for row in left if row < stop]
        left = left[len(here) :]
        start = 0
        for batch in file.iter_batches(_BATCH, row_groups=[group]) if here else ():
            end = start + batch.num_rows
            if local := [row - start for row in here if start <= row < end]:
                yield batch, local
            start = end
            if start > here[-1]:
                break
        first = stop
    if left:
        raise ValueError(f"{first} rows, and row {left[0]} asked for")
