"""AnyGPT's own data files: in and out unchanged, and every damaged line in the rejects with a reason."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.anygpt_jsonl import ANYGPT_MARKERS, ANYGPT_MEDIA, BLOCKS, form_of, format_line, parse_line, split_message
from shards.convert import export_jsonl, import_jsonl
from shards.convert_cli import convert
from shards.errors import CorpusError, DatasetError, SampleError
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table, table_to_samples
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from shards.writer import commit_table

REPOSITORY = Path(__file__).resolve().parents[2]
EYES, FACE, NOTES = (str(medium["prefix"]) for medium in ANYGPT_MEDIA)


def image(count: int = 32, first: int = 0) -> str:
    return "<soim>" + "".join(f"<{EYES}{first + index}>" for index in range(count)) + "<eoim>"


def speech(*indices: int) -> str:
    return "<sosp>" + "".join(f"<{FACE}{index}>" for index in indices) + "<eosp>"


def dump(value: Any, *, escaped: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=escaped).encode()


# What the published files look like, and what they could.
LINES = {
    "pretrain/image/laion-coco-caption.jsonl": [dump({"text": "A cat, é.", "image": image()})],
    "pretrain/speech/gigaspeech.jsonl": [
        dump({"speech": speech(732, 732, 46), "text": "well \u2013 yes."}, escaped=True),
        dump({"speech": speech(1), "text": "no"}, escaped=True),
    ],
    "pretrain/music/music-1m.jsonl": [
        dump({"text": "slow", "music": "<somu>" + "".join(f"<{NOTES}{i}>" for i in (0, 4095, 4097, 8190)) + "<eomu>"})
    ],
    "instruction/anyinstruct_speech.jsonl": [
        dump(
            {
                "id": 1,
                "conversation": [
                    [
                        {"role": "user", "message": f"{speech(1, 1)} Please answer"},
                        {"role": "assistant", "message": f"<-Ins-> hi\n <-Res-> hello {speech(2)} "},
                    ]
                ],
            }
        )
    ],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name, lines in LINES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(lines) + b"\n")
    return folder


def files(folder: Path, suffix: str = "") -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob(f"*{suffix}") if p.is_file()}


def samples_of(folder: Path) -> list[TokenizedSample]:
    shards = read_manifest(folder).shards
    return [sample for entry in shards for sample in table_to_samples(pq.read_table(folder / entry.path))]


def test_files_come_back_byte_for_byte(source: Path, tmp_path: Path):
    manifest = import_jsonl(source, tmp_path / "dataset")
    assert manifest.counts == {"inputs": 5, "written": 5, "filtered": {}, "rejected": {}}
    assert manifest.extra["inexact"] == 0
    export_jsonl(tmp_path / "dataset", tmp_path / "again")
    assert files(tmp_path / "again") == files(source)
    assert not verify_dataset(tmp_path / "dataset").faults


def test_the_published_samples_come_back_byte_for_byte(shared_corpora: Path, tmp_path: Path):
    folder = shared_corpora / "anygpt_tokens"
    manifest = import_jsonl(folder, tmp_path / "dataset")
    assert manifest.counts == {"inputs": 41, "written": 41, "filtered": {}, "rejected": {}}
    assert manifest.tokens == {"image": 20 * 32, "music": 5 * 250, "speech": manifest.tokens["speech"]}
    export_jsonl(tmp_path / "dataset", tmp_path / "again")
    assert files(tmp_path / "again") == files(folder, ".jsonl")
    assert not verify_dataset(tmp_path / "dataset").faults
    corpora = Counter(sample.corpus for sample in samples_of(tmp_path / "dataset"))
    assert set(corpora) == {
        "laion2b", "laion_coco", "laion_aesthetics", "journeydb", "commonvoice", "gigaspeech", "mls", "youtube_music",
        "anyinstruct",
    }  # fmt: skip


def test_every_damaged_line_is_a_reject_and_the_others_are_kept(shared_corpora: Path, tmp_path: Path):
    manifest = import_jsonl(shared_corpora / "damaged" / "anygpt_tokens", tmp_path / "dataset")
    found = {
        (Path(row["source_file"]).parent.name, row["offset"] + 1): row["reason"]
        for row in pq.read_table(tmp_path / "dataset" / "rejects.parquet").to_pylist()
    }
    assert found == {
        ("image", 2): "length_mismatch",
        ("image", 3): "length_mismatch",
        ("image", 4): "token_text_malformed",
        ("image", 5): "token_text_malformed",
        ("image", 6): "token_text_malformed",
        ("image", 7): "token_text_malformed",
        ("image", 8): "token_text_malformed",
        ("image", 9): "text_missing",
        ("image", 10): "text_empty",
        ("speech", 2): "variation_selector_missing",
        ("speech", 3): "token_text_malformed",
        ("speech", 4): "token_text_malformed",
        ("speech", 5): "token_text_malformed",
        ("speech", 6): "token_text_malformed",
        ("music", 1): "token_text_malformed",
        ("music", 2): "levels_out_of_order",
        ("music", 3): "token_text_malformed",
    }
    assert manifest.counts["inputs"] == 19 == manifest.counts["written"] + sum(manifest.counts["rejected"].values())
    assert [sample.sample_id for sample in samples_of(tmp_path / "dataset")] == [
        "pretrain/image/bad/000000",
        "pretrain/speech/bad/000000",
    ]


json_values = st.one_of(st.integers(-(10**20), 10**20), st.booleans(), st.none(), st.text(max_size=5), st.floats())
texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(lambda t: bool(t.strip()))


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Any line the format allows: order of keys, escapes, spacing, line end, other fields, several dialogues."""
    fields: dict[str, Any] = draw(st.dictionaries(st.sampled_from(["id", "source", "n"]), json_values, max_size=3))
    voices = st.lists(st.integers(0, 1023), min_size=1, max_size=4).map(lambda indices: speech(*indices))
    if draw(st.booleans()):
        fields |= {"text": draw(texts), "speech": draw(voices)}
    else:
        # A less-than sign could begin the token of another medium; plain words cannot.
        words = st.text("ab \n", min_size=1, max_size=5)
        message = st.lists(st.one_of(words, voices), min_size=1, max_size=4).map("".join)
        turn = st.tuples(message, message).map(
            lambda both: [{"role": "user", "message": both[0]}, {"role": "assistant", "message": both[1]}]
        )
        fields["conversation"] = draw(st.lists(turn, min_size=1, max_size=3))
    ordered = {key: fields[key] for key in draw(st.permutations(sorted(fields)))}
    spacing = draw(st.sampled_from([(", ", ": "), (",", ":")]))
    line = json.dumps(ordered, ensure_ascii=draw(st.booleans()), separators=spacing).encode()
    return line + draw(st.sampled_from([b"", b"\r"]))


@given(line=lines())
def test_any_line_of_the_format_comes_back(line: bytes):
    found = parse_line(line, corpus="c", source_file="f.jsonl", number=3)
    samples = [sample for sample in found if isinstance(sample, TokenizedSample)]
    assert len(samples) == len(found)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    stored = list(table_to_samples(samples_to_table(samples)))
    assert format_line(stored) == line


@given(line=st.one_of(st.binary(max_size=40), lines().map(lambda b: b[: len(b) // 2]), lines().map(lambda b: b + b)))
def test_no_line_can_crash_the_reader(line: bytes):
    try:
        found = parse_line(line, corpus="c", source_file="f.jsonl", number=0)
    except SampleError as error:
        assert error.reason
    else:
        assert found


@settings(deadline=None, max_examples=20)  # writes files
@given(data=st.lists(st.one_of(lines(), st.binary(max_size=9)), min_size=1, max_size=6), newline=st.booleans())
def test_inputs_are_written_or_rejected_and_what_is_written_comes_back(
    data: list[bytes], newline: bool, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("any")
    blob = b"\n".join(line.replace(b"\n", b" ") for line in data) + (b"\n" if newline else b"")
    (folder / "in").mkdir()
    (folder / "in" / "x.jsonl").write_bytes(blob)
    manifest = import_jsonl(folder / "in", folder / "dataset", lines_per_shard=2)
    assert manifest.counts["inputs"] == manifest.counts["written"] + sum(manifest.counts["rejected"].values())
    if not manifest.counts["rejected"] and not manifest.extra["inexact"]:
        export_jsonl(folder / "dataset", folder / "out")
        assert (folder / "out" / "x.jsonl").read_bytes() == blob


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "line_empty"),
        (b"[1]", "json_malformed"),
        (b'{"text": "a"', "json_malformed"),
        (b'{"text": "\xff"}', "json_malformed"),
        (dump({"text": "a", "image": image(), "speech": speech(1)}), "fields_unexpected"),
        (dump({"text": "a", "video": "x"}), "fields_unexpected"),
        (dump({"text": 5, "image": image()}), "fields_unexpected"),
        (b'{"text": "\\ud800", "speech": "<sosp><\\ud83d\\udde3\\ufe0f1><eosp>"}', "text_malformed"),
        (dump({"text": "a", "image": image(32, first=8170)}), "token_text_malformed"),
        (dump({"conversation": []}), "conversation_malformed"),
        (dump({"conversation": "x"}), "conversation_malformed"),
    ],
)
def test_a_line_that_cannot_be_used_has_a_reason(line: bytes, reason: str):
    with pytest.raises(SampleError) as raised:
        parse_line(line, corpus="c", source_file="f.jsonl", number=0)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "conversation_malformed"),
        ("x", "conversation_malformed"),
        ([{"role": "system", "message": "x"}], "conversation_malformed"),
        ([{"role": "user", "message": 1}], "conversation_malformed"),
        ([{"role": "user", "message": f"<sosp><{FACE}1>"}], "token_text_malformed"),
        ([{"role": "user", "message": f"stray <{EYES}1>"}], "token_text_malformed"),
        ([{"role": "user", "message": image(31)}], "length_mismatch"),
    ],
)
def test_one_bad_dialogue_of_a_line_leaves_the_others(turns: Any, reason: str):
    good = [{"role": "user", "message": "a"}, {"role": "assistant", "message": "b"}]
    bad, kept = parse_line(dump({"conversation": [turns, good]}), corpus="c", source_file="f.jsonl", number=0)
    assert isinstance(bad, SampleError)
    assert bad.reason == reason
    assert isinstance(kept, TokenizedSample)
    assert [segment.text for segment in kept.segments] == ["a", "b"]


def test_a_line_of_another_spelling_is_read_and_counted_as_inexact(tmp_path: Path):
    """Two spaces, or only some letters escaped: the meaning is kept, the spelling cannot be."""
    (tmp_path / "in").mkdir()
    line = dump({"text": "a", "speech": speech(5)}).replace(b": ", b":  ")
    (tmp_path / "in" / "x.jsonl").write_bytes(line)
    manifest = import_jsonl(tmp_path / "in", tmp_path / "dataset")
    assert (manifest.counts["written"], manifest.extra["inexact"]) == (1, 1)


def test_the_second_import_does_nothing_and_a_changed_source_is_read_again(source: Path, tmp_path: Path):
    dataset = tmp_path / "dataset"
    import_jsonl(source, dataset)
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    import_jsonl(source, dataset)
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before
    with (source / "pretrain/speech/gigaspeech.jsonl").open("ab") as file:
        file.write(dump({"speech": speech(9), "text": "more"}) + b"\n")
    assert import_jsonl(source, dataset).counts["written"] == 6


def test_shards_hold_a_bounded_number_of_lines_and_the_export_joins_them(tmp_path: Path):
    (tmp_path / "in").mkdir()
    blob = b"\n".join(dump({"text": f"t{n}", "speech": speech(n)}) for n in range(7))
    (tmp_path / "in" / "x.jsonl").write_bytes(blob)
    manifest = import_jsonl(tmp_path / "in", tmp_path / "dataset", lines_per_shard=3)
    assert [(shard.path, shard.num_rows) for shard in manifest.shards] == [
        ("x-00000.parquet", 3), ("x-00001.parquet", 3), ("x-00002.parquet", 1)
    ]  # fmt: skip
    assert export_jsonl(tmp_path / "dataset", tmp_path / "out") == {"x.jsonl": 7}
    assert (tmp_path / "out" / "x.jsonl").read_bytes() == blob


def own_dataset(folder: Path, samples: list[TokenizedSample]) -> Path:
    sha256 = commit_table(folder / "a.parquet", samples_to_table(samples))
    entry = ShardEntry("a.parquet", len(samples), (folder / "a.parquet").stat().st_size, sha256)
    write_manifest(folder, Manifest("samples", "own", "f" * 16, (entry,), 1))
    return folder


def test_our_own_samples_are_written_in_the_published_form(tmp_path: Path):
    """Speech keeps 8 levels at rest and shows one; samples that are no pair and no dialogue are counted, not lost."""
    voice = Segment("speech", Modality.SPEECH, codes=np.arange(16, dtype=np.uint16).reshape(2, 8), duration_s=0.04)
    words = Segment("transcript", Modality.TEXT, "hello")
    spoken = Segment("assistant", Modality.SPEECH, codes=voice.codes, duration_s=0.04)
    heard = (
        Segment("user", Modality.SPEECH, codes=voice.codes, duration_s=0.04),
        Segment("transcript", Modality.TEXT, "hi"),
    )
    said = (*heard, Segment("assistant", Modality.TEXT, "yes"), spoken)
    contents = {"mls/0": (voice, words), "chat/0": said, "mls/1": (voice, words, words), "mls/2": (words, voice)}
    samples = [
        TokenizedSample(sample_id, sample_id.split("/")[0], "train", segments, Provenance("f"))
        for sample_id, segments in contents.items()
    ]
    written = export_jsonl(own_dataset(tmp_path / "own", samples), tmp_path / "out")
    assert written == {"left out: not_a_pair": 1, "conversation/chat.jsonl": 1, "speech/mls.jsonl": 2}
    pair = json.loads((tmp_path / "out/speech/mls.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert pair == {"text": "hello", "speech": speech(0, 8)}
    chat = json.loads((tmp_path / "out/conversation/chat.jsonl").read_text(encoding="utf-8"))
    assert chat["conversation"][0] == [
        {"role": "user", "message": speech(0, 8)},
        {"role": "assistant", "message": f"<-Ins-> hi\n <-Res-> yes {speech(0, 8)}"},
    ]
    again = import_jsonl(tmp_path / "out", tmp_path / "back")
    assert (again.counts["written"], again.extra["inexact"]) == (3, 0)


def test_nothing_is_written_outside_the_output_folder(tmp_path: Path):
    line = dump({"text": "a", "speech": speech(1)})
    (evil,) = parse_line(line, corpus="c", source_file="../../evil.jsonl", number=0)
    assert isinstance(evil, TokenizedSample)
    with pytest.raises(DatasetError, match="below the output folder"):
        export_jsonl(own_dataset(tmp_path / "own", [evil]), tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_packed_shards_and_empty_folders_say_what_to_give(tmp_path: Path):
    write_manifest(tmp_path / "packed", Manifest("packed", "p", "f" * 16, (), 1))
    with pytest.raises(DatasetError, match="expected sample shards"):
        export_jsonl(tmp_path / "packed", tmp_path / "out")
    with pytest.raises(CorpusError, match="found none"):
        import_jsonl(tmp_path, tmp_path / "dataset")


def test_messages_are_cut_at_their_media_and_join_to_the_same_string():
    message = f" a {speech(1, 2)}{image()}b"
    segments = split_message(message, "user")
    assert [segment.modality for segment in segments] == ["text", "speech", "image", "text"]
    assert "".join(s.text if s.codes is None else BLOCKS[s.modality].to_text(s.codes) for s in segments) == message
    assert split_message("", "user")[0].text == ""


def test_the_strings_are_those_of_the_shipped_layout():
    layout = tomllib.loads((REPOSITORY / "configs/vocabulary/anygpt-stage1.toml").read_text(encoding="utf-8"))
    assert layout["media"] == list(ANYGPT_MEDIA)
    assert tuple(layout["markers"]) == ANYGPT_MARKERS


def test_a_sample_of_another_origin_has_the_published_form():
    picture = Segment("image", Modality.IMAGE, codes=np.zeros((32, 1), np.uint16))
    sample = TokenizedSample("a", "c", "train", (picture, Segment("caption", Modality.TEXT, "x")), Provenance("f"))
    assert form_of(sample).keys == ("text", "image")


def test_the_command_converts_both_ways(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(["import", str(source), str(tmp_path / "dataset")]) == 0
    assert "written" in capsys.readouterr().out
    assert convert(["export", str(tmp_path / "dataset"), str(tmp_path / "again")]) == 0
    assert files(tmp_path / "again") == files(source)
    assert convert(["export", str(tmp_path / "nowhere"), str(tmp_path / "again")]) == 1
    assert "manifest" in capsys.readouterr().err
