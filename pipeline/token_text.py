"""Token text read back: what a model wrote, as a string, to codes.

Strict reading (one medium, no spaces, everything in range) is :meth:`MediaBlock.from_text`. These are the lenient readers
of the released command lines, for text that a slow tokenizer decoded with a space around every added token, or that a
model broke off. A generation of our own keeps ids and needs none of this.
"""

from __future__ import annotations

import re

import numpy as np

from shards.errors import SampleError
from shards.vocabulary import Codes, MediaBlock


def find_last_between(text: str, start: str, end: str) -> str | None:
    """What stands between the last ``start`` and the last ``end`` after it; None if there is no such pair."""
    begin, stop = text.rfind(start), text.rfind(end)
    return text[begin + len(start) : stop] if 0 <= begin < stop else None


def find_first_between(text: str, start: str, end: str) -> str:
    """What stands after the first ``start``, up to the next ``end`` if there is one; all of it without a ``start``."""
    begin = text.find(start)
    if begin < 0:
        return text
    body = text[begin + len(start) :]
    return body.split(end, 1)[0]


def read_codes(block: MediaBlock, text: str) -> Codes:
    """Codes of the last medium of a kind in a text, or of a bare run of its tokens; spaces between tokens are ignored.

    A last frame that lacks levels is dropped.

    Returns:
        (frames, levels) uint16, at least one frame.

    Raises:
        SampleError: ``token_text_malformed`` if other text stands between the tokens or an index is out of range,
            ``levels_out_of_order`` if an index is of another level than its place says.
    """
    inner = find_last_between(text, block.start, block.end)
    body = re.sub(r"\s+", "", text if inner is None else inner)
    token = rf"<{re.escape(block.prefix)}([0-9]+)>"
    if not re.fullmatch(f"(?:{token})+", body):
        raise SampleError(
            "token_text_malformed", f"{block.name}: expected <{block.prefix}N> tokens, found {body[:60]!r}"
        )
    indices = [int(digits) for digits in re.findall(token, body)]
    whole = indices[: len(indices) - len(indices) % block.levels]
    if not whole or max(whole) >= block.num_codes:
        raise SampleError(
            "token_text_malformed",
            f"{block.name}: expected at least {block.levels} indices below {block.num_codes}, found {indices[:8]}",
        )
    return block.to_codes(np.array(whole, np.int64) + block.first_id)
