"""Token text read back: ids to the string they stand for, and what a model wrote, as a string, to codes.

Strict reading (one medium, no spaces, everything in range) is :meth:`MediaBlock.from_text`. These are the lenient readers
of the released command lines, for text that a slow tokenizer decoded with a space around every added token, or that a
model broke off. A generation of our own keeps ids and needs none of this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import numpy as np

from shards.errors import SampleError
from shards.vocabulary import Codes, MediaBlock, TokenIds, Vocabulary


class TextDecoder(Protocol):
    """What spelling ids needs of a text tokenizer (:class:`pipeline.text.TextTokenizer` is one)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that are all text."""
        ...


def spell_token_ids(token_ids: TokenIds, vocabulary: Vocabulary, text_tokenizer: TextDecoder) -> str:
    """The string that ids stand for: text decoded, markers and media in their own token text, ``<s>`` and ``</s>`` shown.

    For a document it is what :func:`pipeline.pieces.write_text` wrote, between ``<s>`` and ``</s>``.

    Args:
        token_ids: (n,) ids of the vocabulary.
    """
    names = {vocabulary.bos_id: "<s>", vocabulary.eos_id: "</s>"}
    names |= {marker_id: name for name, marker_id in vocabulary.markers.items()}
    for block in vocabulary.blocks.values():
        names |= {block.start_id: block.start, block.end_id: block.end}

    def kind(token_id: int) -> str:
        if token_id in names:
            return "named"
        return "text" if token_id < vocabulary.text_size else "code"

    parts: list[str] = []
    for which, run in groupby(token_ids.tolist(), key=kind):
        if which == "text":
            parts.append(text_tokenizer.decode(list(run)))
        elif which == "named":
            parts += [names[token_id] for token_id in run]
        else:
            parts += [_code_text(token_id, vocabulary) for token_id in run]
    return "".join(parts)


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


def _code_text(token_id: int, vocabulary: Vocabulary) -> str:
    block = next((b for b in vocabulary.blocks.values() if b.first_id <= token_id < b.stop_id), None)
    if block is None:
        raise SampleError("id_out_of_range", f"expected ids below {vocabulary.size}, found {token_id}")
    return f"<{block.prefix}{token_id - block.first_id}>"
