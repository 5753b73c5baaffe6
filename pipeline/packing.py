"""Documents -> rows: no document that fits a row is ever cut, and short ones of a filler top rows up.

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830: packing whole documents
trains as fast as concatenate-and-chop and hallucinates less. Chopping would cut 8-26 % of AnyGPT's documents, and a cut
music document loses its caption.

A dialogue longer than a row is split between its exchanges, and every piece is a dialogue of its own: it begins with the
system message and ends with ``</s>``. An answer without what it answers would be trained to be made up, so a later piece
repeats the exchange before it, where both fit, as context that no loss is on.

Which documents share a row is decided on lengths alone (:mod:`pipeline.packing_plan`), a buffer of documents at a time, in
arrival order: the rows depend on the documents and the buffer size alone.

A filler is for documents that cannot fill a row among themselves: four of music's ~1,037 ids leave 352 of 4,500 free. It
opens no row, is never cut, and is read in its own order, about as far as there are ids to fill.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.documents import Document
from pipeline.packing_plan import UNPLACED, Int64s, fill_gaps, plan_rows
from shards.errors import SampleError
from shards.packed import PackedRow, Placement

PACKING_VERSION = 3
"""Raised by every change that alters which document lands in which row."""

LongDocuments = Literal["split", "reject"]
"""What becomes of a document longer than a row: split at segment borders (a dialogue: between two exchanges), or rejected
by policy."""

Span = tuple[int, int]

_WORTH_READING = 0.05
"""Share of the filler's ids read that must have found a place, or no more is read for these rows."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Ids ``[start, stop)`` of a document of ``dataset``; the whole document unless it is longer than a row.

    Attributes:
        again: ranges of the document that stand in front once more, without loss.
        closing: range of the document that stands behind once more, with its loss.
    """

    document: Document
    start: int
    stop: int
    dataset: str = ""
    again: tuple[Span, ...] = ()
    closing: Span = (0, 0)

    @property
    def ranges(self) -> tuple[Span, ...]:
        """Ranges of the document, in the order in which they stand in the row."""
        return (*self.again, (self.start, self.stop), self.closing)

    def __len__(self) -> int:
        length = self.stop - self.start + self.closing[1] - self.closing[0]
        return length + sum(stop - start for start, stop in self.again) if self.again else length


def cut_to_fit(
    document: Document, *, sequence_length: int, long_documents: LongDocuments = "split", dataset: str = ""
) -> list[Piece]:
    """The document whole if it fits a row, else cut at segment borders, every piece as long as the borders allow.

    Raises:
        SampleError: ``document_empty``; ``longer_than_row`` if the policy is to reject; ``segment_longer_than_row`` if
            one segment alone does not fit (a medium is never cut), ``exchange_longer_than_row`` if one exchange does not.
    """
    length = len(document.token_ids)
    if not length:
        raise SampleError("document_empty", f"{document.sample_id}: expected token ids, the template rendered none")
    if length <= sequence_length:
        return [Piece(document, 0, length, dataset)]
    if long_documents == "reject":
        raise SampleError(
            "longer_than_row", f"{document.sample_id}: {length} ids do not fit a row of {sequence_length}"
        )
    if document.exchanges:
        return list(_split_dialogue(document, sequence_length, dataset))
    return _split_at_borders(document, sequence_length, dataset)


def _split_at_borders(document: Document, sequence_length: int, dataset: str) -> list[Piece]:
    length = len(document.token_ids)
    borders = [*document.borders, length]
    pieces: list[Piece] = []
    start = 0
    while start < length:
        stop = borders[bisect.bisect_right(borders, start + sequence_length) - 1]
        if not start < stop <= start + sequence_length:
            raise SampleError(
                "segment_longer_than_row",
                f"{document.sample_id}: a segment from id {start} on is longer than a row of {sequence_length}",
            )
        pieces.append(Piece(document, start, stop, dataset))
        start = stop
    return pieces


def _split_dialogue(document: Document, sequence_length: int, dataset: str) -> Iterator[Piece]:
    """Pieces of as many whole exchanges as fit; together they have every exchange once, and its loss once."""
    exchanges = document.exchanges
    opening, closing = (0, exchanges[0][0]), (exchanges[-1][1], len(document.token_ids))

    def piece(first: int, last: int, *, context: bool) -> Piece:
        """Exchanges first..last; the white space between two goes with the one before it, so none ends a piece."""
        start, stop = (0 if first == 0 else exchanges[first][0]), exchanges[last][1]
        again: tuple[Span, ...] = (opening,) if first else ()
        if context:
            again += ((exchanges[first - 1][0], exchanges[first][0]),)
        return Piece(document, start, stop, dataset, again, closing)

    first = 0
    while first < len(exchanges):
        shortest = piece(first, first, context=False)
        if len(shortest) > sequence_length:
            raise SampleError(
                "exchange_longer_than_row",
                f"{document.sample_id}: question and answer {first + 1} of {len(exchanges)} are {len(shortest)} ids with "
                f"the system message, longer than a row of {sequence_length}",
            )
        context = first > 0 and len(piece(first, first, context=True)) <= sequence_length
        last = first
        while last + 1 < len(exchanges) and len(piece(first, last + 1, context=context)) <= sequence_length:
            last += 1
        yield piece(first, last, context=context)
        first = last + 1


def pack_best_fit(
    pieces: Iterable[Piece],
    *,
    sequence_length: int,
    pad_id: int,
    dtype: np.dtype[Any],
    buffer_pieces: int,
    filler: Iterable[Piece] = (),
) -> Iterator[PackedRow]:
    """Join pieces into rows, every id exactly once.

    Args:
        pieces: none longer than ``sequence_length`` (see :func:`cut_to_fit`).
        dtype: of the rows, the vocabulary's.
        buffer_pieces: how many are packed together; 10,000 fill about 99.9 % of mixed rows, more a little better.
        filler: whole documents that top rows up (see :func:`top_up`); read only as far as needed.

    Yields:
        Rows in the order in which their first piece arrived; within a row, pieces in arrival order, the filler's last.
    """
    arriving, topping = iter(pieces), iter(filler)
    while buffer := list(itertools.islice(arriving, buffer_pieces)):
        lengths = np.fromiter((len(piece) for piece in buffer), np.int64, len(buffer))
        rows = plan_rows(lengths, capacity=sequence_length)
        free = np.array([sequence_length - int(lengths[members].sum()) for members in rows], np.int64)
        added = top_up(free, topping)
        for row, members in enumerate(rows):
            chosen = [buffer[member] for member in members.tolist()] + added.get(row, [])
            yield _join(chosen, sequence_length=sequence_length, pad_id=pad_id, dtype=dtype)


def top_up(free: Int64s, filler: Iterator[Piece]) -> dict[int, list[Piece]]:
    """Fill what rows have left.

    As many ids are read as are free where the shortest piece seen so far fits; then again, until nothing is free there or
    less than a twentieth of what was read found a place. A piece read that fits nowhere then is not used: what is free only
    shrinks, so it would not fit later either. The first telling of samples finds its place before the second.

    Args:
        free: (rows,) ids that each row can still take.
        filler: taken from the front.

    Returns:
        Row -> pieces, in arrival order.
    """
    free = free.copy()
    added: dict[int, list[Piece]] = {}
    shortest = 0  # not known yet
    while (room := int(free[free >= shortest].sum())) and (read := _take_ids(filler, room)):
        before = int(free.sum())
        for _, told in itertools.groupby(read, key=lambda piece: piece.document.draw):
            _place(list(told), free, added)
        lengths = [len(piece) for piece in read]
        if before - int(free.sum()) < _WORTH_READING * sum(lengths):
            break
        shortest = min(shortest or lengths[0], *lengths)
    return added


def _place(pieces: Sequence[Piece], free: Int64s, added: dict[int, list[Piece]]) -> None:
    """Add pieces to rows, best fit, and take what they need off ``free``."""
    row_of = fill_gaps(free, [len(piece) for piece in pieces])
    for piece, row in zip(pieces, row_of.tolist(), strict=True):
        if row != UNPLACED:
            added.setdefault(row, []).append(piece)
            free[row] -= len(piece)


def _take_ids(pieces: Iterator[Piece], num_ids: int) -> list[Piece]:
    """Pieces from the front until they have so many ids, or there are no more."""
    taken: list[Piece] = []
    while num_ids > 0 and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        num_ids -= len(piece)
    return taken


def _join(pieces: Sequence[Piece], *, sequence_length: int, pad_id: int, dtype: np.dtype[Any]) -> PackedRow:
    token_ids = np.full(sequence_length, pad_id, dtype)
    spans: list[tuple[int, int]] = []
    placements: list[Placement] = []
    start = 0
    for piece in pieces:
        document = piece.document
        stop = start + len(piece)
        token_ids[start:stop] = np.concatenate([document.token_ids[begin:end] for begin, end in piece.ranges])
        spans += _shifted_spans(piece, start)
        placements.append(
            Placement(document.sample_id, piece.dataset, document.draw, document.direction, start, stop, piece.start)
        )
        start = stop
    starts = tuple(placement.start for placement in placements)
    return PackedRow(token_ids, start, starts, merge_touching(spans), tuple(placements))


def _shifted_spans(piece: Piece, start: int) -> Iterator[tuple[int, int]]:
    """The piece's share of its document's loss spans, as positions of the row."""
    at = start + sum(stop - begin for begin, stop in piece.again)
    for first, stop in ((piece.start, piece.stop), piece.closing):
        for begin, end in piece.document.loss_spans:
            begin, end = max(begin, first), min(end, stop)
            if begin < end:
                yield begin - first + at, end - first + at
        at += stop - first


def merge_touching(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ascending disjoint spans, those that touch as one: a row trained on throughout has a single span."""
    merged: list[tuple[int, int]] = []
    for begin, end in spans:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return tuple(merged)
