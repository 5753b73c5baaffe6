"""A grammar of tokens: which ids may come next in an answer of one modality.

    text     text ids until ``<eos>`` or ``</s>``
    image    exactly 32 codes, then the end marker
    speech   codes until the end marker, within a length budget
    music    the levels in order, frame by frame, the end marker only after a whole frame

so that every answer can be decoded. The released code lets any token follow any other (anygpt-compat 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.vocabulary import Modality, Vocabulary

IMAGE_CODES = 32
ASSISTANT_END = "<eos>"

Allowed = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LengthBudget:
    """Frames of a medium, or ids of a text, that an answer must and may have."""

    least: int
    most: int


class AnswerGrammar:
    """The ids allowed at each position of an answer, and where it ends; one object serves any number of answers."""

    def __init__(self, vocabulary: Vocabulary, modality: Modality, budget: LengthBudget) -> None:
        self.vocabulary = vocabulary
        self.modality = modality
        self.budget = LengthBudget(IMAGE_CODES, IMAGE_CODES) if modality == Modality.IMAGE else budget
        if modality == Modality.TEXT:
            ends = [vocabulary.eos_id]
            ends += [vocabulary.markers[ASSISTANT_END]] if ASSISTANT_END in vocabulary.markers else []
            self._levels = [self._text_ids()]
        else:
            block = vocabulary.block(modality)
            ends = [block.end_id]
            firsts = [block.first_id + level * block.codebook_size for level in range(block.levels)]
            self._levels = [self._mask(np.arange(first, first + block.codebook_size)) for first in firsts]
        self.end_ids = frozenset(ends)
        self._ends = self._mask(np.array(ends))

    @property
    def max_ids(self) -> int:
        """Most ids an answer can have, its end included."""
        return self.budget.most * len(self._levels) + 1

    def allowed(self, position: int) -> Allowed:
        """(vocabulary,) mask of the ids that may stand at ``position`` of an answer, counted after its start marker."""
        levels = len(self._levels)
        frame, level = divmod(position, levels)
        if frame >= self.budget.most:
            return self._ends
        if level == 0 and frame >= self.budget.least:
            return self._levels[0] | self._ends
        return self._levels[level]

    def _text_ids(self) -> Allowed:
        mask = self._mask(np.arange(self.vocabulary.text_size))
        mask[[self.vocabulary.bos_id, self.vocabulary.eos_id, self.vocabulary.pad_id]] = False
        return mask

    def _mask(self, ids: npt.NDArray[np.integer]) -> Allowed:
        mask = np.zeros(self.vocabulary.size, np.bool_)
        mask[ids] = True
        return mask
