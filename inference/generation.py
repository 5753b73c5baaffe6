"""Batched generation with a key-value cache under a grammar of tokens.

Prompts of different lengths are padded on the left. The answer of a request depends on its prompt, its key and the seed
alone. Each modality inside an answer is decoded as its own sampling says; text with beams is found by
:mod:`inference.beam`, everything else is drawn by :mod:`inference.drawing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inference.answers import Answer, Samplings, modality_of, samplings_of
from inference.answers import Request as Request  # what generate takes, so people look for it here
from inference.beam import search_texts
from inference.drawing import draw
from inference.grammar import Grammar, State
from inference.sampling import SamplingConfig
from shards.vocabulary import Modality


def generate(
    model: Any,
    requests: Sequence[Request],
    grammar: Grammar,
    sampling: SamplingConfig | Samplings,
    *,
    seed: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """The ids of each answer, without start and end markers, in the order of the requests.

    Args:
        model: a causal language model of ``transformers``, in eval mode. Its head may have more rows than the
            vocabulary has ids; those are never chosen.
        sampling: of every modality, or of each; a modality without one takes the likeliest id.
        batch_size: answers at a time; text with beams takes as many rows each.
    """
    samplings = samplings_of(sampling)
    # Neighbours of similar length waste little padding; the order is undone at the end.
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
    answers = [Answer(request, grammar.start()) for request in requests]
    for start in range(0, len(order), batch_size):
        batch = [answers[index] for index in order[start : start + batch_size]]
        for _ in _grow(model, batch, grammar, samplings, seed=seed):
            pass
    return [answer.without_end(grammar) for answer in answers]


def stream(
    model: Any, request: Request, grammar: Grammar, sampling: SamplingConfig | Samplings, *, seed: int
) -> Iterator[int]:
    """The ids of one answer as they are chosen, its end marker included: those of ``generate``.

    Text with beams comes at once, when its search is over.
    """
    answer = Answer(request, grammar.start())
    given = 0
    for _ in _grow(model, [answer], grammar, samplings_of(sampling), seed=seed):
        yield from answer.ids[given:]
        given = len(answer.ids)


def _grow(
    model: Any, answers: Sequence[Answer], grammar: Grammar, samplings: Samplings, *, seed: int
) -> Iterator[object]:
    """Yields whenever an answer may have grown, until all have ended."""

    def is_text(state: State) -> bool:
        return not state.ended and modality_of(state, grammar) == Modality.TEXT

    def is_medium(state: State) -> bool:
        return not state.ended and modality_of(state, grammar) != Modality.TEXT

    if samplings[Modality.TEXT].num_beams == 1:
        yield from draw(model, answers, grammar, samplings, seed=seed, until=lambda state: state.ended)
        return
    # A search changes the batch, so texts and media take turns, and what was said is read again; a turn has few.
    while any(not answer.state.ended for answer in answers):
        if texts := [answer for answer in answers if is_text(answer.state)]:
            yield from search_texts(
                model, texts, grammar, samplings, seed=seed, leaves=lambda state: not is_text(state)
            )
        if media := [answer for answer in answers if is_medium(answer.state)]:
            yield from draw(model, media, grammar, samplings, seed=seed, until=lambda state: not is_medium(state))
