"""Generation under the grammar, with a small random model: every answer can be decoded, whatever the weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from inference.generation import Request, generate
from inference.grammar import AnswerGrammar, LengthBudget, TurnGrammar
from inference.sampling import SamplingConfig, choose, uniform
from shards.vocabulary import Modality, Vocabulary, lay_out

MEDIA = [
    {"name": "image", "prefix": "i", "start": "<soim>", "end": "<eoim>", "codebook_size": 64, "levels": 1},
    {"name": "speech", "prefix": "s", "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
    {"name": "music", "prefix": "m", "start": "<somu>", "end": "<eomu>", "codebook_size": 8, "levels": 4},
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return lay_out("test", text_size=40, markers=["[Human]", "[MMGPT]", "<eoh>", "<eos>"], media=MEDIA)


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary.size, initializer_range=0.3, **shape)).eval()


def requests(count: int, vocabulary: Vocabulary) -> list[Request]:
    rng = np.random.default_rng(5)
    return [Request(f"r{n}", rng.integers(3, vocabulary.text_size, 3 + 2 * n)) for n in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_every_picture_has_32_codes(model, vocabulary, temperature):
    grammar = AnswerGrammar(vocabulary, Modality.IMAGE, LengthBudget(1, 1))
    answers = generate(model, requests(5, vocabulary), grammar, SamplingConfig(temperature=temperature), seed=1)
    codes = [vocabulary.block("image").to_codes(np.array(ids)) for ids in answers]
    assert [one.shape for one in codes] == [(32, 1)] * 5


def test_music_is_whole_frames_with_levels_in_order(model, vocabulary):
    grammar = AnswerGrammar(vocabulary, Modality.MUSIC, LengthBudget(2, 9))
    answers = generate(model, requests(6, vocabulary), grammar, SamplingConfig(temperature=3.0), seed=2)
    for ids in answers:
        frames = vocabulary.block("music").to_codes(np.array(ids))  # raises if a level is out of order
        assert 2 <= len(frames) <= 9


def test_speech_keeps_its_budget_and_text_is_text(model, vocabulary):
    speech = AnswerGrammar(vocabulary, Modality.SPEECH, LengthBudget(3, 7))
    assert all(3 <= len(a) <= 7 for a in generate(model, requests(4, vocabulary), speech, SamplingConfig(), seed=3))
    text = AnswerGrammar(vocabulary, Modality.TEXT, LengthBudget(1, 12))
    for ids in generate(model, requests(4, vocabulary), text, SamplingConfig(), seed=3):
        assert 1 <= len(ids) <= 12 and all(2 < token_id < vocabulary.text_size for token_id in ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_its_batch(model, vocabulary, temperature):
    """Left padding, positions and draws are all the request's own."""
    grammar = AnswerGrammar(vocabulary, Modality.MUSIC, LengthBudget(2, 6))
    asked, sampling = requests(5, vocabulary), SamplingConfig(temperature=temperature, top_p=0.9)
    together = generate(model, asked, grammar, sampling, seed=4)
    alone = [generate(model, [one], grammar, sampling, seed=4)[0] for one in asked]
    assert together == alone


def test_the_cache_changes_nothing(model, vocabulary):
    """Greedy with the cache equals taking the likeliest allowed id of a full forward pass each time."""
    grammar = AnswerGrammar(vocabulary, Modality.IMAGE, LengthBudget(1, 1))
    asked = requests(1, vocabulary)
    cached = generate(model, asked, grammar, SamplingConfig(temperature=0.0), seed=0)[0]
    ids = asked[0].prompt_ids.tolist()
    with torch.inference_mode():
        for _ in range(32):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[~torch.from_numpy(grammar.allowed(ids[len(asked[0].prompt_ids) :]))] = float("-inf")
            ids.append(int(logits.argmax()))
    assert cached == ids[-32:]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_the_nucleus_never_leaves_what_is_allowed_or_likely(seed, top_p):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(3, 20)).astype(np.float32) * 3)
    allowed = torch.zeros(20, dtype=torch.bool)
    allowed[rng.choice(20, 7, replace=False)] = True
    ids = allowed.nonzero()[:, 0]
    uniforms = torch.tensor([uniform(seed, key, seed) for key in "abc"], dtype=torch.double)
    chosen = ids[choose(logits[:, ids], None, SamplingConfig(top_p=top_p), uniforms)]
    for row, token_id in enumerate(chosen.tolist()):
        probabilities = logits[row].masked_fill(~allowed, float("-inf")).softmax(-1)
        likelier = float(probabilities[probabilities > probabilities[token_id]].sum())
        assert allowed[token_id] and likelier < top_p + 1e-5


def test_the_repetition_penalty_lowers_what_was_said():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    greedy, none = SamplingConfig(temperature=0.0, repetition_penalty=1.15), torch.zeros(1, dtype=torch.double)
    assert choose(logits, torch.tensor([[False, False, False]]), greedy, none).tolist() == [0]
    assert choose(logits, torch.tensor([[True, False, False]]), greedy, none).tolist() == [1]


def test_a_turn_mixes_text_and_whole_media(model, vocabulary):
    """Whatever a random model says in its turn, each medium in it is complete and in order."""
    budgets = {
        Modality.IMAGE: LengthBudget(32, 32),
        Modality.MUSIC: LengthBudget(1, 5),
        Modality.SPEECH: LengthBudget(1, 9),
    }
    grammar = TurnGrammar(vocabulary, budgets, max_ids=60)
    answers = generate(model, requests(6, vocabulary), grammar, SamplingConfig(temperature=4.0), seed=7)
    names, found = vocabulary.modality_names(), set()
    index = vocabulary.modality_index()
    for ids in answers:
        position = 0
        while position < len(ids):
            name = names[index[ids[position]]]
            found.add(name)
            if name == "text":
                position += 1
                continue
            block = vocabulary.block(name)
            assert ids[position] == block.start_id
            stop = ids.index(block.end_id, position)
            frames = block.to_codes(np.array(ids[position + 1 : stop]))
            assert budgets[Modality(name)].least <= len(frames) <= budgets[Modality(name)].most
            position = stop + 1
    assert found >= {"text", "image"}
