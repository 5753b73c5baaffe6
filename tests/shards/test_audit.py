"""Provenance: from any packed row back to the file it came from, and to the reason where there is no row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.samples import Filtered, Reject
from shards import audit_cli, removal_cli
from shards.audit import trace
from shards.errors import DatasetError
from shards.lineage import is_fresh, packing_fingerprint, source_names
from shards.lookup import find_datasets, find_ids, input_id, nearest_ids
from shards.manifest import read_manifest
from shards.packed import sidecar_path
from shards.reader import open_packed
from shards.records import Provenance, Segment, TokenizedSample
from shards.removal import remove_samples, stale_datasets
from shards.sample_reader import read_samples
from shards.vocabulary import Modality

MakeDataset = Callable[[Path, Sequence[Sequence[object]]], Path]
SENTENCE = "a red blue green square circle on the left right of one spoken sentence"
WORDS = SENTENCE.split()


def words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(3, 9))).tolist())


def picture(number: int) -> TokenizedSample:
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 8192, (32, 1)).astype(np.uint16)
    image = Segment("image", Modality.IMAGE, codes=codes, media_sha256=f"{number:064x}")
    provenance = Provenance(
        "00007.tar", f"{number:09d}.jpg", number * 512, f"https://a.example/{number}.jpg", "CC-BY-4.0"
    )
    segments = (Segment("caption", Modality.TEXT, text=words(rng)), image)
    return TokenizedSample(f"pictures/{number}", "laion2b", "train", segments, provenance)


def spoken(number: int) -> TokenizedSample:
    """Two windows a recording; those of recording 3 are of another split."""
    rng = np.random.default_rng([1, number])
    codes = rng.integers(0, 1024, (40, 8)).astype(np.uint16)
    speech = Segment("speech", Modality.SPEECH, codes=codes, duration_s=0.8)
    segments = (speech, Segment("transcript", Modality.TEXT, text=words(rng)))
    split = "test" if number // 2 == 3 else "train"
    name = f"talks/{number // 2}#w{number % 2}"
    return TokenizedSample(name, "mls", split, segments, Provenance("b.opus", "", number * 12800))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenize_units: MakeDataset, repository: Path) -> Path:
    """``samples/pictures`` and ``samples/talks``, and below ``packed`` what anygpt-pack makes of both."""
    from pipeline.text import train_text_tokenizer
    from tokenize_jobs.packing_cli import pack

    folder = tmp_path_factory.mktemp("audit")
    broken = Reject(
        "pictures/90", "pictures", "image_truncated", "half a picture", Provenance("00007.tar", "90.jpg", 9)
    )
    unsafe = Filtered("pictures/91", "pictures", "unsafe", "0.9 > 0.5", Provenance("00007.tar", "91.jpg", 10))
    pictures = [[*(picture(n) for n in range(10)), broken], [*(picture(n) for n in range(10, 16)), unsafe]]
    tokenize_units(folder / "samples" / "pictures", pictures)
    tokenize_units(folder / "samples" / "talks", [[spoken(n) for n in range(10)]])
    train_text_tokenizer([" ".join(WORDS)] * 3, 300, folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        assert pack([str(packing_config(folder, folder / "packed"))]) == 0
    return folder


def packing_config(folder: Path, output: Path) -> Path:
    config = folder / "packing.toml"
    config.write_text(
        f"""
output = {str(output)!r}
text_tokenizer = {str(folder / "text")!r}
sequence_length = 256
unit_documents = 24

[datasets.both]
path = [{str(folder / "samples" / "talks")!r}, {str(folder / "samples" / "pictures")!r}]
draws = 2
splits = ["train"]
""",
        encoding="utf-8",
    )
    return config


def test_every_document_of_every_row_leads_back_to_its_sample(folder: Path) -> None:
    packed = folder / "packed" / "both"
    sources = {s.sample_id: s for name in ("pictures", "talks") for s in read_samples(folder / "samples" / name)}
    told = 0
    for shard in read_manifest(packed).shards:
        for row in pq.read_table(sidecar_path(packed / shard.path)).to_pylist():
            trail = trace(packed, row["sample_id"], samples=[folder / "samples"])
            (sample,), source = trail.samples, sources[row["sample_id"]]
            place = next(
                p for p in trail.places if (p.shard, p.row, p.position) == (shard.path, row["row"], row["position"])
            )
            assert (place.start, place.stop, place.draw, place.direction) == tuple(
                row[name] for name in ("start", "stop", "draw", "direction")
            )
            found = (sample.source_file, sample.member, sample.offset, sample.url, sample.licence)
            assert found == tuple(getattr(source.provenance, f) for f in source.provenance.__slots__)
            assert trail.notes == ()
            told += 1
    assert told >= 2 * (16 + 8)


def test_a_row_of_the_dataset_is_the_row_the_reader_gives(folder: Path) -> None:
    packed = open_packed(folder / "packed" / "both")
    assert packed.num_shards > 1
    for place in trace(packed.folder, "pictures/12").places:
        shards, rows = packed.locate([place.dataset_row])
        assert (packed.manifest.shards[int(shards[0])].path, int(rows[0])) == (place.shard, place.row)
        assert place.start in packed.document_starts(place.dataset_row)


def test_a_sample_is_told_with_its_segments_and_the_slice_its_shard_was_made_of(folder: Path) -> None:
    (sample,) = trace(folder / "samples" / "pictures", "pictures/12").samples
    caption, image = sample.segments
    assert caption.text and caption.tokens is None
    assert (image.tokens, image.frames, image.levels, image.media_sha256) == (32, 32, 1, f"{12:064x}")
    assert (sample.shard, sample.row) == ("shards/unit-000001.parquet", 2)
    assert sample.unit == "unit-000001: items 0 to 7 of 00001.tar (3 bytes)"
    (window,) = trace(folder / "samples" / "talks", "talks/2#w1").samples
    assert (window.segments[0].tokens, window.segments[0].levels, window.segments[0].duration_s) == (40, 8, 0.8)


def test_a_recording_finds_all_its_windows_and_a_window_itself_alone(folder: Path) -> None:
    talks = folder / "samples" / "talks"
    assert [sample.sample_id for sample in trace(talks, "talks/2").samples] == ["talks/2#w0", "talks/2#w1"]
    assert [sample.sample_id for sample in trace(talks, "talks/2#w1").samples] == ["talks/2#w1"]


@pytest.mark.parametrize(
    ("sample_id", "outcome", "reason"),
    [("pictures/90", "rejected", "image_truncated"), ("pictures/91", "filtered", "unsafe")],
)
def test_what_was_left_out_is_told_with_its_reason_and_place(
    folder: Path, sample_id: str, outcome: str, reason: str
) -> None:
    for dataset, samples in ((folder / "samples" / "pictures", []), (folder / "packed" / "both", [folder / "samples"])):
        trail = trace(dataset, sample_id, samples=samples)
        (found,) = trail.left_out
        assert (found.outcome, found.reason, found.source_file) == (outcome, reason, "00007.tar")
        assert trail.samples == () and trail.places == ()


def test_a_sample_that_is_not_packed_is_told_why(folder: Path) -> None:
    trail = trace(folder / "packed" / "both", "talks/3", samples=[folder / "samples"])
    assert len(trail.samples) == 2 and trail.places == ()
    assert trail.notes == ("not packed: its split is test, packed are train",)


def test_an_unknown_id_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match=r"'picture/12', found none.*the nearest are pictures/12"):
        trace(folder / "samples" / "pictures", "picture/12")
    assert audit_cli.main([str(folder / "packed" / "both"), "--id", "talks/2#w7"]) == 1
    assert "talks/2#w" in capsys.readouterr().err.partition("nearest are")[2]


def test_rows_without_their_samples_at_hand_say_whose_folder_is_missing(folder: Path) -> None:
    trail = trace(folder / "packed" / "both", "talks/0", samples=[folder / "samples" / "pictures"])
    assert trail.notes == ("samples of talks not looked at: give their folders with --samples",)
    assert len(trail.places) == 4


def test_the_command_prints_the_chain_for_a_person_and_for_a_machine(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "packed" / "both"), "--id", "pictures/12", "--samples", str(folder / "samples")]
    assert audit_cli.main(arguments) == 0
    said = capsys.readouterr().out
    for part in (
        "row ",
        "shard-0000",
        "unit-000001.parquet",
        "00007.tar, member 000000012.jpg, offset 6144",
        "CC-BY-4.0",
    ):
        assert part in said
    assert audit_cli.main([*arguments, "--json"]) == 0
    trail = json.loads(capsys.readouterr().out)
    assert trail["samples"][0]["licence"] == "CC-BY-4.0"
    assert [place["draw"] for place in trail["places"]] == [0, 1]


def test_the_fingerprint_of_packed_rows_follows_from_the_manifests(folder: Path) -> None:
    packed = read_manifest(folder / "packed" / "both")
    talks, pictures = (read_manifest(folder / "samples" / name) for name in ("talks", "pictures"))
    assert source_names(packed) == ("pictures", "talks")
    assert packing_fingerprint(packed.config, [talks, pictures]) == packed.fingerprint
    assert packing_fingerprint(packed.config, [pictures, talks]) != packed.fingerprint
    assert is_fresh(packed, [pictures, talks])
    assert not is_fresh(packed, [pictures])


@pytest.fixture
def taken_down(folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    remove_samples(copy / "samples" / "pictures", ["pictures/12", "pictures/90"], reason="withdrawn")
    return copy


def test_a_take_down_makes_packed_rows_stale_and_counts_them(
    taken_down: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, pictures = taken_down / "packed" / "both", taken_down / "samples" / "pictures"
    places = trace(packed, "pictures/12").places
    (stale,) = stale_datasets(pictures, [taken_down])
    assert (stale.folder, stale.documents, stale.sample_ids) == (packed, 2, 1)
    assert stale.rows == len({place.dataset_row for place in places})
    assert {f"{shard}.arrow" for shard in stale.shards} == {place.shard for place in places}
    trail = trace(packed, "pictures/12", samples=[taken_down / "samples"])
    assert [item.outcome for item in trail.left_out] == ["removed"]
    assert trail.left_out[0].error == "withdrawn"
    assert trail.notes[0].startswith("stale: ") and trail.notes[1].startswith("removed since it was packed")
    ids = taken_down / "ids.txt"
    ids.write_text("pictures/12", encoding="utf-8")
    assert removal_cli.main([str(pictures), "--ids", str(ids), "--packed", str(taken_down / "packed")]) == 0
    assert f"{packed}: stale: re-pack (" in capsys.readouterr().out


def test_packing_again_leaves_the_taken_down_out_and_refuses_the_old_output(
    taken_down: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenize_jobs.packing_cli import pack

    monkeypatch.chdir(repository)
    assert pack([str(packing_config(taken_down, taken_down / "packed"))]) == 1
    assert "remove that folder or choose another output" in capsys.readouterr().err
    assert pack([str(packing_config(taken_down, taken_down / "again"))]) == 0
    sources = [taken_down / "samples"]
    assert trace(taken_down / "again" / "both", "pictures/12", samples=sources).places == ()
    assert trace(taken_down / "again" / "both", "pictures/11", samples=sources).notes == ()
    found = {
        stale.folder.parent.name: stale.documents for stale in stale_datasets(sources[0] / "pictures", [taken_down])
    }
    assert found == {"packed": 2, "again": 0}


def test_ids_are_looked_up_whole_and_in_the_order_of_the_files(folder: Path) -> None:
    shards = [folder / "samples" / "pictures" / "shards" / f"unit-{n:06d}.parquet" for n in (1, 0)]
    found = list(find_ids(shards, ["pictures/1", "pictures/11"], ["sample_id"]))
    assert [(item.path, item.table["sample_id"].to_pylist()) for item in found] == [
        (shards[0], ["pictures/11"]),
        (shards[1], ["pictures/1"]),
    ]
    assert [item.rows.tolist() for item in found] == [[1], [1]]
    assert list(find_ids(shards, [])) == []
    assert nearest_ids(shards, "pictures/1x", 1) == ["pictures/1"]
    with pytest.raises(DatasetError, match=r"none\.parquet: expected a Parquet file"):
        list(find_ids([folder / "none.parquet"], ["a"]))


@pytest.mark.parametrize(
    "typed", ["a/51234678", "a/5123456778", "a/51234x678", "b/512345678", "a/512345678.jpg", "512345678"]
)
def test_the_nearest_id_is_found_whatever_single_slip_was_made(typed: str, tmp_path: Path) -> None:
    others = np.random.default_rng(0).integers(10**9, size=20_000).tolist()
    names = [f"a/{number:09d}" for number in [*others, 512345678]]
    pq.write_table(pa.table({"sample_id": names}), tmp_path / "ids.parquet")
    assert nearest_ids([tmp_path / "ids.parquet"], typed, 1) == ["a/512345678"]


def test_datasets_are_found_once_by_kind(folder: Path) -> None:
    found = find_datasets([folder, folder / "samples"], "samples")
    assert [path.name for path, _ in found] == ["pictures", "talks"]
    assert [path.name for path, _ in find_datasets([folder], "packed")] == ["both"]


def test_the_manifest_that_a_killed_removal_set_aside_is_no_dataset(folder: Path, tmp_path: Path) -> None:
    talks = Path(shutil.copytree(folder / "samples" / "talks", tmp_path / "talks"))
    (talks / "manifest.json").rename(talks / "ledger" / "manifest.json")
    assert find_datasets([tmp_path], "samples") == []


@pytest.mark.parametrize(
    ("sample_id", "whole"),
    [("a#w0", "a"), ("a#w12", "a"), ("a", "a"), ("a#w", "a#w"), ("a#wx", "a#wx"), ("a#w1#w2", "a#w1")],
)
def test_the_id_of_a_window_ends_with_its_number(sample_id: str, whole: str) -> None:
    assert input_id(sample_id) == whole
