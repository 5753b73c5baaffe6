"""Batched generation with a key-value cache under a grammar of tokens.

Prompts of different lengths are padded on the left; an answer that has ended is padded on. The answer of a request
depends on its prompt, its key and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inference.grammar import Grammar
from inference.sampling import SamplingConfig, choose
from shards.vocabulary import TokenIds


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt up to and with the start marker of what is wanted (a text has none), and the key of its draws."""

    key: str
    prompt_ids: TokenIds


@torch.inference_mode()
def generate(
    model: Any,
    requests: Sequence[Request],
    grammar: Grammar,
    sampling: SamplingConfig,
    *,
    seed: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """The ids of each answer, without start and end markers, in the order of the requests.

    Args:
        model: a causal language model of ``transformers``, in eval mode.
    """
    # Neighbours of similar length waste little padding; the order is undone at the end.
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = _generate_batch(model, [requests[index] for index in chosen], grammar, sampling, seed=seed)
        answers.update(zip(chosen, ids, strict=True))
    return [answers[index] for index in range(len(requests))]


def _generate_batch(
    model: Any, requests: Sequence[Request], grammar: Grammar, sampling: SamplingConfig, *, seed: int
) -> list[list[int]]:
    input_ids, mask = _pad_left([request.prompt_ids for request in requests], grammar.vocabulary.pad_id)
    keys = [request.key for request in requests]
    answers: list[list[int]] = [[] for _ in requests]
    open_answers = [True] * len(requests)
    cache = None
    for position in range(grammar.max_ids):
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        output = model(
            input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = output.past_key_values
        allowed = torch.from_numpy(np.stack([grammar.allowed(answer) for answer in answers]))
        chosen = choose(output.logits[:, -1], allowed, answers, keys, position=position, sampling=sampling, seed=seed)
        for row, token_id in enumerate(chosen):
            if open_answers[row] and token_id in grammar.end_ids:
                open_answers[row] = False
            elif open_answers[row]:
                answers[row].append(token_id)
        if not any(open_answers):
            break
        input_ids = torch.tensor(chosen)[:, None]
        mask = torch.cat([mask, torch.ones_like(input_ids)], dim=1)
    return answers


def _pad_left(prompts: Sequence[TokenIds], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
        mask[row, longest - len(prompt) :] = 1
    return input_ids, mask
