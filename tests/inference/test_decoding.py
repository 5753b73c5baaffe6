"""The presets: they say what their sources say, and they make grammars."""

import pytest

from inference.decoding import DecodingConfig, load_decoding
from inference.grammar import AnswerGrammar, LengthBudget
from shards.errors import ConfigError
from shards.vocabulary import Modality, lay_out

MEDIA = [
    {"name": "image", "prefix": "i", "start": "<soim>", "end": "<eoim>", "codebook_size": 64, "levels": 1},
    {"name": "speech", "prefix": "s", "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
    {"name": "music", "prefix": "m", "start": "<somu>", "end": "<eomu>", "codebook_size": 8, "levels": 4},
]
VOCABULARY = lay_out("test", text_size=40, markers=["[Human]", "[MMGPT]", "<eoh>", "<eos>"], media=MEDIA)
TEXT, IMAGE, SPEECH, MUSIC = Modality.TEXT, Modality.IMAGE, Modality.SPEECH, Modality.MUSIC


def test_the_paper_preset_is_table_9(repository):
    paper = load_decoding(repository / "configs/decoding/paper.toml")
    text = paper.of(TEXT)
    assert (text.num_beams, text.repetition_penalty, text.temperature) == (5, 1.0, 0.0)
    assert paper.of(TEXT, chat=True) == text
    assert [paper.of(one).top_p for one in (IMAGE, SPEECH, MUSIC)] == [0.7, 0.7, 1.0]
    assert [paper.of(one).repetition_penalty for one in (IMAGE, SPEECH, MUSIC)] == [1.0, 1.0, 1.15]
    assert all(paper.of(one).top_k == 0 for one in Modality)


def test_the_released_preset_is_what_the_released_files_come_to(repository):
    released = load_decoding(repository / "configs/decoding/released.toml")
    found = {one: released.of(one) for one in (TEXT, IMAGE, SPEECH, MUSIC)}
    assert {one: found[one].top_k for one in found} == {TEXT: 50, IMAGE: 50, SPEECH: 50, MUSIC: 200}
    assert {one: found[one].repetition_penalty for one in found} == {TEXT: 1.0, IMAGE: 1.0, SPEECH: 1.05, MUSIC: 1.15}
    assert all((one.temperature, one.top_p) == (1.0, 1.0) for one in found.values())
    assert released.budget(TEXT, VOCABULARY) == LengthBudget(10, 100)
    assert released.budget(IMAGE, VOCABULARY) == LengthBudget(32, 32)
    assert released.budget(SPEECH, VOCABULARY) == LengthBudget(10, 1500)
    # 10 ids are two frames and a half, of which there are none.
    assert released.budget(MUSIC, VOCABULARY) == LengthBudget(3, 500)
    chat = released.of(TEXT, chat=True)
    assert (chat.num_beams, chat.min_new_tokens, chat.max_new_tokens, chat.top_k) == (5, 10, 500, 50)


def test_greedy_never_draws(repository):
    greedy = load_decoding(repository / "configs/decoding/greedy.toml")
    assert all(one.temperature == 0.0 and one.num_beams == 1 for one in greedy.sampling(chat=True).values())


def test_every_preset_makes_grammars(repository):
    for path in sorted((repository / "configs/decoding").glob("*.toml")):
        preset = load_decoding(path)
        for modality in (TEXT, IMAGE, SPEECH, MUSIC):
            grammar = AnswerGrammar(VOCABULARY, modality, preset.budget(modality, VOCABULARY))
            assert grammar.max_ids <= max(preset.of(modality).max_new_tokens, 32) + 1
            assert set(preset.sampling()) == set(Modality)


def test_more_least_than_most_is_refused(tmp_path):
    path = tmp_path / "preset.toml"
    path.write_text("[modality.speech]\nmin_new_tokens = 9\nmax_new_tokens = 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="min_new_tokens up to max_new_tokens 8"):
        load_decoding(path)
    assert DecodingConfig().of(MUSIC).temperature == 1.0
