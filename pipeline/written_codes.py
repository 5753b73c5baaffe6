"""Codes as a language model wrote them: ids of one medium, perhaps not quite in order.

A model that samples freely may write an id of the wrong level, or stop within a frame. ``reject`` treats that as a broken
medium; ``repair`` saves every frame that is whole and counts what it drops. (The released code takes the ids four by
four whatever they are, so that one id too many shifts every later frame by a level.)
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from shards.vocabulary import Codes, MediaBlock, TokenIds

Policy = Literal["reject", "repair"]


def codes_of_ids(token_ids: TokenIds, block: MediaBlock, *, policy: Policy = "reject") -> tuple[Codes, int]:
    """Codes of the ids between the markers of one medium.

    Args:
        token_ids: (n,), markers not included.
        policy: ``reject`` refuses anything but whole frames with the levels in order. ``repair`` reads frames from left to
            right: where the next ids are not one of every level in order, one id is dropped and reading goes on behind it.

    Returns:
        (frames, levels) uint16, and how many ids were dropped.

    Raises:
        SampleError: ``levels_out_of_order``, with policy ``reject``.
    """
    if policy == "reject":
        return block.to_codes(token_ids), 0
    local = np.asarray(token_ids, np.int64) - block.first_id
    level = np.where((local >= 0) & (local < block.num_codes), local // block.codebook_size, -1)
    expected = np.arange(block.levels)
    kept: list[int] = []
    place = 0
    while place + block.levels <= len(level):
        if np.array_equal(level[place : place + block.levels], expected):
            kept.append(place)
            place += block.levels
        else:
            place += 1
    starts = np.array(kept, np.int64)[:, None]
    codes = local[starts + expected] - expected * block.codebook_size
    return codes.astype(np.uint16), len(level) - codes.size
