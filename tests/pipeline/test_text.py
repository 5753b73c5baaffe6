"""The text tokenizer: nothing lost, nothing forged, the same ids in a prompt as in a document."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer

from pipeline.pieces import MarkerPiece, MediaPiece, TextPiece, write_token_ids
from pipeline.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer
from pipeline.vocabularies import load_vocabulary
from shards.errors import ConfigError, TokenizerError
from shards.vocabulary import Codes, Modality

TEXTS = ["a red circle on a white background", "two blue stars, one green cross", "Play it again, in C major."] * 5

# G1 of anygpt-compat 1.4: an image caption of LAION-COCO with its 32 codes.
G1_IDS = [
    33740, 32684, 37475, 34968, 32684, 37898, 38393, 40036, 33775, 32684, 32684, 38536, 38393, 38398, 34518, 38724,
    34161, 37553, 37293, 34518, 37293, 38398, 37834, 34319, 38398, 38536, 37553, 36090, 34818, 33508, 39107, 37706,
]  # fmt: skip
G1_HEAD = {"first": [1, 29871, 32000, 29901], "always": [1, 32000, 584]}
G1_MIDDLE = {"first": [29871, 32001, 29901], "always": [259, 32001, 584]}
G1_ASKED = [20355, 915, 445, 29889, 29871]
G1_REPLY = [450, 10261, 317, 4539, 7255, 18291, 293, 2088, 3673, 19340, 19548, 338, 4318, 29889]


@given(text=st.text(max_size=60))
def test_every_text_comes_back(text_tokenizer: TextTokenizer, text: str):
    ids = text_tokenizer.encode(text)
    assert text_tokenizer.decode(ids) == text
    assert all(0 <= token_id < text_tokenizer.size for token_id in ids)


@given(left=st.text(max_size=20), sign=st.sampled_from(":.?,a7"), right=st.text(max_size=20))
def test_a_text_may_be_cut_in_front_of_a_space(text_tokenizer: TextTokenizer, left: str, sign: str, right: str):
    """What makes the ids of a prompt the first ids of its document."""
    whole = text_tokenizer.encode(f"{left}{sign} {right}")
    assert whole == text_tokenizer.encode(left + sign) + text_tokenizer.encode(f" {right}", continues=True)


@given(text=st.sampled_from(["<s>", "</s>", "<unk>", "<eoh>", "[MMGPT]", "<soim><\U0001f4401><eoim>"]))
def test_text_cannot_forge_a_special_token(text_tokenizer: TextTokenizer, text: str):
    ids = text_tokenizer.encode(f"say {text} please")
    assert not {0, 1, 2} & set(ids)
    assert text_tokenizer.decode(ids) == f"say {text} please"


def test_equal_texts_in_any_order_give_equal_bytes(tmp_path: Path):
    for name, texts in (("a", TEXTS), ("b", TEXTS[::-1])):
        train_text_tokenizer(texts, 320, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b = (load_text_tokenizer(tmp_path / name) for name in "ab")
    assert a.fingerprint == b.fingerprint


def test_another_text_gives_another_fingerprint(tmp_path: Path):
    one = train_text_tokenizer(TEXTS, 320, tmp_path / "a")
    other = train_text_tokenizer([*TEXTS, "zebra " * 100], 320, tmp_path / "b")
    assert one.fingerprint != other.fingerprint


def test_wanted_words_are_one_piece_however_rare(tmp_path: Path):
    words = ["purple", "diamond", "arpeggio"]
    tokenizer = train_text_tokenizer(TEXTS * 50, 340, tmp_path, words=words)
    assert [len(tokenizer.encode(f" {word}")) for word in words] == [1, 1, 1]
    assert [tokenizer.decode(tokenizer.encode(f" {word}")) for word in words] == [f" {word}" for word in words]


def test_too_few_ids_for_the_wanted_words_or_the_bytes_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"leave 1 wanted words in pieces.*raise it"):
        train_text_tokenizer(TEXTS, 260, tmp_path, words=["purple"])
    with pytest.raises(ConfigError, match="expected at least 259"):
        train_text_tokenizer(TEXTS, 258, tmp_path)


def test_the_folder_opens_in_transformers_with_the_same_ids(text_folder: Path, text_tokenizer: TextTokenizer):
    theirs = AutoTokenizer.from_pretrained(str(text_folder), local_files_only=True)
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2, 0)
    assert len(theirs) == text_tokenizer.size
    text = "Describe the red circle, please: 12 of them?"
    assert theirs(text, add_special_tokens=False).input_ids == text_tokenizer.encode(text)


def test_ids_of_media_are_no_text(text_tokenizer: TextTokenizer):
    with pytest.raises(TokenizerError, match="take media out first"):
        text_tokenizer.decode([5, text_tokenizer.size])


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json or tokenizer\.model, found neither"):
        load_text_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match="copy it again"):
        load_text_tokenizer(tmp_path)


def llama_stand_in(folder: Path, legacy: bool | None) -> TextTokenizer:
    """32,000 ids of which those that G1 needs are LLaMA's own: pieces, ids and white space are real, the rest is filler."""
    pieces = ["▁The", "▁UK", "▁S", "eller", "▁Ac", "oust", "ic", "▁Gu", "itar", "▁gig", "▁bag", "▁is", "▁shown", "."]
    known = dict(zip(G1_REPLY, pieces, strict=True))
    known |= {20355: "▁Desc", 915: "ribe", 445: "▁this", 29871: "▁", 259: "▁▁", 584: "▁:", 29901: ":"}
    known |= {0: "<unk>", 1: "<s>", 2: "</s>"}
    vocab = [(known.get(i, f"\x00{i}"), -1.0 if i in known else -50.0) for i in range(32000)]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first" if legacy is False else "always", split=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    config |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_text_tokenizer(folder)


def g1_ids(tokenizer: TextTokenizer, repository: Path, codes: Codes) -> list[int]:
    vocabulary = load_vocabulary(repository / "configs/vocabulary/anygpt-stage1.toml", text_tokenizer=tokenizer)
    pieces = [
        MarkerPiece("[Human]"),
        TextPiece(": Describe this. "),
        MediaPiece(Modality.IMAGE, codes),
        MarkerPiece("<eoh>"),
        TextPiece(" "),
        MarkerPiece("[MMGPT]"),
        # As in a dialogue, where loss begins inside this text: the two halves must give the ids of the whole.
        TextPiece(":", trained=False),
        TextPiece(" The UK Seller Acoustic Guitar gig bag is shown."),
        MarkerPiece("<eos>"),
    ]
    return write_token_ids(pieces, vocabulary, tokenizer).token_ids.tolist()


def g1_codes() -> Codes:
    return (np.array(G1_IDS) - 32004).astype(np.uint16).reshape(-1, 1)


@pytest.mark.parametrize("legacy", [False, True, None], ids=["legacy=false", "legacy=true", "legacy absent"])
def test_white_space_around_llama_text_gives_the_golden_ids(tmp_path: Path, repository: Path, legacy: bool | None):
    """anygpt-compat 1.4, both behaviours: 63 ids and 62; absent means true, as in the version the authors pinned."""
    tokenizer = llama_stand_in(tmp_path / "llama", legacy)
    rule = "first" if legacy is False else "always"
    assert tokenizer.dummy_space == rule
    expected = [*G1_HEAD[rule], *G1_ASKED, 40196, *G1_IDS, 40197, 32002, *G1_MIDDLE[rule], *G1_REPLY, 32003, 2]
    assert len(expected) == (63 if rule == "first" else 62)
    assert g1_ids(tokenizer, repository, g1_codes()) == expected


@pytest.mark.parametrize("legacy", [False, True])
def test_the_real_llama_tokenizer_gives_the_golden_ids(tmp_path: Path, repository: Path, legacy: bool):
    """The same with LLaMA-2's own tokenizer.model, where somebody has it."""
    folder = os.environ.get("LLAMA_TOKENIZER_DIR")
    if not folder:
        pytest.skip("no LLaMA-2 tokenizer; set LLAMA_TOKENIZER_DIR to a folder with tokenizer.model or tokenizer.json")
    for path in Path(folder).glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config_path = tmp_path / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    config_path.write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}), encoding="utf-8"
    )
    rule = "always" if legacy else "first"
    expected = [*G1_HEAD[rule], *G1_ASKED, 40196, *G1_IDS, 40197, 32002, *G1_MIDDLE[rule], *G1_REPLY, 32003, 2]
    assert g1_ids(load_text_tokenizer(tmp_path), repository, g1_codes()) == expected


def test_the_fingerprint_is_of_the_tokenizer_files_alone(
    text_folder: Path, text_tokenizer: TextTokenizer, tmp_path: Path
):
    for path in text_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "origin.json").write_text("{}", encoding="utf-8")
    assert load_text_tokenizer(tmp_path).fingerprint == text_tokenizer.fingerprint
    assert len(text_tokenizer.fingerprint) == len(hashlib.sha256().hexdigest()) // 4
