"""Generation under the grammar, with a small random model: every answer can be decoded, whatever the weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.decode import measure_answers
from inference.generation import Request, generate, stream
from inference.grammar import AnswerGrammar, FreeGrammar, LengthBudget, TurnGrammar
from inference.sampling import GREEDY, SamplingConfig, choose, uniform
from inference.stepping import Said
from shards.errors import CheckpointError
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


@pytest.mark.parametrize("modality", [Modality.TEXT, Modality.SPEECH, Modality.MUSIC, "turn"])
def test_greedy_with_the_cache_equals_full_passes_id_by_id(model, vocabulary, modality):
    """Batched and padded with the cache; one at a time, unpadded and without a cache."""
    grammar = grammar_of(vocabulary, modality)
    asked = requests(4, vocabulary)
    cached = [[*ids] for ids in generate(model, asked, grammar, GREEDY, seed=0)]
    for request, answer in zip(asked, cached, strict=True):
        ids: list[int] = []
        while not (ids and ids[-1] in grammar.end_ids):
            with torch.inference_mode():
                read = torch.tensor([[*request.prompt_ids.tolist(), *ids]])
                logits = model(input_ids=read, use_cache=False).logits[0, -1]
            ids.append(int(logits.masked_fill(~torch.from_numpy(grammar.allowed(ids)), float("-inf")).argmax()))
        assert answer == ids[:-1]


def grammar_of(vocabulary, modality):
    budgets = {
        Modality.IMAGE: LengthBudget(32, 32),
        Modality.MUSIC: LengthBudget(2, 6),
        Modality.SPEECH: LengthBudget(3, 9),
    }
    if modality == "turn":
        return TurnGrammar(vocabulary, budgets, max_ids=40)
    return AnswerGrammar(vocabulary, modality, budgets.get(modality, LengthBudget(4, 15)))


def test_turns_drawn_together_equal_turns_drawn_alone(model, vocabulary):
    """Rows in different modalities, each drawn as its own says, and rows that leave the batch early."""
    grammar, asked = grammar_of(vocabulary, "turn"), requests(9, vocabulary)
    sampling = {
        Modality.TEXT: SamplingConfig(temperature=2.0, top_k=20),
        Modality.IMAGE: SamplingConfig(top_p=0.7),
        Modality.MUSIC: SamplingConfig(repetition_penalty=1.15),
    }
    together = generate(model, asked, grammar, sampling, seed=4)
    assert [generate(model, [one], grammar, sampling, seed=4)[0] for one in asked] == together
    assert generate(model, asked[::-1], grammar, sampling, seed=4, batch_size=4)[::-1] == together
    assert generate(model, asked, grammar, sampling, seed=5) != together
    for request, answer in zip(asked, together, strict=True):
        *ids, end = stream(model, request, grammar, sampling, seed=4)
        assert ids == answer and end in grammar.end_ids


def test_each_modality_of_an_answer_is_drawn_as_its_own_says(model, vocabulary):
    """Words at a high temperature, codes greedily: the codes are those of full passes after the same words."""
    grammar, asked = grammar_of(vocabulary, "turn"), requests(6, vocabulary)
    answers = generate(model, asked, grammar, {Modality.TEXT: SamplingConfig(temperature=5.0)}, seed=2)
    starts = {block.start_id for block in vocabulary.blocks.values()}
    greedy_words = 0
    for request, answer in zip(asked, answers, strict=True):
        state = grammar.start()
        for place, token_id in enumerate(answer):
            read = torch.tensor([[*request.prompt_ids.tolist(), *answer[:place]]])
            with torch.inference_mode():
                logits = model(input_ids=read, use_cache=False).logits[0, -1]
            best = logits.masked_fill(~torch.from_numpy(grammar.allowed(answer[:place])), float("-inf")).argmax()
            if grammar.rules[grammar.rule(state)].modality == Modality.TEXT:
                greedy_words += int(best) == token_id
            else:
                assert int(best) == token_id
            state = grammar.step(state, token_id)
    words = sum(token_id < vocabulary.text_size or token_id in starts for answer in answers for token_id in answer)
    assert greedy_words < words / 2


def test_a_head_padded_to_a_round_number_changes_nothing(model, vocabulary):
    """Rows above the vocabulary are never chosen, however likely they are."""
    padded = LlamaForCausalLM(model.config).eval()
    padded.load_state_dict(model.state_dict())
    padded.resize_token_embeddings(vocabulary.size, pad_to_multiple_of=128)
    assert padded.lm_head.out_features % 128 == 0 and padded.lm_head.out_features > vocabulary.size
    with torch.no_grad():
        padded.lm_head.weight[vocabulary.size :] = 100 * padded.lm_head.weight[:1]
    asked = requests(4, vocabulary)
    free = FreeGrammar(vocabulary, Modality.TEXT, max_ids=20)
    for grammar in (grammar_of(vocabulary, "turn"), grammar_of(vocabulary, Modality.MUSIC), free):
        for sampling in (GREEDY, SamplingConfig(top_p=0.9), SamplingConfig(temperature=0.0, num_beams=2)):
            expected = generate(model, asked, grammar, sampling, seed=1)
            assert generate(padded, asked, grammar, sampling, seed=1) == expected


def test_a_model_without_the_vocabulary_s_ids_is_refused(model, vocabulary):
    small = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "vocab_size": vocabulary.size - 1})).eval()
    with pytest.raises(CheckpointError, match=f"logits for the {vocabulary.size} ids"):
        generate(small, requests(1, vocabulary), grammar_of(vocabulary, Modality.TEXT), GREEDY, seed=0)


def test_the_penalty_counts_the_codes_of_the_answer_and_nothing_else(vocabulary):
    """A tune in the prompt may be played again, and the end of the first picture does not keep the second from ending."""
    image, music = vocabulary.block("image"), vocabulary.block("music")
    said = Said(vocabulary, [[5, image.start_id, image.first_id + 3, image.end_id], []], torch.device("cpu"))
    said.add([music.first_id, vocabulary.marker("<eos>")])
    assert said.table_BV[0].nonzero()[:, 0].tolist() == [5, image.first_id + 3, music.first_id]
    assert not said.table_BV[1].any()
    said.keep([1, 0])
    assert said.table_BV.any(1).tolist() == [False, True]


def test_10_000_answers_from_random_logits_can_all_be_decoded():
    """And of as many without a grammar next to none: what the released code leaves to luck."""
    media = [{**MEDIA[0], "codebook_size": 32}, MEDIA[1], MEDIA[2]]
    small = lay_out("small", text_size=40, markers=["[Human]", "[MMGPT]", "<eoh>", "<eos>"], media=media)
    figures = measure_answers(small, 10_000, batch_size=2000)
    assert figures["answers"] == 10_000
    assert figures["decodable"] == 1.0
    assert figures["decodable_free"] < 0.01
