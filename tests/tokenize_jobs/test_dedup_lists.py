"""Evaluation lists as people have them, read or refused with the line that is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.signatures import name_digest, normal_text, text_sha256
from shards.errors import ConfigError
from tokenize_jobs.dedup_config import ColumnsConfig, ListConfig
from tokenize_jobs.dedup_lists import read_lists

LONG = "Two dogs run along a beach at sunset."
DIGEST = hashlib.sha256(b"a picture").hexdigest()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def key(text: str) -> bytes:
    return text_sha256(normal_text(text))


def test_a_jsonl_gives_all_its_captions_under_the_columns_it_names(tmp_path: Path):
    record = {"filename": "COCO_1.jpg", "captions": [LONG, "A quite different second caption."], "hash": DIGEST}
    given = ListConfig(
        name="coco",
        file=write(tmp_path / "coco.jsonl", json.dumps(record) + "\n\n"),
        by=("id", "text", "media"),
        columns=ColumnsConfig(id="filename", text="captions", media="hash"),
    )
    listed = read_lists((given,))
    assert listed.names == {name_digest("COCO_1.jpg"): "coco:COCO_1.jpg"}
    assert listed.texts == {key(caption): "coco:COCO_1.jpg" for caption in record["captions"]}
    assert listed.media == {bytes.fromhex(DIGEST): "coco:COCO_1.jpg"}


def test_librispeech_s_own_transcripts_are_ids_and_texts(tmp_path: Path):
    file = write(
        tmp_path / "clean.txt", "1089-134686-0000 HE HOPED THERE WOULD BE STEW FOR DINNER\n1089-134686-0001 YES\n"
    )
    listed = read_lists((ListConfig(name="clean", file=file, by=("id", "text")),))
    assert set(listed.names) == {name_digest("1089-134686-0000"), name_digest("1089-134686-0001")}
    assert set(listed.texts) == {key("He hoped there would be stew for dinner.")}, "a short text leaks nothing"


@pytest.mark.parametrize(("name", "comma"), [("list.csv", ","), ("list.tsv", "\t")])
def test_a_table_has_a_header(tmp_path: Path, name: str, comma: str):
    file = write(tmp_path / name, f"id{comma}text\np225_001{comma}{LONG}\n")
    listed = read_lists((ListConfig(name="vctk", file=file, by=("id", "text")),))
    assert listed.texts == {key(LONG): "vctk:p225_001"}


def test_of_two_lists_with_the_same_item_the_first_is_named(tmp_path: Path):
    files = [write(tmp_path / f"{name}.txt", "x.jpg\n") for name in "ab"]
    listed = read_lists(tuple(ListConfig(name=file.stem, file=file, by=("id",)) for file in files))
    assert listed.names == {name_digest("x.jpg"): "a:x.jpg"}


@pytest.mark.parametrize(
    ("name", "text", "by", "message"),
    [
        ("list.csv", "ID\n1\n", ("id",), "line 2: expected the column 'id', found ID; set columns.id"),
        ("list.jsonl", "{}\n{\n", ("id",), "expected the column 'id'"),
        ("list.jsonl", "[1]\n", ("id",), "line 1: expected an object"),
        ("list.jsonl", "{\n", ("id",), "found an error"),
        ("list.txt", "abc\n", ("media",), "64 hex digits"),
        ("list.txt", "abc\n", ("id", "media"), "one value a line"),
        ("list.parquet", "", ("id",), r"\.jsonl, \.csv"),
        ("list.txt", "\n", ("id",), "found none"),
    ],
)
def test_a_wrong_list_is_refused_with_the_reason(tmp_path: Path, name: str, text: str, by, message: str):
    with pytest.raises(ConfigError, match=message):
        read_lists((ListConfig(name="wrong", file=write(tmp_path / name, text), by=by),))


def test_a_missing_list_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.txt"):
        read_lists((ListConfig(name="absent", file=tmp_path / "absent.txt", by=("id",)),))
