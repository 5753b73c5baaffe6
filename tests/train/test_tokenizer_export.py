"""The exported tokenizer: AutoTokenizer gives the ids our documents are made of, and files are AnyGPT's own kind."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.pieces import MarkerPiece, MediaPiece, Piece, TextPiece, write_text, write_token_ids
from pipeline.templates import load_templates
from pipeline.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer
from pipeline.text_training import instruction_texts
from pipeline.vocabularies import VocabularyLayout, load_vocabulary, vocabulary_from_checkpoint
from shards.errors import ConfigError, FingerprintMismatch, SampleError
from shards.tokenizer_files import added_tokens, check_added_tokens, read_added_tokens
from shards.vocabulary import Modality, Vocabulary, lay_out
from train.config import TrainConfig
from train.plan import Plan, make_plan
from train.tokenizer_export import export_tokenizer, tokenizer_source

Make = Callable[..., TrainConfig]
REPOSITORY = Path(__file__).resolve().parents[2]
MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 32, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
]
MARKERS = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"]
KINDS = [
    "ours",
    "tokenizer.model, legacy",
    "tokenizer.model, not legacy",
    "tokenizer.json, legacy",
    "tokenizer.json, not legacy",
]


def sentencepiece_model() -> bytes:
    """A LLaMA-like ``tokenizer.model`` of 280 pieces; the longer ones stand in front, as LLaMA's do."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])

    def field(number: int, value: int | float | bytes) -> bytes:
        if isinstance(value, bytes):
            return varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3) + varint(value)

    words = ["▁▁▁▁", "▁▁", "▁t", "he", "▁the", "▁c", "at", "▁cat", "▁:", "▁", "t", "h", "e", "c", "a", ":", ".", "\n"]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    data = b"".join(field(1, field(1, t.encode()) + field(2, s) + field(3, kind)) for t, s, kind in pieces)
    return data + field(2, field(3, 2)) + field(3, field(3, 1) + field(4, 0))


@cache
def our_texts() -> list[str]:
    return instruction_texts(load_templates(REPOSITORY / "configs/templates"))


def text_folder(kind: str, folder: Path) -> TextTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "ours":
        return train_text_tokenizer(our_texts(), 500, folder, words=["red", "circle"])
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    if "json" in kind:
        from pipeline.sentencepiece import open_sentencepiece

        open_sentencepiece(folder / "tokenizer.model").save(str(folder / "tokenizer.json"))
        (folder / "tokenizer.model").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": "not" not in kind, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}), encoding="utf-8")
    return load_text_tokenizer(folder)


Exported = tuple[Any, TextTokenizer, Vocabulary, Path]


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What AutoTokenizer makes of an export, the tokenizer it came from, the vocabulary, and the folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = text_folder(request.param, folder / "text")
    vocabulary = small_vocabulary(text)
    (folder / "out").mkdir()
    export_tokenizer(folder / "text", vocabulary, folder / "out")
    return AutoTokenizer.from_pretrained(str(folder / "out"), local_files_only=True), text, vocabulary, folder / "out"


def small_vocabulary(text: TextTokenizer) -> Vocabulary:
    facts = {"bos_id": text.bos_id, "eos_id": text.eos_id, "pad_id": text.pad_id}
    return lay_out(
        "small", text_size=text.size, markers=MARKERS, media=MEDIA, text_fingerprint=text.fingerprint, **facts
    )


def image(*codes: int) -> MediaPiece:
    return MediaPiece(Modality.IMAGE, np.array(codes, np.uint16).reshape(-1, 1))


def ids_of_others(exported: Exported, pieces: list[Piece]) -> list[int]:
    tokenizer, text, vocabulary, _ = exported
    return [*tokenizer(text.opening + write_text(pieces, vocabulary)).input_ids, text.eos_id]


texts = st.text(st.sampled_from(" \n:.,aceht☃é3"), min_size=1, max_size=12)
parts = st.one_of(
    texts.map(TextPiece),
    st.sampled_from(MARKERS).map(MarkerPiece),
    st.lists(st.integers(0, 31), min_size=1, max_size=4).map(lambda codes: image(*codes)),
)


@settings(max_examples=60)
@given(pieces=st.lists(parts, min_size=1, max_size=8))
def test_any_document_has_the_same_ids(exported: Exported, pieces: list[Piece]):
    """Whatever stands beside an added token, white space first of all."""
    _, text, vocabulary, _ = exported
    assert ids_of_others(exported, pieces) == write_token_ids(pieces, vocabulary, text).token_ids.tolist()


def test_special_tokens_size_and_text_come_back(exported: Exported):
    tokenizer, text, vocabulary, _ = exported
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert len(tokenizer) == vocabulary.size
    for token, token_id in added_tokens(vocabulary).items():
        assert tokenizer.convert_tokens_to_ids(token) == token_id
    written = f"[Human]: the cat. {vocabulary.block('image').to_text(image(1, 2).codes)}<eoh>"
    ids = tokenizer(text.opening + written).input_ids
    assert vocabulary.block("image").start_id in ids
    assert "<soim><👀1><👀2><eoim><eoh>" in tokenizer.decode(ids, skip_special_tokens=True), "added, but not special"


def test_our_own_tools_read_the_export(exported: Exported, tmp_path: Path):
    """It is a checkpoint's folder like any other: the same text, the same ids, and once more the same export."""
    _, text, vocabulary, folder = exported
    again = load_text_tokenizer(folder)
    assert (again.size, again.opening, again.dummy_space) == (text.size, text.opening, text.dummy_space)
    for words in ("the cat:  . the", "\n☃ a", " cat"):
        assert again.encode(words) == text.encode(words)
        assert again.encode(words, continues=True) == text.encode(words, continues=True)
    layout = VocabularyLayout.model_validate({"name": "small", "markers": MARKERS, "media": MEDIA})
    read, _ = vocabulary_from_checkpoint(folder, layout)
    assert replace(read, text_fingerprint=text.fingerprint) == vocabulary
    assert check_added_tokens(folder, vocabulary)
    export_tokenizer(folder, vocabulary, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    # With the vocabulary beside it, as an export has it, data packed with this folder fits its weights.
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary.to_json()), encoding="utf-8")
    assert vocabulary_from_checkpoint(tmp_path, layout)[0] == vocabulary


def corpus_rows(shared_corpora: Path) -> Iterator[tuple[str, str, str]]:
    """Text, medium and its token text of AnyGPT's own sample rows."""
    for path in sorted((shared_corpora / "anygpt_tokens" / "pretrain").rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = next(key for key in row if key not in ("text", "id"))
            yield row["text"], name, row[name]


def test_strings_of_the_corpus_have_the_ids_of_the_embedded_default(shared_corpora: Path, tmp_path: Path):
    """The tiny layout with a tokenizer trained as `make pretrain` trains it: captions, transcripts, real codes."""
    rows = list(corpus_rows(shared_corpora))
    folder = tmp_path / "text"
    text = train_text_tokenizer([*our_texts(), *(f" {row[0]}" for row in rows[::2])], 1024, folder)
    vocabulary = load_vocabulary(REPOSITORY / "configs/vocabulary/tiny.toml", text_tokenizer=text)
    (tmp_path / "out").mkdir()
    export_tokenizer(folder, vocabulary, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    compared = 0
    for instruction, (words, name, token_text) in zip(our_texts(), rows, strict=False):
        try:
            codes = vocabulary.block(name).from_text(token_text)
        except SampleError:
            continue
        pieces: list[Piece] = [MarkerPiece("[Human]"), TextPiece(f":{instruction} "), MediaPiece(Modality(name), codes)]
        pieces += [
            MarkerPiece("<eoh>"),
            TextPiece(" "),
            MarkerPiece("[MMGPT]"),
            TextPiece(f": {words}"),
            MarkerPiece("<eos>"),
        ]
        expected = write_token_ids(pieces, vocabulary, text).token_ids.tolist()
        assert [*tokenizer(write_text(pieces, vocabulary)).input_ids, text.eos_id] == expected
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize(
    ("layout", "added_bytes", "config_megabytes"),
    [("anygpt-stage1", 400_319, 3.066), ("anygpt-released", 493_455, 3.786)],
)
def test_the_files_have_the_sizes_of_the_published_ones(
    tmp_path: Path, layout: str, added_bytes: int, config_megabytes: float
):
    """anygpt-compat 1.3: 493 kB and 3.79 MB is what the hub lists for AnyGPT-base."""
    text_folder("tokenizer.model, not legacy", tmp_path / "text")
    vocabulary = load_vocabulary(REPOSITORY / f"configs/vocabulary/{layout}.toml")
    (tmp_path / "out").mkdir()
    export_tokenizer(tmp_path / "text", vocabulary, tmp_path / "out")
    assert (tmp_path / "out" / "added_tokens.json").stat().st_size == added_bytes
    size = (tmp_path / "out" / "tokenizer_config.json").stat().st_size
    assert size / 1e6 == pytest.approx(config_megabytes, abs=0.001)
    assert read_added_tokens(tmp_path / "out") == added_tokens(vocabulary)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == sentencepiece_model()


def bound_plan(make_config: Make, text: TextTokenizer, **changes: object) -> Plan:
    plan = make_plan(make_config(**changes), where="test.toml")
    return replace(plan, vocabulary=small_vocabulary(text))


def test_the_tokenizer_is_the_one_that_is_named_else_that_of_the_folder(make_config: Make, tmp_path: Path):
    text = text_folder("ours", tmp_path / "text")
    assert tokenizer_source(bound_plan(make_config, text)) is None
    assert tokenizer_source(bound_plan(make_config, text, tokenizer=tmp_path / "text")) == tmp_path / "text"
    plan = bound_plan(make_config, text)
    init = plan.config.init.model_copy(update={"folder": tmp_path / "text"})
    plan = replace(plan, config=plan.config.model_copy(update={"init": init}))
    assert tokenizer_source(plan) == tmp_path / "text"


def test_a_tokenizer_that_is_not_the_data_s_is_refused_before_training(make_config: Make, tmp_path: Path):
    text = text_folder("ours", tmp_path / "text")
    text_folder("tokenizer.model, legacy", tmp_path / "other")
    with pytest.raises(FingerprintMismatch, match=f"expected the text tokenizer {text.fingerprint}"):
        tokenizer_source(bound_plan(make_config, text, tokenizer=tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"key 'tokenizer': expected tokenizer\.json or tokenizer\.model"):
        tokenizer_source(bound_plan(make_config, text, tokenizer=tmp_path / "nowhere"))


@pytest.mark.parametrize("legacy", [False, True])
def test_the_real_llama_tokenizer_gives_the_golden_ids(tmp_path: Path, legacy: bool):
    """anygpt-compat 1.4, G1 up to the picture, with LLaMA-2's own file, where somebody has it."""
    given_folder = os.environ.get("LLAMA_TOKENIZER_DIR")
    if not given_folder:
        pytest.skip("no LLaMA-2 tokenizer; set LLAMA_TOKENIZER_DIR to a folder with tokenizer.model or tokenizer.json")
    for name in ("text", "out"):
        (tmp_path / name).mkdir()
    for path in Path(given_folder).glob("tokenizer*"):
        (tmp_path / "text" / path.name).write_bytes(path.read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "text" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = load_vocabulary(REPOSITORY / "configs/vocabulary/anygpt-stage1.toml")
    export_tokenizer(tmp_path / "text", vocabulary, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    opening = load_text_tokenizer(tmp_path / "text").opening
    head = [1, 32000, 584] if legacy else [1, 29871, 32000, 29901]
    found = tokenizer(f"{opening}[Human]: Describe this. <soim><👀1736>").input_ids
    assert found == [*head, 20355, 915, 445, 29889, 29871, 40196, 33740]
