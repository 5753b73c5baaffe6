"""Verification: a whole dataset is called whole; every kind of damage is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import cli
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, Placement, sidecar_path, write_packed_shard
from shards.rates import media_fault, rate_fault
from shards.records import FORMAT_VERSION as SAMPLES_VERSION
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.verify import verify_dataset
from shards.vocabulary import Modality, Vocabulary
from shards.writer import commit_table, file_sha256


def test_a_whole_packed_dataset_is_called_whole(packed_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.verify([str(packed_folder)]) == 0
    printed = capsys.readouterr().out
    assert "whole" in printed
    assert "image tokens" in printed
    result = verify_dataset(packed_folder)
    assert result.num_rows == 320
    assert result.tokens == read_manifest(packed_folder).tokens


def test_a_flipped_byte_ends_in_exit_1_with_file_and_rows(
    packed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed_folder / "shard-00000.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[20_000] ^= 4
    path.write_bytes(damaged)
    assert cli.verify([str(packed_folder)]) == 1
    errors = capsys.readouterr().err
    assert "shard-00000.arrow" in errors
    assert "rows 96..111: its bytes are not the bytes that were written" in errors


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.verify([str(tmp_path)]) == 1
    assert "found none; run the command that makes it" in capsys.readouterr().err


def test_a_damaged_or_missing_sidecar_is_found(packed_folder: Path) -> None:
    sidecar = sidecar_path(packed_folder / "shard-00001.arrow")
    sidecar.write_bytes(sidecar.read_bytes() + b"x")
    assert [fault.path for fault in verify_dataset(packed_folder).faults] == ["shard-00001.samples.parquet"]
    sidecar.unlink()
    assert "missing" in verify_dataset(packed_folder).faults[0].what


def test_a_sidecar_that_tells_of_other_documents_is_found(packed_folder: Path) -> None:
    sidecar = sidecar_path(packed_folder / "shard-00001.arrow")
    table = pq.read_table(sidecar)
    commit_table(sidecar, table.slice(0, table.num_rows - 1))
    _trust_again(packed_folder)
    (fault,) = verify_dataset(packed_folder).faults
    assert fault.path == sidecar.name
    assert fault.what == "its documents are not at the shard's document starts"
    assert fault.rows == (19,)
    stops = np.array(table["stop"].to_pylist(), np.int32)
    stops[-1] -= 1
    commit_table(sidecar, table.set_column(7, table.schema.field("stop"), pa.array(stops)))
    _trust_again(packed_folder)
    (fault,) = verify_dataset(packed_folder).faults
    assert (fault.what, fault.rows) == ("its documents do not add up to num_tokens", (19,))


def test_wrong_sums_in_the_manifest_are_found(packed_folder: Path) -> None:
    manifest = read_manifest(packed_folder)
    first = replace(manifest.shards[0], tokens={"text": 1})
    counts = {"inputs": 5, "written": 3, "filtered": {}, "rejected": {"a": 1}}
    write_manifest(packed_folder, replace(manifest, shards=(first, manifest.shards[1]), counts=counts))
    whats = [fault.what for fault in verify_dataset(packed_folder).faults]
    assert any(what.startswith("the manifest says {'text': 1} tokens") for what in whats)
    assert "inputs 5 are not written + filtered + rejected = 4" in whats


def _ids(vocabulary: Vocabulary, modality: str, frames: int) -> np.ndarray:
    block = vocabulary.block(modality)
    codes = np.random.default_rng(0).integers(0, block.codebook_size, (frames, block.levels)).astype(np.uint16)
    return vocabulary.media_token_ids(modality, codes)


def test_media_by_the_law_have_no_fault(vocabulary: Vocabulary) -> None:
    for modality, frames in (("image", 32), ("speech", 3), ("music", 4)):
        one = _ids(vocabulary, modality, frames)
        row = np.concatenate([[1, 5], one, [7], one, [2]])
        assert media_fault(row, vocabulary.block(modality)) == ""
    assert media_fault(np.array([1, 5, 2]), vocabulary.block("image")) == ""


@pytest.mark.parametrize(
    ("modality", "frames", "spoil", "expected"),
    [
        ("image", 31, lambda ids: ids, "a picture of 31 codes instead of 32"),
        ("image", 32, lambda ids: ids[:-1], "1 start and 0 end markers"),
        ("image", 32, lambda ids: ids[::-1], "do not pair up"),
        ("speech", 4, lambda ids: np.concatenate([ids, ids[1:2]]), "5 codes, of which 4 places"),
        ("speech", 4, lambda ids: np.concatenate([ids[1:2], ids[:1], [9], ids[2:]]), "codes outside its markers"),
        ("music", 4, lambda ids: np.concatenate([ids[:-2], ids[-1:]]), "a cut frame"),
        ("music", 4, lambda ids: np.concatenate([ids[:1], ids[2:3], ids[1:2], ids[3:]]), "levels out of order"),
    ],
)
def test_every_breach_of_table_1_has_a_name(
    vocabulary: Vocabulary, modality: str, frames: int, spoil: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    row = np.concatenate([[1, 5], spoil(_ids(vocabulary, modality, frames)), [2]])
    assert expected in media_fault(row, vocabulary.block(modality))


def test_a_breach_in_a_shard_names_its_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    good = np.concatenate([[1], _ids(vocabulary, "image", 32), [2]])
    bad = np.concatenate([[1], _ids(vocabulary, "image", 30), [5, 5], [2]])
    rows = [
        PackedRow(ids, len(ids), (0,), ((0, len(ids)),), (Placement(f"s{n}", "d", 0, "x", 0, len(ids)),))
        for n, ids in enumerate([good, bad, good, bad])
    ]
    entry = write_packed_shard(tmp_path / "a.arrow", rows, vocabulary=vocabulary, sequence_length=len(good))
    extra = {"sequence_length": len(good)}
    write_manifest(tmp_path, Manifest("packed", "a", "f", (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra))
    assert [str(fault) for fault in verify_dataset(tmp_path).faults] == [
        "a.arrow: rows 1, 3: image: a picture of 30 codes instead of 32"
    ]


def _sample(name: str, *segments: Segment) -> TokenizedSample:
    return TokenizedSample(name, "c", "train", segments, Provenance("file.tar"))


def _codes(frames: int, levels: int, size: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, size, (frames, levels)).astype(np.uint16)


def _write_samples(folder: Path, samples: list[TokenizedSample]) -> Path:
    path = folder / "unit-00000.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = commit_table(path, samples_to_table(samples))
    entry = ShardEntry(path.name, len(samples), path.stat().st_size, sha256)
    write_manifest(folder, Manifest("samples", "c", "f", (entry,), SAMPLES_VERSION))
    return folder


def test_whole_sample_shards_are_called_whole(tmp_path: Path) -> None:
    caption = Segment("caption", Modality.TEXT, text="a red square")
    samples = [
        _sample("a", caption, Segment("image", Modality.IMAGE, codes=_codes(32, 1, 8192))),
        _sample("b", Segment("speech", Modality.SPEECH, codes=_codes(101, 8, 1024), duration_s=2.005), caption),
        _sample("c", Segment("music", Modality.MUSIC, codes=_codes(250, 4, 2048), duration_s=5.0), caption),
    ]
    result = verify_dataset(_write_samples(tmp_path, samples))
    assert result.faults == ()
    assert result.tokens == {"image": 32, "speech": 101, "music": 250}
    assert cli.verify([str(tmp_path)]) == 0


def test_faults_of_sample_shards_name_their_rows(tmp_path: Path) -> None:
    samples = [
        _sample("a", Segment("image", Modality.IMAGE, codes=_codes(31, 1, 8192))),
        _sample("b", Segment("caption", Modality.TEXT)),
        _sample("a", Segment("speech", Modality.SPEECH, codes=_codes(101, 8, 1024), duration_s=3.0)),
        _sample("d", Segment("music", Modality.MUSIC, codes=_codes(250, 4, 4096), duration_s=5.0)),
        _sample("e", Segment("music", Modality.MUSIC, text="no codes")),
    ]
    found = {fault.what: fault.rows for fault in verify_dataset(_write_samples(tmp_path, samples)).faults}
    assert found == {
        "sample ids that are there twice": (2,),
        "image: expected 32 codes of one level": (0,),
        "a text segment without text, or with codes": (1,),
        "speech: frames that are not 50 per second of its duration": (2,),
        "music: codes outside the codebook of 2048": (3,),
        "music: a medium without codes, or with text": (4,),
    }


def test_rates_of_sounds_are_the_ceiling_of_their_duration() -> None:
    for duration_s, frames in ((1.0, 50), (0.001, 1), (1.0001, 51), (2.019, 101)):
        codes = np.zeros(frames, np.uint16)
        assert rate_fault("speech", codes, 1, duration_s) == ""
        assert rate_fault("speech", np.zeros(frames + 2, np.uint16), 1, duration_s) != ""
    assert "without a duration" in rate_fault("speech", np.zeros(5, np.uint16), 1, None)
    assert "no whole frames" in rate_fault("music", np.zeros(5, np.uint16), 4, 1.0)


def _trust_again(folder: Path) -> None:
    """Give the manifest the sidecars' new checksums, so that only their content is at fault."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["extra"]["sidecars"] = {name: file_sha256(folder / name) for name in data["extra"]["sidecars"]}
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_file_is_no_dataset_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text("{}", encoding="utf-8")
    assert cli.verify([str(tmp_path / "log.jsonl")]) == 1
    assert "expected a dataset's manifest, found none" in capsys.readouterr().err
