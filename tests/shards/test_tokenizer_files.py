"""Added tokens of a folder against a vocabulary: the same ids, further ones behind them, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DatasetError
from shards.tokenizer_files import (
    added_tokens,
    check_added_tokens,
    extends,
    folder_fingerprint,
    has_tokenizer,
    read_added_tokens,
    read_json,
)
from shards.vocabulary import Vocabulary, from_added_tokens, lay_out

MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 6, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 3, "levels": 4},
]


def vocabulary_of(*markers: str) -> Vocabulary:
    return lay_out("small", text_size=10, markers=markers or ("[Human]", "<eos>"), media=MEDIA, text_fingerprint="t")


def later(vocabulary: Vocabulary, *markers: str) -> Vocabulary:
    """With markers behind the media, as a later stage adds them."""
    new = {marker: vocabulary.size + n for n, marker in enumerate(markers)}
    return replace(vocabulary, name="later", markers={**vocabulary.markers, **new})


def write_tokens(folder: Path, tokens: dict[str, int]) -> Path:
    (folder / "added_tokens.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    return folder


@given(markers=st.lists(st.sampled_from(["[Human]", "<eos>", "<eoh>", "<eot>"]), unique=True, min_size=1))
def test_added_tokens_are_every_id_beyond_the_text_and_give_the_vocabulary_back(markers: list[str]):
    vocabulary = vocabulary_of(*markers)
    tokens = added_tokens(vocabulary)
    assert list(tokens.values()) == list(range(10, vocabulary.size))
    back = from_added_tokens("small", text_size=10, added_tokens=tokens, media=MEDIA)
    assert replace(back, text_fingerprint="t") == vocabulary


def test_a_later_stage_s_vocabulary_extends_the_first_and_not_the_other_way_round():
    first = vocabulary_of()
    second = later(first, "<-Res->", "<-Ins->")
    assert extends(first, first) and extends(replace(first, name="other"), first)
    assert extends(second, first) and not extends(first, second)
    shifted = vocabulary_of("[Human]", "<eos>", "<-Res->", "<-Ins->")
    assert shifted.size == second.size and not extends(shifted, first), "markers in between move every id"
    assert not extends(replace(second, text_fingerprint="u"), first)
    assert not extends(replace(second, bos_id=3), first)


def test_a_folder_s_tokens_fit_a_vocabulary_or_the_first_that_does_not_is_named(tmp_path: Path):
    vocabulary = vocabulary_of()
    tokens = added_tokens(vocabulary)
    assert not check_added_tokens(tmp_path, vocabulary), "a text-only folder"
    assert not check_added_tokens(write_tokens(tmp_path, {"<s>": 1, "</s>": 2}), vocabulary)
    assert check_added_tokens(write_tokens(tmp_path, tokens), vocabulary)
    assert check_added_tokens(tmp_path, later(vocabulary, "<-Res->"))
    with pytest.raises(
        DatasetError, match=r"expected no further token, found '<eot>' as id 34; .*checkpoint = this folder"
    ):
        check_added_tokens(write_tokens(tmp_path, tokens | {"<eot>": vocabulary.size}), vocabulary)
    swapped = tokens | {"<👀2>": tokens["<👀3>"], "<👀3>": tokens["<👀2>"]}
    with pytest.raises(DatasetError, match=r"expected '<👀2>' as id 14, found '<👀3>' as id 14"):
        check_added_tokens(write_tokens(tmp_path, swapped), vocabulary)
    without = {token: token_id for token, token_id in tokens.items() if token != "[Human]"}
    with pytest.raises(DatasetError, match=r"expected '\[Human\]' as id 10, found '<eos>' as id 11"):
        check_added_tokens(write_tokens(tmp_path, without), vocabulary)


def test_identity_is_that_of_names_and_bytes_of_tokenizer_files(tmp_path: Path):
    empty = folder_fingerprint(tmp_path)
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with_file = folder_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert has_tokenizer(tmp_path) and folder_fingerprint(tmp_path) == with_file != empty
    (tmp_path / "tokenizer.json").write_text("{ }", encoding="utf-8")
    assert folder_fingerprint(tmp_path) != with_file


def test_a_file_that_is_no_json_is_refused(tmp_path: Path):
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "added_tokens.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"added_tokens\.json: expected JSON"):
        read_added_tokens(tmp_path)
