"""Beam search for text under a grammar: batched, deterministic, compared by length-normalised log-probability.

Source: AnyGPT Table 9 (text, beam 5). The search covers one stretch of text: to the end of the answer, or in a turn to
the start marker of a medium, which a hypothesis may choose like any other id. Rules as in ``transformers``:

* of the next ids of all hypotheses, the likeliest that leave the text are finished if they are among the first
  ``num_beams``; the likeliest others go on;
* a hypothesis is worth its log-probability over (its length, the id that leaves included) to ``length_penalty``;
* the search ends when ``num_beams`` are finished and the best that goes on, at its present length, is worth less.

Log-probabilities are those among the ids that the grammar allows. Equal ones go to the earlier hypothesis, then to the
lower id. With a temperature, continuations are drawn without replacement (Gumbel noise) instead of taken in order; what
they are worth stays their log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from inference.answers import Answer, Samplings, StateTest, rows_by_rule
from inference.grammar import Grammar, State
from inference.sampling import SamplingConfig, gumbels, log_probabilities
from inference.stepping import Columns, Said, Stepper
from shards.vocabulary import Modality


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """A way to go on: its last id and the hypothesis before it, so that branching copies nothing."""

    state: State
    before: Hypothesis | None = None
    token_id: int = -1
    log_probability: float = 0.0
    length: int = 0

    def ids(self) -> list[int]:
        """Of the stretch, in order."""
        ids: list[int] = []
        one: Hypothesis | None = self
        while one is not None and one.before is not None:
            ids.append(one.token_id)
            one = one.before
        return ids[::-1]


class Candidate(NamedTuple):
    """One more id for one of the hypotheses; ``order`` is what is compared when the ids are picked."""

    order: float
    log_probability: float
    parent: int
    token_id: int


@dataclass(slots=True)
class Search:
    """The hypotheses of one answer: those that go on, and the best of those that have left the text."""

    answer: Answer
    live: list[Hypothesis]
    finished: list[tuple[float, Hypothesis]] = field(default_factory=list[tuple[float, Hypothesis]])
    is_done: bool = False

    def extend(
        self, candidates: Sequence[Candidate], grammar: Grammar, sampling: SamplingConfig, leaves: StateTest
    ) -> list[int]:
        """Replace the live hypotheses by their continuations, first come first; returns the parent of each."""
        live, parents, ended = [], [], set[int]()
        for rank, one in enumerate(candidates):
            parent = self.live[one.parent]
            state = grammar.step(parent.state, one.token_id)
            new = Hypothesis(state, parent, one.token_id, one.log_probability, parent.length + 1)
            if not leaves(state):
                live.append(new)
                parents.append(one.parent)
            elif rank < sampling.num_beams and not (state.ended and one.parent in ended):
                # </s> and <eos> say the same: a hypothesis ends once, with the likelier.
                ended |= {one.parent} if state.ended else set()
                self.finished.append((_worth(new.log_probability, new.length, sampling), new))
            if len(live) == sampling.num_beams:
                break
        self.live = live
        self.finished = sorted(self.finished, key=lambda pair: -pair[0])[: sampling.num_beams]
        self.is_done = not live or self._is_settled(sampling)
        return parents

    def _is_settled(self, sampling: SamplingConfig) -> bool:
        if len(self.finished) < sampling.num_beams:
            return False
        best = max(_worth(one.log_probability, one.length, sampling) for one in self.live)
        return self.finished[-1][0] >= best


def _worth(log_probability: float, length: int, sampling: SamplingConfig) -> float:
    return log_probability / length**sampling.length_penalty


@torch.inference_mode()
def search_texts(
    model: Any, answers: Sequence[Answer], grammar: Grammar, samplings: Samplings, *, seed: int, leaves: StateTest
) -> Iterator[Answer]:
    """Grow every answer, which is at a text, to a state that leaves it; yields each as it is found."""
    stepper = Stepper(model, grammar.vocabulary, [answer.read_ids for answer in answers])
    sampling = samplings[Modality.TEXT]
    has_penalty = sampling.repetition_penalty != 1.0
    said = Said(grammar.vocabulary, [one.ids for one in answers], model.device) if has_penalty else None
    scorer = _Scorer(grammar, sampling, seed=seed, device=model.device)
    searches = [Search(answer, [Hypothesis(answer.state)]) for answer in answers]
    logits_BV = stepper.read()
    while True:
        rows, first_row = [], 0
        candidates = scorer.candidates(logits_BV, searches, said)
        for search, found in zip(searches, candidates, strict=True):
            num_rows = len(search.live)
            parents = search.extend(found, grammar, sampling, leaves)
            if search.is_done:
                _say(search.answer, search.finished[0][1].ids(), grammar)
                yield search.answer
            else:
                rows += [first_row + parent for parent in parents]
            first_row += num_rows
        searches = [search for search in searches if not search.is_done]
        if not searches:
            return
        ids = [one.token_id for search in searches for one in search.live]
        stepper.keep(rows)
        if said is not None:
            said.keep(rows)
            said.add(ids)
        logits_BV = stepper.read(ids)


def _say(answer: Answer, ids: Sequence[int], grammar: Grammar) -> None:
    for token_id in ids:
        if not answer.state.ended:  # an end that must follow comes with the id before it
            answer.add(token_id, grammar)


class _Scorer:
    """The likeliest next ids of every hypothesis."""

    def __init__(self, grammar: Grammar, sampling: SamplingConfig, *, seed: int, device: torch.device) -> None:
        self._grammar, self._sampling, self._seed, self._device = grammar, sampling, seed, device
        self._columns = [Columns(rule, device) for rule in grammar.rules]

    def candidates(
        self, logits_BV: torch.Tensor, searches: Sequence[Search], said: Said | None
    ) -> list[list[Candidate]]:
        """As many of each search as its beams may need, whichever of them leave the text; in order."""
        owners = [(number, place) for number, search in enumerate(searches) for place in range(len(search.live))]
        states = [searches[number].live[place].state for number, place in owners]
        found: list[list[Candidate]] = [[] for _ in searches]
        for rule, rows in rows_by_rule(states, self._grammar).items():
            columns = self._columns[rule]
            index = torch.tensor(rows, device=self._device)
            said_BK = columns.take(said.table_BV[index]) if said is not None else None
            scores = log_probabilities(columns.take(logits_BV[index]), said_BK, self._sampling).double()
            before = [searches[owners[row][0]].live[owners[row][1]].log_probability for row in rows]
            scores += torch.tensor(before, dtype=torch.double, device=self._device)[:, None]
            order = scores + self._noise(scores, [owners[row] for row in rows], searches)
            values, places = order.topk(min(self._width, len(columns)), dim=-1)
            picked = zip(
                rows, values.tolist(), scores.gather(-1, places).tolist(), columns.ids(places).tolist(), strict=True
            )
            for row, orders, totals, ids in picked:
                number, place = owners[row]
                new = (Candidate(*one) for one in zip(orders, totals, [place] * len(ids), ids, strict=True))
                found[number] += [one for one in new if one.order > float("-inf")]
        return [sorted(one, key=lambda c: (-c.order, c.parent, c.token_id))[: self._width] for one in found]

    @property
    def _width(self) -> int:
        # Every hypothesis may leave the text in as many ways as there are markers.
        leaving = len(self._grammar.end_ids) + len(self._grammar.vocabulary.blocks)
        return self._sampling.num_beams * (1 + leaving)

    def _noise(
        self, scores: torch.Tensor, owners: Sequence[tuple[int, int]], searches: Sequence[Search]
    ) -> torch.Tensor:
        if self._sampling.temperature == 0.0:
            return torch.zeros((), dtype=torch.double, device=scores.device)
        noise = [
            gumbels(
                self._seed, f"{searches[number].answer.request.key}\x1f{place}",
                searches[number].live[place].state.used, scores.shape[-1],
            )
            for number, place in owners
        ]  # fmt: skip
        return torch.stack(noise).to(scores.device, torch.double)
