"""LLaMA's ``tokenizer.model`` without its library: pieces, ids and merges as the file ranks them, damage refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sentencepiece import open_sentencepiece
from pipeline.text import TextTokenizer, load_text_tokenizer
from shards.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
# The longer pieces stand in front, as LLaMA's do: the better the score, the earlier the merge.
WORDS = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "▁▁"]
LETTERS = ["▁", "t", "h", "e", "c", "a", ":", "."]


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text: str, score: float, kind: int) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


def model(*, model_type: int = 2, charsmap: bytes = b"", extra_spaces: int = 0, num_bytes: int = 256) -> bytes:
    pieces = [piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL)]
    pieces += [piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(num_bytes)]
    pieces += [piece(text, -float(rank), NORMAL) for rank, text in enumerate([*WORDS, *LETTERS])]
    normalizer = field(3, 1) + field(4, extra_spaces) + (field(2, charsmap) if charsmap else b"")
    return b"".join(pieces) + field(2, field(3, model_type)) + field(3, normalizer)


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, *LETTERS]


@pytest.fixture(scope="module", params=[True, False], ids=["legacy=true", "legacy=false"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(model())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": request.param, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_text_tokenizer(folder)


def spelled(tokenizer: TextTokenizer, text: str, *, continues: bool = False) -> list[str]:
    return [PIECES[token_id] for token_id in tokenizer.encode(text, continues=continues)]


def test_ids_are_places_in_the_file(llama: TextTokenizer):
    assert (llama.size, llama.bos_id, llama.eos_id, llama.pad_id) == (len(PIECES), 1, 2, 0)


def test_merges_follow_the_scores_and_unknown_letters_become_bytes(llama: TextTokenizer):
    assert spelled(llama, " the cat: é", continues=True) == ["▁the", "▁cat", ":", "▁", "<0xC3>", "<0xA9>"]
    assert spelled(llama, "  ", continues=True) == ["▁▁"]


def test_only_a_legacy_tokenizer_adds_a_space_to_a_text_behind_a_token(llama: TextTokenizer):
    added = ["▁"] if llama.dummy_space == "always" else []
    assert spelled(llama, ":") == [*added, ":"]
    assert spelled(llama, ":", continues=True) == [":"]
    assert llama.opening == ("" if added else " ")


def test_control_pieces_are_never_found_in_text(llama: TextTokenizer):
    assert not {0, 1, 2} & set(llama.encode("<s> the </s>"))


@settings(deadline=None)
@given(text=st.text(max_size=30).filter(lambda t: "▁" not in t))
def test_every_text_comes_back(llama: TextTokenizer, text: str):
    """All but the sign that stands for a space, which no SentencePiece model can tell from one."""
    assert llama.decode(llama.encode(text)) == text


def test_a_model_alone_adds_its_dummy_prefix(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(model())
    assert load_text_tokenizer(tmp_path).dummy_space == "always"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model(model_type=1), "not byte-pair encoding"),
        (model(charsmap=b"x"), "normalization rules"),
        (model(extra_spaces=1), "removal of white space"),
        (model(num_bytes=255), "no pieces for single bytes"),
        (model()[:-3], "expected a SentencePiece model"),
        (b"\x0b", "expected a SentencePiece model"),
        (b"", "not byte-pair encoding"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_text_tokenizer(tmp_path)
    assert str(path) in str(raised.value)


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_no_bytes_can_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.mktemp("any") / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError):
        open_sentencepiece(path)
