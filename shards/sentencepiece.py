"""``tokenizer.model``: what LLaMA's SentencePiece file says, read without the SentencePiece library.

The published AnyGPT checkpoints hold this file and no ``tokenizer.json``. It is a protocol buffer (sentencepiece_model)
of pieces with scores; what a byte-pair encoder needs of it is the order of merges, and that follows from the scores: of
the ways to cut a piece in two known ones, each is a merge, and a better score merges first.

Only what LLaMA uses is supported, byte-pair encoding with byte fallback and no normalization; anything else is refused
rather than tokenized almost right.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from shards.errors import TokenizerError

# Enum values of the format.
MODEL_TYPE_BPE = 2
PIECE_NORMAL, PIECE_UNKNOWN, PIECE_BYTE = 1, 2, 6

# Field numbers of the messages.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE = 3
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_EXTRA_SPACES = 2, 3, 4

Field = tuple[int, int | bytes]


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """One piece: its text (a space is ``▁``), the log-likelihood it is ranked by, and its kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a byte-pair encoder needs of the file.

    Attributes:
        vocab: piece -> id, in the order of ids.
        merges: pairs of pieces, the first to be merged first.
        unknown: the piece that stands for what has none.
        dummy_prefix: whether a space is put in front of a text.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    unknown: str | None
    dummy_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Pieces, ids and merges of a ``tokenizer.model``.

    Raises:
        TokenizerError: not such a file, or one of a kind LLaMA does not use.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(cast(bytes, value)) for number, value in fields if number == _PIECES]
        trainer, normalizer = (dict(_fields(_last_bytes(fields, number))) for number in (_TRAINER, _NORMALIZER))
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise TokenizerError(f"{path}: expected a SentencePiece model, found {error!r}; copy the file again") from error
    unsupported = {
        "a model that is not byte-pair encoding": trainer.get(_TRAINER_MODEL_TYPE, 1) != MODEL_TYPE_BPE,
        "normalization rules": bool(normalizer.get(_NORMALIZER_CHARSMAP)),
        "removal of white space": normalizer.get(_NORMALIZER_EXTRA_SPACES, 1) != 0,
        "no pieces for single bytes": sum(piece.kind == PIECE_BYTE for piece in pieces) != 256,
    }
    if found := [what for what, is_so in unsupported.items() if is_so]:
        raise TokenizerError(f"{path}: expected a model like LLaMA's, found {found[0]}; give a tokenizer.json instead")
    vocab = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == PIECE_UNKNOWN), None)
    return SentencePieceModel(vocab, _merges(pieces, vocab), unknown, bool(normalizer.get(_NORMALIZER_DUMMY_PREFIX, 1)))


def _merges(pieces: list[SentencePiece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    normal = {piece.text for piece in pieces if piece.kind == PIECE_NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece in pieces:
        if piece.kind != PIECE_NORMAL:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in normal and right in normal:
                ranked.append((-piece.score, vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _piece(data: bytes) -> SentencePiece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", cast(bytes, fields.get(_PIECE_SCORE, b"\0\0\0\0")))
    return SentencePiece(
        cast(bytes, fields[_PIECE_TEXT]).decode(), score, cast(int, fields.get(_PIECE_TYPE, PIECE_NORMAL))
    )


def _last_bytes(fields: list[Field], number: int) -> bytes:
    return cast(bytes, next((value for found, value in reversed(fields) if found == number), b""))


def _fields(data: bytes) -> Iterator[Field]:
    """(field number, value) of one protocol-buffer message; nested messages and strings come as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {at}")
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError(f"the file ends inside a field at byte {at}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
