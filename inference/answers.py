"""What is asked of a model, and an answer as it grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from inference.grammar import Grammar, State
from inference.sampling import GREEDY, SamplingConfig
from shards.vocabulary import Modality, TokenIds

Samplings = Mapping[Modality, SamplingConfig]
StateTest = Callable[[State], bool]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt up to and with the start marker of what is wanted (a text has none), and the key of its draws."""

    key: str
    prompt_ids: TokenIds


@dataclass(slots=True)
class Answer:
    """What has been said to a request so far; an end marker is one of its ids."""

    request: Request
    state: State
    ids: list[int] = field(default_factory=list[int])

    @property
    def read_ids(self) -> TokenIds:
        """Prompt and answer."""
        return np.concatenate([self.request.prompt_ids, np.array(self.ids, np.int64)])

    def add(self, token_id: int, grammar: Grammar) -> None:
        """One more id, and an end that must follow it: a model need not be asked where there is no choice."""
        self.ids.append(token_id)
        self.state = grammar.step(self.state, token_id)
        if self.state.ended:
            return
        allowed = grammar.rules[grammar.rule(self.state)].ids
        if len(allowed) == 1 and grammar.step(self.state, only := int(allowed[0])).ended:
            self.add(only, grammar)

    def without_end(self, grammar: Grammar) -> list[int]:
        """Its ids without what only says that it has ended."""
        return self.ids[:-1] if self.ids and self.ids[-1] in grammar.end_ids else self.ids


def samplings_of(sampling: SamplingConfig | Samplings) -> Samplings:
    """One sampling for every modality, or one each; a modality without one takes the likeliest id."""
    if isinstance(sampling, SamplingConfig):
        return dict.fromkeys(Modality, sampling)
    return {modality: sampling.get(modality, GREEDY) for modality in Modality}


def modality_of(state: State, grammar: Grammar) -> Modality:
    """What the next id is drawn as."""
    return grammar.rules[grammar.rule(state)].modality


def rows_by_rule(states: Sequence[State], grammar: Grammar) -> dict[int, list[int]]:
    """Rule -> rows whose state it holds in."""
    rows: dict[int, list[int]] = {}
    for row, state in enumerate(states):
        rows.setdefault(grammar.rule(state), []).append(row)
    return rows
