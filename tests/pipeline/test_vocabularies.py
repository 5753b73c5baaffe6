"""Vocabularies: the shipped layouts, and the maps that checkpoints bring themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from configs.load import load_config
from pipeline.text import TextTokenizer
from pipeline.vocabularies import (
    VocabularyLayout,
    load_vocabulary,
    vocabulary_facts,
    vocabulary_from_checkpoint,
)
from shards.errors import ConfigError, DatasetError, TokenizerError
from shards.tokenizer_files import read_added_tokens
from shards.vocabulary import Vocabulary

TEXT_SIZE = 100
EYES, FACE, NOTES, EAR = "\U0001f440", "\U0001f5e3\ufe0f", "\U0001f3b6", "\U0001f442"
STAGE_ONE_MARKERS = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"]
# Small codebooks: the rules do not depend on their sizes, the time of a test does.
MEDIA = [
    {"name": "image", "prefix": EYES, "start": "<soim>", "end": "<eoim>", "codebook_size": 64, "levels": 1},
    {"name": "speech", "prefix": FACE, "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
    {"name": "music", "prefix": NOTES, "start": "<somu>", "end": "<eomu>", "codebook_size": 8, "levels": 4},
]
AUDIO = {"name": "audio", "prefix": EAR, "start": "<soau>", "end": "<eoau>", "codebook_size": 4, "levels": 4}
LAYOUT = VocabularyLayout.model_validate({"name": "small", "markers": STAGE_ONE_MARKERS, "media": [*MEDIA, AUDIO]})


def media_tokens(medium: dict[str, Any]) -> list[str]:
    codes = [f"<{medium['prefix']}{index}>" for index in range(medium["codebook_size"] * medium["levels"])]
    return [*codes, medium["start"], medium["end"]]


def number(tokens: list[str]) -> dict[str, int]:
    return {token: TEXT_SIZE + place for place, token in enumerate(tokens)}


def checkpoint(folder: Path, added: dict[str, int]) -> Path:
    """A folder with a text tokenizer of 100 words and the added tokens of a checkpoint."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, TEXT_SIZE)}
    Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
    return folder


ALL = [token for medium in MEDIA for token in media_tokens(medium)]
LAYOUTS = {
    "stage one, no audio": [*STAGE_ONE_MARKERS, *ALL],
    "stage two on stage one": [*STAGE_ONE_MARKERS, *ALL, "<-Res->", "<-Ins->"],
    "stage two from LLaMA, every id shifted by two": [*STAGE_ONE_MARKERS, "<-Res->", "<-Ins->", *ALL],
    "A: a fourth block behind the others": [*STAGE_ONE_MARKERS, *ALL, *media_tokens(AUDIO)],
    "A, chat": [*STAGE_ONE_MARKERS, *ALL, *media_tokens(AUDIO), "<-Res->", "<-Ins->", "<eom>", "<eot>"],
    "B: six markers first": [*STAGE_ONE_MARKERS, "<eom>", "<eot>", *ALL, *media_tokens(AUDIO)],
    "audio in front": [*STAGE_ONE_MARKERS, *media_tokens(AUDIO), *ALL],
}


def test_the_stage_one_layout_has_the_published_ids(repository: Path):
    """anygpt-compat 1.2."""
    vocabulary = load_vocabulary(repository / "configs/vocabulary/anygpt-stage1.toml")
    assert [vocabulary.marker(marker) for marker in STAGE_ONE_MARKERS] == [32000, 32001, 32002, 32003]
    image, speech, music = (vocabulary.block(name) for name in ("image", "speech", "music"))
    assert (image.first_id, image.stop_id - 1, image.start_id, image.end_id) == (32004, 40195, 40196, 40197)
    assert (speech.first_id, speech.stop_id - 1, speech.start_id, speech.end_id) == (40198, 41221, 41222, 41223)
    assert (music.first_id, music.stop_id - 1, music.start_id, music.end_id) == (41224, 49415, 49416, 49417)
    assert vocabulary.size == 49418


def test_the_released_layout_has_a_fourth_block(repository: Path):
    vocabulary = load_vocabulary(repository / "configs/vocabulary/anygpt-released.toml")
    assert vocabulary.size == 53516
    assert vocabulary_facts(vocabulary) == {
        "text": 32004, "image": 8194, "speech": 1026, "music": 8194, "audio": 4098
    }  # fmt: skip


def test_the_tiny_layout_takes_the_size_of_its_tokenizer(
    repository: Path, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    assert vocabulary.text_size == text_tokenizer.size
    assert vocabulary.size == text_tokenizer.size + 6 + 8194 + 1026 + 8194
    assert vocabulary.dtype == "uint16"
    assert vocabulary.text_fingerprint == text_tokenizer.fingerprint
    with pytest.raises(ConfigError, match=r"key 'text_size'.*run anygpt-text"):
        load_vocabulary(repository / "configs/vocabulary/tiny.toml")


def test_every_shipped_layout_keeps_the_variation_selector(repository: Path):
    for path in sorted((repository / "configs/vocabulary").glob("*.toml")):
        layout = load_config(path, VocabularyLayout)
        prefixes = {medium.name: medium.prefix for medium in layout.media}
        assert [f"{ord(c):X}" for c in prefixes["speech"]] == ["1F5E3", "FE0F"], path.name


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_brings_its_own_ids(tmp_path: Path, name: str):
    added = number(LAYOUTS[name])
    vocabulary, text_tokenizer = vocabulary_from_checkpoint(checkpoint(tmp_path, added), LAYOUT)
    assert vocabulary.size == TEXT_SIZE + len(added)
    assert vocabulary.text_size == TEXT_SIZE
    assert vocabulary.text_fingerprint == text_tokenizer.fingerprint
    for medium in MEDIA:
        block = vocabulary.block(medium["name"])
        assert (block.first_id, block.start_id, block.end_id) == (
            added[f"<{medium['prefix']}0>"], added[medium["start"]], added[medium["end"]]
        )  # fmt: skip
    markers = {token: token_id for token, token_id in added.items() if token not in {*ALL, *media_tokens(AUDIO)}}
    assert vocabulary.markers == markers, "unknown extra markers are carried along"


def test_added_tokens_are_found_wherever_transformers_writes_them(tmp_path: Path):
    tokens = number(["[Human]", f"<{FACE}0>"])
    places: dict[str, dict[str, Any]] = {
        "added_tokens.json": tokens,
        "tokenizer.json": {"added_tokens": [{"id": i, "content": token} for token, i in tokens.items()]},
        "tokenizer_config.json": {"added_tokens_decoder": {str(i): {"content": token} for token, i in tokens.items()}},
    }
    for name, data in places.items():
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
        assert read_added_tokens(folder) == tokens


def test_a_run_that_is_not_contiguous_is_refused(tmp_path: Path):
    added = number(LAYOUTS["stage one, no audio"])
    first, second = f"<{EYES}7>", f"<{EYES}8>"
    added[first], added[second] = added[second], added[first]
    with pytest.raises(DatasetError, match="image as one contiguous run"):
        vocabulary_from_checkpoint(checkpoint(tmp_path, added), LAYOUT)


def test_tokens_without_the_variation_selector_are_not_the_speech_tokens(tmp_path: Path):
    """A tool that strips it leaves strings nobody trained; the block is then absent, not silently another."""
    added = number([token.replace("\ufe0f", "") for token in LAYOUTS["stage one, no audio"]])
    vocabulary, _ = vocabulary_from_checkpoint(checkpoint(tmp_path, added), LAYOUT)
    assert sorted(vocabulary.blocks) == ["image", "music"]


def test_weights_with_too_few_rows_are_refused(tmp_path: Path):
    folder = checkpoint(tmp_path, added := number(LAYOUTS["stage one, no audio"]))
    enough = TEXT_SIZE + len(added)
    assert vocabulary_from_checkpoint(folder, LAYOUT, num_embeddings=enough)[0].size == enough
    with pytest.raises(DatasetError, match=f"at least {enough} embedding rows"):
        vocabulary_from_checkpoint(folder, LAYOUT, num_embeddings=enough - 1)


def test_a_plain_folder_is_no_anygpt_checkpoint(tmp_path: Path, text_folder: Path):
    with pytest.raises(DatasetError, match="found none; give the folder of an AnyGPT checkpoint"):
        vocabulary_from_checkpoint(text_folder, LAYOUT)
    with pytest.raises(TokenizerError):
        vocabulary_from_checkpoint(tmp_path, LAYOUT)
    (tmp_path / "tokenizer.json").write_bytes((text_folder / "tokenizer.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"added_tokens\.json.*expected JSON"):
        vocabulary_from_checkpoint(tmp_path, LAYOUT)


def layout_file(folder: Path, **changes: Any) -> Path:
    data = {"name": "x", "text_size": 100, "markers": ["a"], "dtype": None} | changes
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if value is not None]
    media = "\n".join(
        "[[media]]\n" + "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in medium.items())
        for medium in MEDIA
    )
    path = folder / "layout.toml"
    path.write_text("\n".join(lines) + "\n" + media + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_size": 70000, "dtype": "uint16"}, "key 'dtype': expected at most 65536 ids for uint16, found 70119"),
        ({"markers": ["a", "a"]}, "found 'a' again"),
        ({"markers": ["<soim>"]}, "found '<soim>' again"),
        ({"markers": [""]}, "found '' again"),
        ({"text_size": 0}, "key 'text_size'"),
        ({"markerz": ["a"]}, "did you mean 'markers'"),
    ],
)
def test_a_mistake_in_a_layout_names_file_key_and_fix(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        load_vocabulary(layout_file(tmp_path, **changes))
    assert str(tmp_path / "layout.toml") in str(raised.value)


def test_another_text_tokenizer_than_the_layout_was_made_for_is_refused(tmp_path: Path, text_tokenizer: TextTokenizer):
    with pytest.raises(ConfigError, match=f"expected {text_tokenizer.size}.*found 100"):
        load_vocabulary(layout_file(tmp_path), text_tokenizer=text_tokenizer)


def test_a_large_vocabulary_is_stored_wider(tmp_path: Path):
    assert load_vocabulary(layout_file(tmp_path, text_size=70000)).dtype == "uint32"
