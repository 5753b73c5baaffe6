"""A grammar of tokens: a finite-state machine that says which ids may come next in an answer.

An answer of one modality (:class:`AnswerGrammar`):

    text     text ids until ``<eos>`` or ``</s>``
    image    exactly 32 codes, then the end marker
    speech   codes until the end marker, within a length budget
    music    the levels in order, frame by frame, the end marker only after a whole frame; any other sound likewise

An assistant's turn (:class:`TurnGrammar`) is text with media in it, each medium under its own rule, until ``<eos>``.
Every answer can be decoded. The released code lets any token follow any other (anygpt-compat 7.3);
:class:`FreeGrammar` does too, for contrast.

A grammar is a small table of rules, each the ids that may come and the modality they are drawn as, and a
:class:`State` that counts. One id costs one :meth:`Grammar.step` and one :meth:`Grammar.rule`, however long the answer.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError
from shards.vocabulary import Modality, Vocabulary

Allowed = npt.NDArray[np.bool_]


class Stop(StrEnum):
    """What ends an answer."""

    ASSISTANT_END = "<eos>"
    SEQUENCE_END = "</s>"
    MEDIUM = "a closed marker"
    """The end marker of the first medium of a turn."""


TEXT_STOPS = frozenset({Stop.ASSISTANT_END, Stop.SEQUENCE_END})


@dataclass(frozen=True, slots=True)
class LengthBudget:
    """Frames of a medium, or ids of a text, that an answer must and may have."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ConfigError(f"length budget: expected 0 <= least <= most, found {self.least} and {self.most}")


class State(NamedTuple):
    """Where an answer is. The budgets bound the numbers, so the states are finitely many."""

    used: int = 0
    """Ids of the answer so far."""
    medium: int = -1
    """Which medium of a turn is open; -1: none."""
    inside: int = 0
    """Ids since its start marker."""
    met: bool = True
    """Whether a turn holds the medium that it must."""
    ended: bool = False
    words: int = 0
    """Of a turn's ids so far, those outside media."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What may come next in one kind of place.

    Attributes:
        modality: whose sampling draws the id. Start markers are drawn as text, end markers as their medium.
        ids: (n,) int64, ascending.
    """

    modality: Modality
    ids: npt.NDArray[np.int64]


class Grammar(Protocol):
    """What generation asks."""

    vocabulary: Vocabulary
    end_ids: frozenset[int]
    """Ids that end an answer and are no part of it."""
    rules: tuple[Rule, ...]

    @property
    def max_ids(self) -> int:
        """Most ids an answer can have, its end included."""
        ...

    def start(self) -> State:
        """The state of an empty answer."""
        ...

    def step(self, state: State, token_id: int) -> State:
        """The state after one more id, which the rule of ``state`` allows."""
        ...

    def rule(self, state: State) -> int:
        """Which of ``rules`` holds in a state that has not ended."""
        ...


def walk(grammar: Grammar, answer: Iterable[int]) -> State:
    """The state after an answer that the grammar allows."""
    state = grammar.start()
    for token_id in answer:
        state = grammar.step(state, token_id)
    return state


def accepts(grammar: Grammar, answer: Sequence[int]) -> bool:
    """Whether ``answer``, its end included, is a whole answer of the grammar."""
    state = grammar.start()
    for token_id in answer:
        if state.ended or token_id not in grammar.rules[grammar.rule(state)].ids:
            return False
        state = grammar.step(state, token_id)
    return state.ended


def mask_of(ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> Allowed:
    """(vocabulary,) bool, true at ``ids``."""
    mask = np.zeros(vocabulary.size, np.bool_)
    mask[ids] = True
    return mask


class AnswerGrammar:
    """An answer of one modality, counted after its start marker; one object serves any number of answers."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        modality: Modality,
        budget: LengthBudget,
        *,
        stop_on: frozenset[Stop] = TEXT_STOPS,
    ) -> None:
        """``stop_on`` is what ends a text; a medium ends with its end marker."""
        self.vocabulary = vocabulary
        self.modality = modality
        self.budget = budget
        if modality == Modality.TEXT:
            ends = _text_ends(vocabulary, stop_on)
            levels = [_text_ids(vocabulary)]
        else:
            if not modality.is_sound:
                self.budget = LengthBudget(modality.rate.num_frames, modality.rate.num_frames)
            block = vocabulary.block(modality)
            ends = [block.end_id]
            firsts = [block.first_id + level * block.codebook_size for level in range(block.levels)]
            levels = [np.arange(first, first + block.codebook_size) for first in firsts]
        self.end_ids = frozenset(ends)
        self._levels = len(levels)
        # One rule a level, then: a new frame or the end, then: the end.
        tables = [*levels, np.concatenate([levels[0], ends]), np.array(ends)]
        self.rules = tuple(Rule(modality, np.sort(ids).astype(np.int64)) for ids in tables)

    @property
    def max_ids(self) -> int:
        """Most ids an answer can have, its end included."""
        return self.budget.most * self._levels + 1

    def start(self) -> State:
        """The state of an empty answer."""
        return State()

    def step(self, state: State, token_id: int) -> State:
        """The state after one more id."""
        return State(state.used + 1, ended=token_id in self.end_ids)

    def rule(self, state: State) -> int:
        """Which of ``rules`` holds."""
        return self.rule_at(state.used)

    def rule_at(self, used: int) -> int:
        """Which of ``rules`` holds after so many ids."""
        frame, level = divmod(used, self._levels)
        if frame >= self.budget.most:
            return self._levels + 1
        return self._levels if level == 0 and frame >= self.budget.least else level

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """(vocabulary,) mask of the ids that may come after ``answer``."""
        return mask_of(self.rules[self.rule_at(len(answer))].ids, self.vocabulary)


class TurnGrammar:
    """An assistant's turn: text and media in any order; at least one id, whole media only.

    A medium is begun only where its longest form fits the turn, and whatever else the turn must hold behind it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        budgets: Mapping[Modality, LengthBudget],
        *,
        max_ids: int,
        min_ids: int = 1,
        required: Modality | None = None,
        stop_on: frozenset[Stop] = TEXT_STOPS,
    ) -> None:
        """A turn may hold the media that have a budget.

        Args:
            max_ids: of text; media are not counted.
            min_ids: the turn does not end on less, media counted.
            required: a medium that the turn must hold.
            stop_on: with ``Stop.MEDIUM`` the turn also ends where its first medium does.
        """
        if required is not None and required not in budgets:
            raise ConfigError(f"turn: expected the required {required} among {sorted(budgets)}, which have a budget")
        if not 1 <= min_ids <= max_ids:
            raise ConfigError(f"turn: expected 1 <= min_ids <= max_ids, found {min_ids} and {max_ids}")
        self.vocabulary = vocabulary
        self.end_ids = frozenset(_text_ends(vocabulary, stop_on))
        self._media = [AnswerGrammar(vocabulary, modality, budget) for modality, budget in budgets.items()]
        self._starts = {vocabulary.block(modality).start_id: number for number, modality in enumerate(budgets)}
        self._stops = [vocabulary.block(modality).end_id for modality in budgets]
        self._required = list(budgets).index(required) if required is not None else None
        self._min_ids, self._room = min_ids, max_ids
        self._end_at_medium = Stop.MEDIUM in stop_on
        self._lay_out_rules()

    def _lay_out_rules(self) -> None:
        """The rules of media, then one for each set of media that may still have room, then what is left at the end."""
        rules: list[Rule] = []
        self._first_rule: list[int] = []
        for medium in self._media:
            self._first_rule.append(len(rules))
            rules += medium.rules
        words, ends = _text_ids(self.vocabulary).tolist(), list(self.end_ids)
        costs = [medium.max_ids + 1 for medium in self._media]
        starts = list(self._starts)
        cheapest_first = sorted(range(len(costs)), key=costs.__getitem__)
        others = [number for number in cheapest_first if number != self._required]
        needed = [] if self._required is None else [starts[self._required]]
        self._needed_ids = 0 if self._required is None else costs[self._required]
        # Of what may be begun besides the required medium, which is never without room.
        self._costs = {True: [costs[one] for one in cheapest_first], False: [costs[one] for one in others]}
        self._most = self._room + self._needed_ids + max(self._costs[False], default=0) + 1
        self._going: dict[tuple[bool, bool, int], int] = {}
        kinds = [(True, True), (True, False), *([(False, False)] if needed else [])]
        for met, can_end in kinds:
            media = cheapest_first if met else others
            for count in range(len(media) + 1):
                self._going[met, can_end, count] = len(rules)
                begun = [starts[one] for one in media[:count]]
                rules.append(_text_rule([*words, *begun, *([] if met else needed), *(ends if can_end else [])]))
        self._last = {True: len(rules), False: len(rules) + 1}
        self.rules = (*rules, _text_rule(ends), *([_text_rule(needed)] if needed else []))

    @property
    def max_ids(self) -> int:
        """All text, the required medium, the longest other one, and the end."""
        return self._most

    @property
    def max_text_ids(self) -> int:
        """Most ids outside media."""
        return self._room

    def start(self) -> State:
        """The state of an empty turn."""
        return State(met=self._required is None)

    def step(self, state: State, token_id: int) -> State:
        """The state after one more id."""
        used = state.used + 1
        if state.medium < 0:
            medium = self._starts.get(token_id, -1)
            words = state.words + (medium < 0)
            return State(used, medium, met=state.met, ended=token_id in self.end_ids, words=words)
        if token_id != self._stops[state.medium]:
            return State(used, state.medium, state.inside + 1, state.met, words=state.words)
        met = state.met or state.medium == self._required
        return State(used, met=met, ended=self._end_at_medium and met, words=state.words)

    def rule(self, state: State) -> int:
        """Which of ``rules`` holds."""
        if state.medium >= 0:
            return self._first_rule[state.medium] + self._media[state.medium].rule_at(state.inside)
        left = self._most - 1 - state.used - (0 if state.met else self._needed_ids)
        if state.words >= self._room or left < 1:
            return self._last[state.met]
        count = bisect.bisect_right(self._costs[state.met], left)
        return self._going[state.met, state.met and state.used >= self._min_ids, count]

    def allowed(self, answer: Sequence[int]) -> Allowed:
        """(vocabulary,) mask of the ids that may come after ``answer``."""
        return mask_of(self.rules[self.rule(walk(self, answer))].ids, self.vocabulary)


class FreeGrammar:
    """No constraint but the vocabulary: any id may follow any other, as in the released code."""

    def __init__(
        self, vocabulary: Vocabulary, modality: Modality, *, max_ids: int, end_ids: Iterable[int] = ()
    ) -> None:
        """Every id is drawn as ``modality``; an answer ends on ``end_ids`` or after ``max_ids``."""
        self.vocabulary = vocabulary
        self.end_ids = frozenset(end_ids)
        self.rules = (Rule(modality, np.arange(vocabulary.size)),)
        self.max_ids = max_ids

    def start(self) -> State:
        """The state of an empty answer."""
        return State()

    def step(self, state: State, token_id: int) -> State:
        """The state after one more id."""
        return State(state.used + 1, ended=token_id in self.end_ids or state.used + 1 >= self.max_ids)

    def rule(self, state: State) -> int:
        """The one rule."""
        del state
        return 0


def _text_ids(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    special = [vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id]
    return np.setdiff1d(np.arange(vocabulary.text_size), special)


def _text_rule(ids: Sequence[int]) -> Rule:
    return Rule(Modality.TEXT, np.array(sorted(ids), np.int64))


def _text_ends(vocabulary: Vocabulary, stop_on: frozenset[Stop]) -> list[int]:
    ends = [vocabulary.eos_id] if Stop.SEQUENCE_END in stop_on else []
    if Stop.ASSISTANT_END in stop_on and Stop.ASSISTANT_END in vocabulary.markers:
        ends.append(vocabulary.markers[Stop.ASSISTANT_END])
    if not ends:
        raise ConfigError(
            f"vocabulary {vocabulary.name}: expected an end of text among {sorted(TEXT_STOPS)}, found none of it in "
            f"{sorted(stop_on)}; a text needs one"
        )
    return ends
