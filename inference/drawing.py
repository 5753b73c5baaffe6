"""Answers drawn id by id, a batch at a time.

Each id is drawn among those that the grammar allows, as the modality at that place asks: rows in the same kind of place
are drawn together. A row that has ended leaves the batch once as many have ended as go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from inference.answers import Answer, Samplings, StateTest, rows_by_rule
from inference.grammar import Grammar
from inference.sampling import choose, uniform
from inference.stepping import Columns, Said, Stepper


@torch.inference_mode()
def draw(
    model: Any,
    answers: Sequence[Answer],
    grammar: Grammar,
    samplings: Samplings,
    *,
    seed: int,
    until: StateTest,
) -> Iterator[None]:
    """Grow every answer until its state passes the test; yields after each id that all of them got."""
    stepper = Stepper(model, grammar.vocabulary, [answer.read_ids for answer in answers])
    drawer = _Drawer(answers, grammar, samplings, seed=seed, device=model.device)
    rows, going = list(answers), list(range(len(answers)))
    ids: list[int] | None = None
    while True:
        ids = drawer.draw(stepper.read(ids), rows, going)
        for row in going:
            rows[row].add(ids[row], grammar)
        yield
        going = [row for row in going if not until(rows[row].state)]
        if not going:
            return
        drawer.say(ids)
        if 2 * len(going) <= len(rows):
            stepper.keep(going)
            drawer.keep(going)
            rows, ids, going = [rows[row] for row in going], [ids[row] for row in going], list(range(len(going)))


class _Drawer:
    """Chooses the next id of every row."""

    def __init__(
        self, answers: Sequence[Answer], grammar: Grammar, samplings: Samplings, *, seed: int, device: torch.device
    ) -> None:
        self._grammar, self._samplings, self._seed, self._device = grammar, samplings, seed, device
        self._columns = [Columns(rule, device) for rule in grammar.rules]
        has_penalty = any(samplings[rule.modality].repetition_penalty != 1.0 for rule in grammar.rules)
        self._said = Said(grammar.vocabulary, [answer.ids for answer in answers], device) if has_penalty else None

    def draw(self, logits_BV: torch.Tensor, answers: Sequence[Answer], going: Sequence[int]) -> list[int]:
        """One id a row; a row that does not go on gets the padding."""
        chosen = torch.full((len(answers),), self._grammar.vocabulary.pad_id, device=self._device)
        for rule, members in rows_by_rule([answers[row].state for row in going], self._grammar).items():
            rows = [going[member] for member in members]
            if len(rows) == len(answers):
                chosen = self._draw_rule(rule, logits_BV, None, answers)
            else:
                index = torch.tensor(rows, device=self._device)
                chosen[index] = self._draw_rule(rule, logits_BV, index, [answers[row] for row in rows])
        return chosen.tolist()

    def _draw_rule(
        self, rule: int, logits_BV: torch.Tensor, index: torch.Tensor | None, answers: Sequence[Answer]
    ) -> torch.Tensor:
        columns = self._columns[rule]
        sampling = self._samplings[columns.modality]
        logits = columns.take(logits_BV if index is None else logits_BV[index])
        said = None
        if self._said is not None and sampling.repetition_penalty != 1.0:
            said = columns.take(self._said.table_BV if index is None else self._said.table_BV[index])
        uniforms = torch.zeros(0, dtype=torch.double)
        if sampling.temperature > 0.0:
            numbers = [uniform(self._seed, answer.request.key, len(answer.ids)) for answer in answers]
            uniforms = torch.tensor(numbers, dtype=torch.double, device=self._device)
        return columns.ids(choose(logits, said, sampling, uniforms))

    def say(self, ids: Sequence[int]) -> None:
        """Remember one more id a row."""
        if self._said is not None:
            self._said.add(ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows."""
        if self._said is not None:
            self._said.keep(rows)
