"""Which codes SoundStorm is not shown, and which of these it must tell: a pure function of seed and position.

Source: Borsos et al. 2023, arXiv:2305.09636, section 3 (masking). For every piece of speech: a beginning of random length
is the voice prompt, all of whose levels are given; after it one level q is drawn; the levels below q are given, those above
are hidden, and of level q a share ``cos(u * pi / 2)`` of the frames, u uniform, is hidden and must be told.

Masks are drawn from the seed, the row's position in the mixture and the number of the piece in its row; so they are the same
whatever the number of processes or forward passes, and after a crash. No torch: the stream's thread marks rows while the
device computes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.vocabulary import MediaBlock, TokenIds

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of speech in a batch of rows.

    Attributes:
        start: of its first code in the flattened rows.
        num_frames: ``levels`` codes each.
        level: the one that is learnt in this pass, from 1; level 0 is always given.
    """

    start: int
    num_frames: int
    level: int


@dataclass(frozen=True, slots=True)
class Masking:
    """What is hidden of rows of codes.

    Attributes:
        block: the vocabulary's one medium, all levels of it.
    """

    block: MediaBlock
    seed: int

    def mark(self, token_ids: TokenIds, position: int) -> tuple[Flags, Flags]:
        """What is a target and what is hidden in one row; every target is hidden.

        Args:
            token_ids: (length,).
            position: of the row in the mixture.

        Returns:
            Two (length,) arrays.
        """
        is_target, is_hidden = np.zeros(len(token_ids), np.bool_), np.zeros(len(token_ids), np.bool_)
        levels = self.block.levels
        for number, (start, num_frames) in enumerate(self._pieces(token_ids)):
            random = _generator(self.seed, position, number)
            level = 1 + int(random.integers(levels - 1))
            prompt = int(random.integers(num_frames))
            share = math.cos(random.random() * math.pi / 2)
            rest = num_frames - prompt
            count = max(1, round(share * rest))
            frames = prompt + random.permutation(rest)[:count]
            piece = slice(start, start + num_frames * levels)
            hidden = is_hidden[piece].reshape(num_frames, levels)
            hidden[prompt:, level + 1 :] = True
            hidden[frames, level] = True
            is_target[piece].reshape(num_frames, levels)[frames, level] = True
        return is_target, is_hidden

    def spans(self, token_ids: TokenIds, is_target: Flags) -> list[Span]:
        """Every piece of speech in the rows, in order.

        Args:
            token_ids, is_target: (rows, length), as marked.
        """
        levels, length = self.block.levels, token_ids.shape[1]
        found: list[Span] = []
        for row in range(len(token_ids)):
            for start, num_frames in self._pieces(token_ids[row]):
                first = int(np.argmax(is_target[row, start : start + num_frames * levels]))
                found.append(Span(row * length + start, num_frames, first % levels))
        return found

    def _pieces(self, token_ids: TokenIds) -> list[tuple[int, int]]:
        """(first code, frames) of every piece; a row never holds part of one."""
        starts = np.flatnonzero(token_ids == self.block.start_id)
        ends = np.flatnonzero(token_ids == self.block.end_id)
        assert len(starts) == len(ends), "packed rows hold whole media"
        pairs = zip((starts + 1).tolist(), ends.tolist(), strict=True)
        return [(start, (end - start) // self.block.levels) for start, end in pairs if end > start]


def _generator(*key: Any) -> np.random.Generator:
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8, person=b"soundstorm").digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
