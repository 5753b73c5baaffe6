"""Beam search against all answers there are, and against a plain one without batch and cache."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inference.generation import Request, generate, stream
from inference.grammar import AnswerGrammar, LengthBudget, TurnGrammar, accepts
from inference.sampling import SamplingConfig
from shards.vocabulary import Modality, lay_out

MEDIA = [
    {"name": "image", "prefix": "i", "start": "<soim>", "end": "<eoim>", "codebook_size": 4, "levels": 1},
    {"name": "speech", "prefix": "s", "start": "<sosp>", "end": "<eosp>", "codebook_size": 4, "levels": 1},
]
VOCABULARY = lay_out("test", text_size=8, markers=["<eos>"], media=MEDIA)
GRAMMAR = AnswerGrammar(VOCABULARY, Modality.TEXT, LengthBudget(2, 4))
TURN = TurnGrammar(VOCABULARY, {Modality.IMAGE: LengthBudget(1, 1), Modality.SPEECH: LengthBudget(1, 4)}, max_ids=12)
BEAM = SamplingConfig(temperature=0.0, num_beams=3)
REQUESTS = [Request(f"r{n}", np.random.default_rng(n).integers(3, 8, 2 + 3 * n)) for n in range(5)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    # Weights as large as this give every continuation a liking of its own.
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY.size, initializer_range=0.6, **shape)).eval()


@torch.inference_mode()
def log_probabilities(model, prompt: np.ndarray, ids: list[int]) -> np.ndarray:
    """(vocabulary,) of the next id among those allowed, by one pass over everything."""
    logits = model(input_ids=torch.tensor([[*prompt.tolist(), *ids]]), use_cache=False).logits[0, -1]
    return logits.masked_fill(~torch.from_numpy(GRAMMAR.allowed(ids)), float("-inf")).log_softmax(-1).double().numpy()


def plain_search(model, prompt: np.ndarray, num_beams: int, length_penalty: float) -> list[int]:
    """The rules of the search, with lists, one hypothesis at a time."""
    live, finished = [(0.0, [])], []
    while live:
        found = [
            (score + one, [*ids, token_id])
            for score, ids in live
            for token_id, one in enumerate(log_probabilities(model, prompt, ids))
            if one > float("-inf")
        ]
        found.sort(key=lambda pair: -pair[0])
        left = set()
        for score, ids in found[:num_beams]:
            if ids[-1] in GRAMMAR.end_ids and tuple(ids[:-1]) not in left:
                left.add(tuple(ids[:-1]))
                finished.append((score / len(ids) ** length_penalty, ids[:-1]))
        finished = sorted(finished, key=lambda pair: -pair[0])[:num_beams]
        live = [pair for pair in found if pair[1][-1] not in GRAMMAR.end_ids][:num_beams]
        if live and len(finished) == num_beams:
            best, ids = live[0]
            if finished[-1][0] >= best / len(ids) ** length_penalty:
                break
    return finished[0][1]


def test_with_a_beam_for_every_answer_the_best_of_all_is_found(model):
    words = [3, 4, 5, 6, 7]
    prompt = REQUESTS[1].prompt_ids
    worth: dict[tuple[int, ...], float] = {}
    seen: dict[tuple[int, ...], np.ndarray] = {}
    for length in range(2, 5):
        for ids in itertools.product(words, repeat=length):
            score = 0.0
            for place in range(length + 1):
                if ids[:place] not in seen:
                    seen[ids[:place]] = log_probabilities(model, prompt, list(ids[:place]))
                allowed = seen[ids[:place]]
                score += allowed[ids[place]] if place < length else max(allowed[end] for end in GRAMMAR.end_ids)
            worth[ids] = score / (length + 1)
    all_beams = SamplingConfig(temperature=0.0, num_beams=800)
    found = generate(model, [REQUESTS[1]], GRAMMAR, all_beams, seed=0)[0]
    assert found == list(max(worth, key=worth.__getitem__))


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(1, 1.0), (2, 1.0), (3, 0.0), (5, 2.0)])
def test_batched_with_a_cache_it_finds_what_a_plain_search_finds(model, num_beams, length_penalty):
    # A penalty of the length alone does not make one beam a search: that is greedy, and must agree all the same.
    sampling = SamplingConfig(temperature=0.0, num_beams=num_beams, length_penalty=length_penalty)
    expected = [plain_search(model, one.prompt_ids, num_beams, length_penalty) for one in REQUESTS]
    assert generate(model, REQUESTS, GRAMMAR, sampling, seed=0) == expected
    assert len({tuple(ids) for ids in expected}) > 1


@pytest.mark.parametrize("sampling", [BEAM, SamplingConfig(num_beams=3, top_k=4, repetition_penalty=1.3)])
@pytest.mark.parametrize("grammar", [GRAMMAR, TURN], ids=["answer", "turn"])
def test_an_answer_found_by_beams_does_not_depend_on_its_batch(model, grammar, sampling):
    together = generate(model, REQUESTS, grammar, sampling, seed=3)
    assert [generate(model, [one], grammar, sampling, seed=3)[0] for one in REQUESTS] == together
    assert generate(model, REQUESTS[::-1], grammar, sampling, seed=3)[::-1] == together
    assert generate(model, REQUESTS, grammar, sampling, seed=3, batch_size=2) == together


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_stream_is_the_answer_with_its_end(model, num_beams):
    sampling = {Modality.TEXT: SamplingConfig(temperature=0.0, num_beams=num_beams)}
    answers = generate(model, REQUESTS, TURN, sampling, seed=0)
    for request, answer in zip(REQUESTS, answers, strict=True):
        *ids, end = stream(model, request, TURN, sampling, seed=0)
        assert ids == answer and end in TURN.end_ids and accepts(TURN, [*ids, end])


def test_beams_that_draw_depend_on_the_seed(model):
    """At a temperature like this every text is likely, so a draw of a few beams cannot always be the same."""
    drawn = SamplingConfig(num_beams=2, temperature=50.0)
    found = {tuple(generate(model, REQUESTS[:1], GRAMMAR, drawn, seed=seed)[0]) for seed in range(12)}
    assert len(found) > 4
