"""A grammar of tokens: which ids may come next in an answer.

An answer of one modality (:class:`AnswerGrammar`):

    text     text ids until ``<eos>`` or ``</s>``
    image    exactly 32 codes, then the end marker
    speech   codes until the end marker, within a length budget
    music    the levels in order, frame by frame, the end marker only after a whole frame; any other sound likewise

An assistant's turn (:class:`TurnGrammar`) is text with media in it, each medium under its own rule, until ``<eos>``.
Every answer can be decoded. The released code lets any token follow any other (anygpt-compat 7.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shards.vocabulary import Modality, Vocabulary

ASSISTANT_END = "<eos>"

Allowed = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LengthBudget:
    """Frames of a medium, or ids of a text, that an answer must and may have."""

    least: int
    most: int


class Grammar(Protocol):
    """What generation asks: which ids may follow an answer so far, and which end it."""

    vocabulary: Vocabulary
    end_ids: frozenset[int]

    @property
    def max_ids(self) -> int:
        """Most ids an answer can have, its end included."""
        ...

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """(vocabulary,) mask of the ids that may come after ``answer``."""
        ...


class AnswerGrammar:
    """An answer of one modality, counted after its start marker; one object serves any number of answers."""

    def __init__(self, vocabulary: Vocabulary, modality: Modality, budget: LengthBudget) -> None:
        self.vocabulary = vocabulary
        self.modality = modality
        self.budget = budget
        if modality != Modality.TEXT and not modality.is_sound:
            self.budget = LengthBudget(modality.rate.num_frames, modality.rate.num_frames)
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

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """(vocabulary,) mask of the ids that may come after ``answer``."""
        levels = len(self._levels)
        frame, level = divmod(len(answer), levels)
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


class TurnGrammar:
    """An assistant's turn: text and media in any order; at least one id, whole media only."""

    def __init__(self, vocabulary: Vocabulary, budgets: Mapping[Modality, LengthBudget], *, max_ids: int) -> None:
        """Budgets are those of each medium that may occur; ``max_ids`` is where text stops being allowed."""
        self.vocabulary = vocabulary
        self._text = AnswerGrammar(vocabulary, Modality.TEXT, LengthBudget(1, max_ids))
        self._media = {modality: AnswerGrammar(vocabulary, modality, budget) for modality, budget in budgets.items()}
        self._starts = {vocabulary.block(modality).start_id: modality for modality in budgets}
        self._stops = {vocabulary.block(modality).end_id for modality in budgets}
        self._room = max_ids
        self.end_ids = self._text.end_ids

    @property
    def max_ids(self) -> int:
        """The text budget plus the longest medium that may begin at its end."""
        return self._room + max((grammar.max_ids for grammar in self._media.values()), default=0) + 1

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """(vocabulary,) mask of the ids that may come after ``answer``."""
        for back, token_id in enumerate(reversed(answer)):
            if token_id in self._stops:
                break
            if token_id in self._starts:
                return self._media[self._starts[token_id]].allowed(answer[len(answer) - back :])
        mask = self._text.allowed(answer if len(answer) >= self._room else answer[:1]).copy()
        if len(answer) < self._room:
            mask[list(self._starts)] = True
        return mask
