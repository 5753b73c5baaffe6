"""Table 1 is enforced: what breaks it in a row of ids, and in the codes of a segment. See :mod:`shards.modality`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shards.modality import MEDIA, SOUNDS, Modality
from shards.vocabulary import MediaBlock, TokenIds

IMAGE_CODES = Modality.IMAGE.rate.num_frames
FRAMES_PER_SECOND = {modality: modality.rate.frame_rate_hz for modality in SOUNDS}
CODEBOOK_SIZES = {modality: modality.rate.codebook_size for modality in MEDIA}


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
    # ceil of the duration; a sample more or less is less than a 300th of a frame, hence the slack.
    exact = duration_s * FRAMES_PER_SECOND[known]
    if not exact - 1e-2 <= num_frames < exact + 1 + 1e-2:
        return f"{modality}: frames that are not {FRAMES_PER_SECOND[known]:g} per second of its duration"
    return ""
