"""What an answer of a chat may be: a turn of text and media that fits what is left of the model's context.

Half of the context at most is kept free for the answer, all that it may need if a medium is asked for; where the history
needs more, its oldest exchanges go. Then text and media are given budgets that fit, so that no answer is cut by the
context: a picture that has no room is not begun.

The answer to a spoken message may begin with what was heard, ``<-Ins->`` words ``<-Res->``, once; where a vocabulary has no
ids for these two, they are text like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inference.chat_history import ChatForm, Exchange, oldest_to_drop
from inference.config import SPOKEN_OF
from inference.decoding import DecodingConfig
from inference.grammar import AnswerGrammar, Grammar, LengthBudget, Rule, State, TurnGrammar
from inference.runtime import Runtime
from pipeline.dialogues import REPLY_MARKS
from shards.errors import ConfigError
from shards.vocabulary import Modality, Vocabulary

_HEARD = -2
"""What ``State.medium`` is while the model says what it heard."""
_LEAST_TEXT = 8
_MARKERS = 2  # start and end of a medium
_OPENING = 1
"""Ids a turn may have before ``<-Ins->``: the one that holds the space."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a message is answered: what the model is no longer shown, and what it may say."""

    dropped: int
    grammar: Grammar


class SpokenTurnGrammar(TurnGrammar):
    """A turn that may begin with what was heard: a medium of words, as it were."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        budgets: Mapping[Modality, LengthBudget],
        *,
        max_ids: int,
        min_ids: int = 1,
        required: Modality | None = None,
    ) -> None:
        """The vocabulary has both marks; the rest is as in :class:`TurnGrammar`."""
        super().__init__(vocabulary, budgets, max_ids=max_ids, min_ids=min_ids, required=required)
        self._ins, self._res = (vocabulary.marker(mark) for mark in REPLY_MARKS)
        self._most += 1  # for <-Res->, which may have to follow the last word that there is room for
        words = self.rules[self._going[True, False, 0]].ids
        # Every rule that lets text come lets <-Ins-> come besides.
        self._opening = {usual: len(self.rules) + nth for nth, usual in enumerate(self._going.values())}
        self._heard = len(self.rules) + len(self._opening)
        own = [self._with(self.rules[usual].ids, self._ins) for usual in self._opening]
        own += [words, self._with(words, self._res), np.array([self._res], np.int64)]
        self.rules = (*self.rules, *(Rule(Modality.TEXT, ids) for ids in own))

    def step(self, state: State, token_id: int) -> State:
        """The state after one more id."""
        if state.medium == _HEARD:
            if token_id == self._res:
                return State(state.used + 1, met=state.met, words=state.words)
            return State(state.used + 1, _HEARD, state.inside + 1, state.met, words=state.words + 1)
        if token_id == self._ins:
            return State(state.used + 1, _HEARD, met=state.met, words=state.words + 1)
        return super().step(state, token_id)

    def rule(self, state: State) -> int:
        """Which of ``rules`` holds."""
        if state.medium == _HEARD:
            if state.words >= self._room:
                return self._heard + 2
            return self._heard + (1 if state.inside else 0)
        usual = super().rule(state)
        return self._opening.get(usual, usual) if state.used <= _OPENING else usual

    @staticmethod
    def _with(ids: np.ndarray, token_id: int) -> np.ndarray:
        return np.union1d(ids, [token_id]).astype(np.int64)


def fit_turn(
    runtime: Runtime,
    form: ChatForm,
    exchanges: Sequence[Exchange],
    asked: Sequence[int],
    *,
    to_modality: Modality | None,
    is_spoken: bool,
    context: int,
) -> Fitted:
    """Choose what of the history is shown, and build the grammar of the answer.

    Args:
        to_modality: what the answer must hold. No other medium is let in then, save a voice if the message is spoken.

    Raises:
        ConfigError: the message leaves no room for an answer, or there is no codec for what is wanted.
    """
    vocabulary = runtime.vocabulary
    budgets = _budgets(runtime, to_modality, is_spoken=is_spoken)
    required = to_modality if to_modality != Modality.TEXT else None
    decoding = runtime.decoding.of(Modality.TEXT, chat=True)
    text = decoding.max_new_tokens
    wanted = text + _longest(budgets, vocabulary) + _required(budgets, required, vocabulary) + _MARKERS
    # A medium that was asked for gets all it may need, if the history has to go for it.
    kept_free = wanted if required is not None else min(wanted, context // 2)
    dropped = oldest_to_drop(form, exchanges, asked, context=context, room=kept_free)
    room = context - form.num_ids(exchanges[dropped:], asked)
    fitted = _fit(budgets, vocabulary, room=room - min(text, max(room // 4, _LEAST_TEXT)) - _MARKERS, required=required)
    text_room = min(text, room - _longest(fitted, vocabulary) - _required(fitted, required, vocabulary) - _MARKERS)
    if text_room < _LEAST_TEXT or (required is not None and required not in fitted):
        raise ConfigError(
            f"message: expected at most {context} ids with its answer, found {len(asked)} in the message alone, which "
            f"leave no room for {required or 'an answer'}; say less, or show fewer and shorter media"
        )
    least = min(decoding.min_new_tokens, text_room)
    if is_spoken and all(mark in vocabulary.markers for mark in REPLY_MARKS):
        spoken = SpokenTurnGrammar(vocabulary, fitted, max_ids=text_room, min_ids=least, required=required)
        return Fitted(dropped, spoken)
    if not fitted:
        return Fitted(dropped, AnswerGrammar(vocabulary, Modality.TEXT, LengthBudget(least, text_room)))
    return Fitted(dropped, TurnGrammar(vocabulary, fitted, max_ids=text_room, min_ids=least, required=required))


def answerable(runtime: Runtime) -> tuple[Modality, ...]:
    """Media that a model can answer in: the vocabulary has them, and the config a codec."""
    return tuple(one for one in SPOKEN_OF if one in runtime.vocabulary.blocks and one in runtime.config.codecs)


def _budgets(runtime: Runtime, to_modality: Modality | None, *, is_spoken: bool) -> dict[Modality, LengthBudget]:
    media = answerable(runtime)
    if to_modality not in (None, Modality.TEXT, *media):
        raise ConfigError(
            f"to_modality: expected text or one of {[str(one) for one in media]}, which have a codec, found "
            f"{str(to_modality)!r}; set codecs.{to_modality}"
        )
    if to_modality is not None:
        media = tuple(one for one in media if one == to_modality or (is_spoken and one == Modality.SPEECH))
        media = () if to_modality == Modality.TEXT else media
    decoding: DecodingConfig = runtime.decoding
    return {one: decoding.budget(one, runtime.vocabulary) for one in media}


def _fit(
    budgets: Mapping[Modality, LengthBudget], vocabulary: Vocabulary, *, room: int, required: Modality | None
) -> dict[Modality, LengthBudget]:
    """Budgets of what can be held in ``room`` ids, each by itself, and the required one besides."""
    fitted: dict[Modality, LengthBudget] = {}
    share = room // 2 if required is not None and len(budgets) > 1 else room
    for modality, budget in budgets.items():
        most = min(budget.most, (share - _MARKERS) // vocabulary.block(modality).levels)
        if most >= max(budget.least, 1):
            fitted[modality] = LengthBudget(budget.least, most)
    return fitted


def _longest(budgets: Mapping[Modality, LengthBudget], vocabulary: Vocabulary) -> int:
    return max((_ids(modality, budget, vocabulary) for modality, budget in budgets.items()), default=0)


def _required(budgets: Mapping[Modality, LengthBudget], required: Modality | None, vocabulary: Vocabulary) -> int:
    """Ids of the required medium behind another one; where there is no other, it is the longest."""
    if required is None or required not in budgets or len(budgets) == 1:
        return 0
    return _ids(required, budgets[required], vocabulary)


def _ids(modality: Modality, budget: LengthBudget, vocabulary: Vocabulary) -> int:
    return budget.most * vocabulary.block(modality).levels + _MARKERS
