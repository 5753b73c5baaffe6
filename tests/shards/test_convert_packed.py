"""Packed datasets to other formats and back: the same files again, whatever they hold, and no other data is touched."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import convert_mds, convert_megatron
from shards.convert_cli import convert
from shards.convert_packed import FORMATS, Wanted, export_packed, import_packed, new_folder
from shards.convert_sidecar import read_vocabulary
from shards.errors import ChecksumMismatch, ConfigError, DatasetError
from shards.manifest import read_manifest
from shards.packed import PackedRow
from shards.reader import open_packed
from shards.verify import verify_dataset
from shards.vocabulary import Vocabulary
from tests.fixtures.random_packed import LENGTH, NARROW, files, shards_of_rows, write_dataset


@settings(max_examples=12)
@pytest.mark.parametrize("format", FORMATS)
@given(shards_of_rows())
def test_there_and_back_is_the_same_files(format: str, dataset: tuple[Vocabulary, list[list[PackedRow]]]) -> None:
    """Shards, sample ids, rejects and manifest byte for byte, for ids of 16 and of 32 bits, also of no row at all."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name) / "packed", *dataset)
        export_packed(folder, Path(name) / "foreign", format)
        manifest = import_packed(Path(name) / "foreign", Path(name) / "again", format)
        assert files(Path(name) / "again") == files(folder)
        assert manifest == read_manifest(folder)


@settings(max_examples=8)
@pytest.mark.parametrize("format", ["mds", "webdataset"])
@given(shards_of_rows().filter(lambda dataset: bool(dataset[1])))
def test_rows_that_say_their_documents_are_the_same_without_the_sidecar(
    format: str, dataset: tuple[Vocabulary, list[list[PackedRow]]]
) -> None:
    vocabulary, shards = dataset
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name) / "packed", vocabulary, shards)
        export_packed(folder, Path(name) / "foreign", format)
        forget(Path(name) / "foreign")
        import_packed(Path(name) / "foreign", Path(name) / "again", format, Wanted(vocabulary))
        assert rows_of(Path(name) / "again") == rows_of(folder)
        assert open_packed(Path(name) / "again").sequence_length == LENGTH


@settings(max_examples=12)
@given(shards_of_rows().filter(lambda dataset: bool(dataset[1])), st.integers(LENGTH, 3 * LENGTH), st.integers(1, 4))
def test_megatron_documents_keep_their_order_and_every_id_without_the_sidecar(
    dataset: tuple[Vocabulary, list[list[PackedRow]]], sequence_length: int, rows_per_shard: int
) -> None:
    """Whole documents in rows of another length, and exported again the very same ``.bin`` and ``.idx``."""
    vocabulary, shards = dataset
    with tempfile.TemporaryDirectory() as name:
        folder, foreign, again = (Path(name) / part for part in ("packed", "foreign", "again"))
        export_packed(write_dataset(folder, vocabulary, shards), foreign, "megatron")
        forget(foreign)
        wanted = Wanted(vocabulary, sequence_length)
        manifest = import_packed(foreign, again, "megatron", wanted, rows_per_shard=rows_per_shard)
        assert (manifest.counts["inputs"], manifest.extra["split"]) == (manifest.counts["written"], 0)
        assert {shard.num_rows for shard in manifest.shards[:-1]} <= {rows_per_shard}
        export_packed(again, Path(name) / "back", "megatron")
        assert files(foreign).items() <= files(Path(name) / "back").items()


@pytest.mark.parametrize("format", FORMATS)
def test_a_real_dataset_comes_back_whole_and_the_commands_may_be_repeated(
    format: str, packed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["export", str(packed_folder), str(tmp_path / "foreign"), "--format", format]
    back = ["import", str(tmp_path / "foreign"), str(tmp_path / "again"), "--format", format]
    assert (convert(there), convert(back)) == (0, 0)
    assert "rows           320\n" in capsys.readouterr().out
    assert files(tmp_path / "again") == files(packed_folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert (convert(there), convert(back)) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_files_of_nobody_make_a_dataset_that_verifies(packed_folder: Path, tmp_path: Path) -> None:
    """A vocabulary is all that has to be said; documents are the same, everything is trained on, fill is as written."""
    export_packed(packed_folder, tmp_path / "foreign", "megatron")
    forget(tmp_path / "foreign")
    vocabulary = str(packed_folder)
    command = ["import", str(tmp_path / "foreign"), str(tmp_path / "new"), "--format", "megatron"]
    assert convert([*command, "--vocabulary", vocabulary, "--sequence-length", "200"]) == 0
    result = verify_dataset(tmp_path / "new")
    before = verify_dataset(packed_folder)
    assert not result.faults
    assert (result.tokens, result.documents) == (before.tokens, before.documents)
    dataset = open_packed(tmp_path / "new")
    assert dataset.loss_spans(0).tolist() == [[0, int(dataset.num_tokens([0])[0])]]
    filled = int(dataset.num_tokens(np.arange(dataset.num_rows)).sum()) / (200 * dataset.num_rows)
    assert dataset.manifest.extra["fill"] == pytest.approx(filled, abs=1e-6)
    sizes = dataset.num_tokens(np.arange(dataset.num_rows)).tolist()
    starts = [[*dataset.document_starts(row).tolist(), size] for row, size in enumerate(sizes)]
    assert all(size + next_row[1] > 200 for size, next_row in zip(sizes, starts[1:], strict=False))


def test_a_long_document_is_cut_outside_its_media_and_counted(tmp_path: Path) -> None:
    image = NARROW.block("image")
    medium = [image.start_id, *range(image.first_id, image.first_id + 32), image.end_id]
    ids = [1, 5, 6, *medium, 7, 8, *medium, 9, 2]
    megatron(tmp_path / "foreign", [ids, [1, 2]])
    manifest = import_packed(tmp_path / "foreign", tmp_path / "new", "megatron", Wanted(NARROW, 39))
    dataset = open_packed(tmp_path / "new")
    rows = [dataset.gather([row])[0][: dataset.num_tokens([row])[0]].tolist() for row in range(dataset.num_rows)]
    assert rows == [[1, 5, 6, *medium, 7, 8], [*medium, 9, 2, 1, 2]]
    assert manifest.extra["split"] == 1
    assert not verify_dataset(tmp_path / "new").faults
    with pytest.raises(
        DatasetError, match=r"tokens\.bin/0: expected a place outside a medium .* found none after id 3"
    ):
        import_packed(tmp_path / "foreign", tmp_path / "narrow", "megatron", Wanted(NARROW, 30))
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_another_dataset_is_never_overwritten(format: str, packed_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years", encoding="utf-8")
    before = files(tmp_path)
    with pytest.raises(DatasetError, match="expected no such folder, or an empty one, found something else"):
        export_packed(packed_folder, tmp_path / "mine", format)
    export_packed(packed_folder, tmp_path / "foreign", format)
    other = write_dataset(tmp_path / "other", NARROW, [])
    with pytest.raises(DatasetError, match="choose another output"):
        export_packed(other, tmp_path / "foreign", format)
    with pytest.raises(DatasetError, match="choose another output"):
        import_packed(tmp_path / "foreign", other, format)
    assert {name: data for name, data in files(tmp_path).items() if name in before} == before


def test_a_killed_run_leaves_nothing_under_the_final_name_and_is_cleared(packed_folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "foreign.tmp" / "anygpt"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    (tmp_path / "foreign").mkdir()  # an empty folder is no dataset
    export_packed(packed_folder, tmp_path / "foreign", "mds")
    assert not (tmp_path / "foreign.tmp").exists()
    assert "anygpt/half" not in files(tmp_path / "foreign")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "stopped") as folder:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.glob("stopped*"))
    with new_folder(tmp_path / "busy"), pytest.raises(DatasetError, match="no other run to write there"):
        export_packed(packed_folder, tmp_path / "busy", "mds")


@pytest.mark.parametrize("format", FORMATS)
def test_foreign_files_that_are_not_those_exported_are_refused(format: str, tmp_path: Path) -> None:
    """The sidecar of one dataset beside the files of another, and rows that were changed in place."""
    for number, seed in enumerate((1, 2)):
        rows = [random_row(np.random.default_rng(seed), used=LENGTH - part) for part in range(3)]
        export_packed(write_dataset(tmp_path / f"packed{number}", NARROW, [rows]), tmp_path / f"f{number}", format)
    for path in (tmp_path / "f0").iterdir():
        if path.is_file():
            path.write_bytes((tmp_path / "f1" / path.name).read_bytes())
    with pytest.raises(DatasetError, match=r"expected rows of shard-00000\.arrow with CRC-32 .* found"):
        import_packed(tmp_path / "f0", tmp_path / "again", format)
    assert not (tmp_path / "again").exists()
    with pytest.raises(DatasetError, match="expected format"):
        import_packed(tmp_path / "f1", tmp_path / "again", next(name for name in FORMATS if name != format))


def test_a_foreign_dataset_with_rows_more_or_less_is_refused(tmp_path: Path) -> None:
    rows = [random_row(np.random.default_rng(seed)) for seed in range(4)]
    export_packed(write_dataset(tmp_path / "packed", NARROW, [rows]), tmp_path / "long", "webdataset")
    export_packed(write_dataset(tmp_path / "less", NARROW, [rows[:3]]), tmp_path / "short", "webdataset")
    long, short = ((tmp_path / name / "shard-00000.tar").read_bytes() for name in ("long", "short"))
    (tmp_path / "long" / "shard-00000.tar").write_bytes(short)
    (tmp_path / "short" / "shard-00000.tar").write_bytes(long)
    with pytest.raises(DatasetError, match="expected 4 rows, as exported, found none after 3 of shard-00000"):
        import_packed(tmp_path / "long", tmp_path / "again", "webdataset")
    with pytest.raises(DatasetError, match="expected 3 rows, as exported, found more"):
        import_packed(tmp_path / "short", tmp_path / "again", "webdataset")


def test_a_damaged_source_is_not_exported(packed_folder: Path, tmp_path: Path) -> None:
    shard = packed_folder / "shard-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ChecksumMismatch, match="shard-00001"):
        export_packed(packed_folder, tmp_path / "foreign", "megatron")
    assert not list(tmp_path.glob("foreign*"))


def test_what_is_not_said_is_asked_for(packed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    megatron(tmp_path / "foreign", [[1, 5, 2], [120, 2]])
    command = ["import", str(tmp_path / "foreign"), str(tmp_path / "new"), "--format", "megatron"]
    known = [*command, "--vocabulary", str(packed_folder / "manifest.json")]
    for arguments, said in (
        (command, "--vocabulary"),
        (known, "--sequence-length"),
        ([*known, "--sequence-length", "0"], "above 0"),
        ([*command, "--vocabulary", str(tmp_path)], "expected a packed dataset or a JSON file"),
    ):
        assert convert(arguments) == 2
        assert said in capsys.readouterr().err
    small = tmp_path / "vocabulary.json"
    small.write_text(json.dumps(Vocabulary("small", 100, {}, {}).to_json()), encoding="utf-8")
    assert read_vocabulary(small).size == 100
    assert convert([*command, "--vocabulary", str(small), "--sequence-length", "9"]) == 1
    assert "tokens.bin/1: expected ids in [0, 100) of the vocabulary small, found 2..120" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--format parquet"):
        export_packed(packed_folder, tmp_path / "out", "parquet")


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_dataset(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six times the shards take less than one and a half times the memory, there and back."""
    monkeypatch.setattr(convert_mds, "SIZE_LIMIT", 1 << 12)
    monkeypatch.setattr(convert_megatron, "CHUNK", 60)
    rows = [random_row(np.random.default_rng(seed)) for seed in range(60)]
    peaks: dict[int, list[int]] = {}
    for shards in (2, 12):
        folder = write_dataset(tmp_path / f"packed{shards}", NARROW, [rows] * shards)
        foreign, again = tmp_path / f"foreign{shards}", tmp_path / f"again{shards}"
        for run in (lambda: export_packed(folder, foreign, format), lambda: import_packed(foreign, again, format)):  # noqa: B023
            tracemalloc.start()
            run()
            peaks.setdefault(shards, []).append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert all(many < 1.5 * few for few, many in zip(peaks[2], peaks[12], strict=True)), peaks


def random_row(rng: np.random.Generator, used: int = LENGTH) -> PackedRow:
    ids = np.full(LENGTH, NARROW.pad_id, np.uint16)
    ids[:used] = rng.integers(0, NARROW.size, used)
    return PackedRow(ids, used, (0, used // 2), ((1, used),))


def megatron(folder: Path, documents: list[list[int]]) -> None:
    """Documents as Megatron has them, by way of rows that hold one each."""
    length = max(len(document) for document in documents)
    ids = [np.array(document + [NARROW.pad_id] * (length - len(document)), np.uint16) for document in documents]
    rows = [PackedRow(row, len(document), (0,), ()) for row, document in zip(ids, documents, strict=True)]
    source = folder.with_name("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fixtures.random_packed.LENGTH", length)
        write_dataset(source, NARROW, [rows])
    export_packed(source, folder, "megatron")
    forget(folder)


def forget(folder: Path) -> None:
    """Make the files anybody's."""
    for path in (folder / "anygpt").iterdir():
        path.unlink()
    (folder / "anygpt").rmdir()


def rows_of(folder: Path) -> list[tuple[list[int], int, list[int], list[list[int]]]]:
    dataset = open_packed(folder)
    return [
        (
            dataset.gather([row])[0].tolist(),
            int(dataset.num_tokens([row])[0]),
            dataset.document_starts(row).tolist(),
            dataset.loss_spans(row).tolist(),
        )
        for row in range(dataset.num_rows)
    ]
