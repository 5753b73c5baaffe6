"""Rows on their way between packed shards and the formats of others.

A format gives :class:`ForeignRow` values in file order. Those that know their documents are rows already. The others are
taken for documents: they fill rows one after another, in file order, and one that does not fit begins the next row; a
document longer than a row is cut, never inside a medium. Then every id is trained on and a sample is named after its place
in the foreign file, because nothing better is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from shards.errors import DatasetError
from shards.open_shard import OpenShard
from shards.packed import PackedRow, Placement
from shards.vocabulary import TokenIds, Vocabulary

UNKNOWN_DIRECTION = "unknown"
"""The direction of documents whose origin nobody wrote down."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One entry of a foreign file.

    Attributes:
        name: file and place, e.g. ``shard.00000.mds/17``; in messages, and the sample's id where there is no other.
        token_ids: (n,) of any integer type, padding not included.
        document_starts: as in packed shards; empty if not known, and then the entry is one document.
        loss_spans: as in packed shards; None if not known.
        length: ids with padding, where the format has rows of one length; else 0.
    """

    name: str
    token_ids: TokenIds
    document_starts: tuple[int, ...] = ()
    loss_spans: Spans | None = None
    length: int = 0


@dataclass(slots=True)
class FillCounts:
    """What became of foreign documents: ``documents`` written, ``empty`` left out, ``split`` cut into several pieces."""

    documents: int = 0
    empty: int = 0
    split: int = 0


def shard_rows(shard: OpenShard) -> Iterator[PackedRow]:
    """The rows of a shard, without their placements."""
    for row, ids in enumerate(shard.token_ids):
        starts = shard.starts[shard.start_offsets[row] : shard.start_offsets[row + 1]]
        spans = shard.spans[shard.span_offsets[row] : shard.span_offsets[row + 1]]
        yield PackedRow(ids, int(shard.num_tokens[row]), tuple(starts.tolist()), as_spans(spans.tolist()))


def shard_digest(shard: OpenShard) -> str:
    """CRC-32, 8 hex digits, of all that the rows hold; equal rows give equal digits whatever wrote the file."""
    digest = 0
    for array in (
        shard.token_ids,
        shard.num_tokens,
        shard.start_offsets,
        shard.starts,
        shard.span_offsets,
        shard.spans,
    ):
        digest = zlib.crc32(np.ascontiguousarray(array).data, digest)
    return f"{digest:08x}"


def to_packed(
    row: ForeignRow, placements: Sequence[Placement], *, vocabulary: Vocabulary, sequence_length: int
) -> PackedRow:
    """A row of known documents as it is packed; whatever is not known of its loss is trained on.

    Raises:
        DatasetError: it is longer than a row, has ids outside the vocabulary, or marks that do not fit its ids.
    """
    used = len(row.token_ids)
    if used > sequence_length:
        raise DatasetError(
            f"{row.name}: expected at most {sequence_length} ids in a row, found {used}; give a longer --sequence-length"
        )
    check_ids(row, vocabulary)
    spans = ((0, used),) if row.loss_spans is None else row.loss_spans
    _check_marks(row, spans)
    padded = np.full(sequence_length, vocabulary.pad_id, vocabulary.dtype)
    padded[:used] = row.token_ids
    return PackedRow(padded, used, row.document_starts, spans, tuple(placements))


def fill_rows(
    entries: Iterable[ForeignRow], *, vocabulary: Vocabulary, sequence_length: int, dataset: str, counts: FillCounts
) -> Iterator[PackedRow]:
    """Rows of what nobody described; see above.

    Args:
        dataset: the name that placements give as the origin.
        counts: is counted up.

    Raises:
        DatasetError: ids outside the vocabulary, a row that is too long, or a medium that no row can hold.
    """
    pack = partial(to_packed, vocabulary=vocabulary, sequence_length=sequence_length)
    pieces: list[tuple[ForeignRow, int]] = []
    used = 0
    for entry in entries:
        counts.documents += max(1, len(entry.document_starts)) if len(entry.token_ids) else 0
        counts.empty += not len(entry.token_ids)
        if entry.document_starts and len(entry.token_ids):
            if pieces:
                yield pack(*_joined(pieces, dataset))
            pieces, used = [], 0
            yield pack(entry, _placements(entry, dataset))
            continue
        check_ids(entry, vocabulary)
        cuts = _cuts(entry, vocabulary, sequence_length)
        counts.split += len(cuts) > 2
        for start, stop in pairwise(cuts):
            if pieces and used + stop - start > sequence_length:
                yield pack(*_joined(pieces, dataset))
                pieces, used = [], 0
            pieces.append((ForeignRow(entry.name, entry.token_ids[start:stop]), start))
            used += stop - start
    if pieces:
        yield pack(*_joined(pieces, dataset))


def check_ids(row: ForeignRow, vocabulary: Vocabulary) -> None:
    """Raise ``DatasetError`` if an id is not of the vocabulary."""
    ids = row.token_ids
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary.size):
        raise DatasetError(
            f"{row.name}: expected ids in [0, {vocabulary.size}) of the vocabulary {vocabulary.name}, found "
            f"{ids.min()}..{ids.max()}; give the vocabulary these ids were made with"
        )


def _check_marks(row: ForeignRow, spans: Spans) -> None:
    used, starts = len(row.token_ids), row.document_starts
    edges = [edge for span in spans for edge in span]
    if not starts or starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= used:
        what, found = "ascending document starts from 0", starts
    elif edges and (edges != sorted(set(edges)) or edges[0] < 0 or edges[-1] > used):
        what, found = "ascending, separate loss spans", spans
    else:
        return
    raise DatasetError(
        f"{row.name}: expected {what} within its {used} ids, found {found}; the file and what lies beside it are damaged, "
        "or not of one dataset: copy both again"
    )


def as_spans(pairs: Iterable[Sequence[int]]) -> Spans:
    """Pairs of plain integers as the loss spans of a row."""
    return tuple((int(begin), int(end)) for begin, end in pairs)


def _cuts(entry: ForeignRow, vocabulary: Vocabulary, sequence_length: int) -> list[int]:
    """Where a document is cut, its two ends included: as late as a row allows and outside every medium."""
    ids = entry.token_ids
    if len(ids) <= sequence_length:
        return [0, len(ids)] if len(ids) else []
    opened = np.isin(ids, [block.start_id for block in vocabulary.blocks.values()])
    closed = np.isin(ids, [block.end_id for block in vocabulary.blocks.values()])
    # Place p, before id p, lies outside as many media as were closed by then.
    outside = np.concatenate([[True], np.cumsum(opened) <= np.cumsum(closed)])
    cuts = [0]
    while len(ids) - cuts[-1] > sequence_length:
        places = np.flatnonzero(outside[cuts[-1] + 1 : cuts[-1] + sequence_length + 1])
        if not places.size:
            raise DatasetError(
                f"{entry.name}: expected a place outside a medium to cut a document of {len(ids)} ids for rows of "
                f"{sequence_length}, found none after id {cuts[-1]}; give a longer --sequence-length"
            )
        cuts.append(cuts[-1] + 1 + int(places[-1]))
    return [*cuts, len(ids)]


def _joined(pieces: Sequence[tuple[ForeignRow, int]], dataset: str) -> tuple[ForeignRow, list[Placement]]:
    starts = np.cumsum([0, *(len(piece.token_ids) for piece, _ in pieces)]).tolist()
    placements = [
        Placement(piece.name, dataset, 0, UNKNOWN_DIRECTION, start, stop, offset)
        for (piece, offset), (start, stop) in zip(pieces, pairwise(starts), strict=True)
    ]
    ids = np.concatenate([piece.token_ids for piece, _ in pieces])
    return ForeignRow(pieces[0][0].name, ids, document_starts=tuple(starts[:-1])), placements


def _placements(row: ForeignRow, dataset: str) -> list[Placement]:
    edges = pairwise([*row.document_starts, len(row.token_ids)])
    return [
        Placement(f"{row.name}#{number}", dataset, 0, UNKNOWN_DIRECTION, start, stop)
        for number, (start, stop) in enumerate(edges)
    ]
