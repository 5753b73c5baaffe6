"""A document before it is numbers: text, dialogue markers and media, in order.

One list of pieces has two writings that can never drift apart: :func:`write_text`, AnyGPT's own string (what the released
scripts would have tokenized), and :func:`write_token_ids`, the ids with their loss spans and borders. Templates make
pieces; nothing downstream searches ids or strings for where a turn began.

White space. Every space of a document is inside a text piece; markers and media have none of their own. Adjacent text
pieces are encoded as one string, because that is how a tokenizer with added tokens sees them: what lies between two added
tokens is one string. Only where loss or a border begins does a string fall in two, and there the second half begins with
its space. A tokenizer whose pieces never reach over the front of a space (SentencePiece and our own byte-level BPE, both)
gives the same ids for the halves as for the whole, so the ids of a prompt are exactly the first ids of the document.

Text is text: a caption that contains ``<eoh>`` or ``<soim>`` is spelled out in ordinary pieces and forges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from shards.errors import ConfigError
from shards.records import Segment
from shards.vocabulary import Codes, Modality, TokenIds, Vocabulary


class TextEncoder(Protocol):
    """What writing ids needs of a text tokenizer (:class:`pipeline.text.TextTokenizer` is one)."""

    @property
    def opening(self) -> str:
        """Text the tokenizer puts in front of every document, ``" "`` for a LLaMA tokenizer with ``legacy=false``."""
        ...

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, none of them special; ``continues`` if other text stands right before it."""
        ...


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Words and white space.

    Attributes:
        trained: whether the loss counts its ids.
        border: whether a document may be split right in front of it.
    """

    text: str
    trained: bool = True
    border: bool = False


@dataclass(frozen=True, slots=True)
class MarkerPiece:
    """One added token by its string: a dialogue marker, or the start of a medium that a prompt forces.

    Attributes:
        as_text: a vocabulary without this marker spells it out, as the released code does; else that is an error.
    """

    name: str
    trained: bool = True
    border: bool = False
    as_text: bool = False


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """One medium: start marker, codes, end marker."""

    modality: Modality
    codes: Codes
    trained: bool = True
    border: bool = False


Piece = TextPiece | MarkerPiece | MediaPiece


@dataclass(frozen=True, slots=True)
class WrittenIds:
    """(n,) int64 ids; half-open loss spans and border positions in them, as :class:`pipeline.documents.Document` has."""

    token_ids: TokenIds
    loss_spans: tuple[tuple[int, int], ...]
    borders: tuple[int, ...]


def write_text(pieces: Iterable[Piece], vocabulary: Vocabulary) -> str:
    """The string the released scripts would have tokenized, media in their own token text."""
    return "".join(_piece_text(piece, vocabulary) for piece in pieces)


def write_token_ids(
    pieces: Iterable[Piece], vocabulary: Vocabulary, text_tokenizer: TextEncoder, *, complete: bool = True
) -> WrittenIds:
    """Write pieces as ids: ``<s>``, the pieces, and ``</s>`` if ``complete`` (a prompt is not).

    ``<s>`` and the tokenizer's opening are trained if the first piece is, ``</s>`` if the last one is.

    Raises:
        ConfigError: a marker the vocabulary lacks.
        SampleError: codes that do not fit their codebook.
    """
    marker_ids = _marker_ids(vocabulary)
    plain = [_resolve(piece, marker_ids, vocabulary) for piece in pieces]
    if text_tokenizer.opening:
        plain.insert(0, TextPiece(text_tokenizer.opening, trained=not plain or plain[0].trained))
    ids: list[int] = [vocabulary.bos_id]
    trained: list[tuple[int, int]] = [(0, 1)] if not plain or plain[0].trained else []
    borders: list[int] = []
    after_text = False
    for piece in _merge_text(plain):
        begin = len(ids)
        match piece:
            case TextPiece():
                ids.extend(text_tokenizer.encode(piece.text, continues=after_text))
            case MarkerPiece():
                ids.append(marker_ids[piece.name])
            case MediaPiece():
                ids.extend(vocabulary.media_token_ids(piece.modality, piece.codes).tolist())
        after_text = isinstance(piece, TextPiece)
        if piece.trained:
            trained.append((begin, len(ids)))
        if piece.border and begin > 1:
            borders.append(begin)
    if complete:
        ids.append(vocabulary.eos_id)
        if not plain or plain[-1].trained:
            trained.append((len(ids) - 1, len(ids)))
    return WrittenIds(np.array(ids, np.int64), _join_spans(trained), tuple(borders))


def segment_pieces(segments: Sequence[Segment], *, trained: bool = True, borders: bool = False) -> list[Piece]:
    """Segments of a document or a turn, joined by one space where neither neighbour brings white space of its own.

    Args:
        borders: allow a split in front of every segment but the first; the joining space goes to the right of it.
    """
    present = [segment for segment in segments if segment.codes is not None or segment.text]
    pieces: list[Piece] = []
    for number, segment in enumerate(present):
        joint = _joint(present[number - 1], segment) if number else ""
        border = borders and number > 0
        if segment.codes is not None:
            pieces += [TextPiece(joint, trained, border)] if joint else []
            pieces.append(MediaPiece(segment.modality, segment.codes, trained, border and not joint))
            continue
        text = segment.text or ""
        followed_by_text = number + 1 < len(present) and present[number + 1].codes is None
        pieces.append(TextPiece(joint + (text.rstrip() if followed_by_text else text), trained, border))
    return pieces


def _joint(left: Segment, right: Segment) -> str:
    """White space between two segments; what a text ends with moves to the front of the text after it."""
    left_text, right_text = left.text or "", right.text or ""
    tail = left_text[len(left_text.rstrip()) :]
    if left.codes is None and right.codes is None and tail:
        return tail
    begins_with_space = right.codes is None and right_text[:1].isspace()
    return "" if tail or begins_with_space else " "


def untrained(pieces: Iterable[Piece]) -> list[Piece]:
    """The same pieces, none of them counted by the loss."""
    return [replace(piece, trained=False) for piece in pieces]


def _piece_text(piece: Piece, vocabulary: Vocabulary) -> str:
    match piece:
        case TextPiece():
            return piece.text
        case MarkerPiece():
            return piece.name
        case MediaPiece():
            return vocabulary.block(piece.modality).to_text(piece.codes)


def _resolve(piece: Piece, marker_ids: Mapping[str, int], vocabulary: Vocabulary) -> Piece:
    """A marker that the vocabulary has stays one; one it lacks becomes text if that is allowed."""
    if not isinstance(piece, MarkerPiece) or piece.name in marker_ids:
        return piece
    if piece.as_text:
        return TextPiece(piece.name, piece.trained, piece.border)
    raise ConfigError(
        f"vocabulary {vocabulary.name}: expected the marker {piece.name!r}, found {sorted(vocabulary.markers)}; "
        "add it to the layout's markers or choose a template that does without"
    )


def _marker_ids(vocabulary: Vocabulary) -> dict[str, int]:
    media = {block.start: block.start_id for block in vocabulary.blocks.values()}
    media |= {block.end: block.end_id for block in vocabulary.blocks.values()}
    return media | dict(vocabulary.markers)


def _merge_text(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Join adjacent texts unless loss or a border begins between them; drop empty ones."""
    held: TextPiece | None = None
    for piece in pieces:
        if not isinstance(piece, TextPiece):
            if held:
                yield held
            held = None
            yield piece
        elif held and not piece.border and piece.trained == held.trained:
            held = replace(held, text=held.text + piece.text)
        elif piece.text:
            if held:
                yield held
            held = piece
    if held:
        yield held


def _join_spans(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if begin == end:
            continue
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return tuple(joined)
