"""Table 1 is enforced: what breaks it in a row of ids, and in the codes of a segment. See :mod:`shards.modality`.

:func:`media_fault` and :func:`rate_fault` are the law, one medium or segment at a time, in words. :class:`RowLaw` and
:func:`doubtful_segments` look at thousands at once and only sort out: what they do not call doubtful is sound, and what
they do is put before the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.modality import MEDIA, SOUNDS, Modality
from shards.vocabulary import MediaBlock, TokenIds, Vocabulary

IMAGE_CODES = Modality.IMAGE.rate.num_frames
FRAMES_PER_SECOND = {modality: modality.rate.frame_rate_hz for modality in SOUNDS}
CODEBOOK_SIZES = {modality: modality.rate.codebook_size for modality in MEDIA}
RATE_SLACK = 1e-2
"""Frames: a sample more or less is less than a 300th of one."""


def media_fault(token_ids: TokenIds, block: MediaBlock) -> str:
    """What breaks Table 1 in one medium of a row, or an empty string.

    Every code id must lie between a start marker and the next end marker, in whole frames with the levels in order.
    """
    ids = token_ids.astype(np.int64)
    starts = np.flatnonzero(ids == block.start_id)
    ends = np.flatnonzero(ids == block.end_id)
    if len(starts) != len(ends) or (starts > ends).any() or (starts[1:] < ends[:-1]).any():
        return f"{block.name}: {len(starts)} start and {len(ends)} end markers that do not pair up"
    codes = np.flatnonzero((ids >= block.first_id) & (ids < block.stop_id))
    lengths = ends - starts - 1
    if int(lengths.sum()) != len(codes):
        return f"{block.name}: {len(codes)} codes, of which {int(lengths.sum())} places between markers"
    # As many codes as places: they are the same places unless a code is outside or a stranger inside.
    inside = np.searchsorted(starts, codes, side="right") - 1
    if codes.size and ((inside < 0).any() or (codes > ends[inside]).any()):
        return f"{block.name}: codes outside its markers"
    if block.name == Modality.IMAGE and (lengths != IMAGE_CODES).any():
        return f"{block.name}: a picture of {int(lengths[lengths != IMAGE_CODES][0])} codes instead of {IMAGE_CODES}"
    if (lengths % block.levels).any():
        return f"{block.name}: a cut frame ({block.levels} levels each)"
    level = (ids[codes] - block.first_id) // block.codebook_size
    if codes.size and (level != (codes - starts[inside] - 1) % block.levels).any():
        return f"{block.name}: levels out of order"
    return ""


def rate_fault(modality: str, codes: npt.NDArray[Any], levels: int, duration_s: float | None) -> str:
    """What breaks Table 1 in the flat codes of one segment, or an empty string."""
    if modality not in CODEBOOK_SIZES:
        return f"{modality}: no such modality"
    known = Modality(modality)
    if not codes.size or codes.size % levels:
        return f"{modality}: {codes.size} codes are no whole frames of {levels} levels"
    if int(codes.max()) >= CODEBOOK_SIZES[known]:
        return f"{modality}: codes outside the codebook of {CODEBOOK_SIZES[known]}"
    if known is Modality.IMAGE:
        return (
            "" if (codes.size, levels) == (IMAGE_CODES, 1) else f"{modality}: expected {IMAGE_CODES} codes of one level"
        )
    num_frames = codes.size // levels
    if duration_s is None:
        return f"{modality}: a sound without a duration"
    # ceil of the duration, and the slack.
    exact = duration_s * FRAMES_PER_SECOND[known]
    if not exact - RATE_SLACK <= num_frames < exact + 1 + RATE_SLACK:
        return f"{modality}: frames that are not {FRAMES_PER_SECOND[known]:g} per second of its duration"
    return ""


class RowLaw:
    """Which of many rows might break Table 1, by one look-up per id.

    A row is read as an automaton does: outside of media it is in state 0, and before the code of level k of a medium in a
    state of its own. Every id says which state it needs before it and which it leaves behind, and both are in one table,
    so the whole law of markers, levels and cut frames is: what an id needs is what the one before it left. Each row
    begins and ends in state 0.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        num_states = 1 + sum(block.levels for block in vocabulary.blocks.values())
        self._bits, dtype = (4, np.uint8) if num_states < 15 else (16, np.uint32)
        self._mask = dtype((1 << self._bits) - 1)
        # What is outside the vocabulary needs a state that nothing leaves, itself included, so it is doubtful anywhere.
        needs, leaves = int(self._mask), int(self._mask) - 1
        table = np.full(max(vocabulary.size + 1, 1 << 16), needs << self._bits | leaves, dtype)
        table[: vocabulary.size] = 0
        first_state = 1
        for block in vocabulary.blocks.values():
            for level in range(block.levels):
                needs, leaves = first_state + level, first_state + (level + 1) % block.levels
                first = block.first_id + level * block.codebook_size
                table[first : first + block.codebook_size] = needs << self._bits | leaves
            table[block.start_id] = first_state
            table[block.end_id] = first_state << self._bits
            first_state += block.levels
        self._table = table
        self._pictures = [block for block in vocabulary.blocks.values() if block.name == Modality.IMAGE]

    def doubtful_rows(self, token_ids: TokenIds) -> npt.NDArray[np.int64]:
        """Numbers of the rows that might break the law, ascending; ids outside the vocabulary do.

        Args:
            token_ids: (rows, sequence_length), contiguous and unsigned, padding included.
        """
        ids = token_ids.reshape(-1)
        if not ids.size:
            return np.empty(0, np.int64)
        length = token_ids.shape[1]
        # `clip` because it needs no check of bounds; an id beyond the table becomes its last one, which is doubtful.
        found = self._table.take(ids, mode="clip")
        wrong = (found[1:] >> self._bits) != (found[:-1] & self._mask)
        places = np.flatnonzero(wrong) + 1 if wrong.any() else np.empty(0, np.int64)
        edges = [
            place for place, state in ((0, found[0] >> self._bits), (ids.size - 1, found[-1] & self._mask)) if state
        ]
        rows = [places // length, (places - 1) // length, np.array(edges, np.int64) // length]
        rows += [_picture_places(ids, block) // length for block in self._pictures]
        return np.unique(np.concatenate(rows))


def _picture_places(ids: TokenIds, block: MediaBlock) -> npt.NDArray[np.int64]:
    """Start or end markers of pictures of another length than Table 1's."""
    starts, ends = np.flatnonzero(ids == block.start_id), np.flatnonzero(ids == block.end_id)
    if len(starts) != len(ends):
        return np.concatenate([starts, ends])
    return starts[ends - starts != IMAGE_CODES + 1]


def doubtful_segments(
    modalities: Sequence[str | None],
    modality: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    largest: npt.NDArray[np.int64],
    levels: npt.NDArray[np.int64],
    duration_s: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """(segments,) which of many media might break Table 1.

    Args:
        modalities: names that ``modality`` numbers; one that Table 1 has not makes its segments doubtful.
        lengths: codes of each segment, over all levels; ``largest`` is the largest of them.
        levels: 0 where not known.
        duration_s: NaN where not known.
    """
    sizes = {str(name): size for name, size in CODEBOOK_SIZES.items()}
    rates = {str(name): float(rate) for name, rate in FRAMES_PER_SECOND.items()}
    codebook = np.array([sizes.get(name or "", 0) for name in modalities], np.int64)
    rate = np.array([rates.get(name or "", np.nan) for name in modalities], np.float64)
    is_picture = np.array([name == Modality.IMAGE for name in modalities], np.bool_)[modality]
    frames = lengths // np.maximum(levels, 1)
    exact = duration_s * rate[modality]
    # Not known is NaN, and every comparison with NaN is false.
    in_time = (frames >= exact - RATE_SLACK) & (frames < exact + 1 + RATE_SLACK)
    right = np.where(is_picture, (lengths == IMAGE_CODES) & (levels == 1), in_time)
    return ~(right & (lengths > 0) & (frames * levels == lengths) & (largest < codebook[modality]))
