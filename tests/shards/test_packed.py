"""Packed shards: what is written is read, by this code and by any Arrow reader, and damage never goes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import ChecksumMismatch, DatasetError, FingerprintMismatch
from shards.manifest import MANIFEST_NAME, read_manifest, write_manifest
from shards.open_shard import open_shard
from shards.packed import METADATA_KEY, PackedRow, Placement, sidecar_path, write_packed_shard
from shards.reader import open_packed, same_vocabulary
from shards.vocabulary import Vocabulary, lay_out

MakeRow = Callable[[np.random.Generator, str], PackedRow]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_what_is_written_is_read_and_written_again_is_the_same_bytes(
    tmp_path: Path, vocabulary: Vocabulary, make_row: MakeRow, seed: int, num_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = [make_row(rng, f"s{number}") for number in range(num_rows)]
    path = tmp_path / "shard.arrow"
    entry = write_packed_shard(path, rows, vocabulary=vocabulary, sequence_length=96)
    written = path.read_bytes()
    shard = open_shard(path)
    found = [_read_row(shard, number, pq.read_table(sidecar_path(path)).to_pylist()) for number in range(num_rows)]
    for before, after in zip(rows, found, strict=True):
        assert np.array_equal(before.token_ids, after.token_ids)
        assert replace(before, token_ids=after.token_ids) == after
    assert write_packed_shard(path, found, vocabulary=vocabulary, sequence_length=96) == entry
    assert path.read_bytes() == written
    assert sum(entry.tokens.values()) == sum(row.num_tokens for row in rows)


def _read_row(shard, row: int, sidecar: list[dict]) -> PackedRow:
    spans = shard.spans[shard.span_offsets[row] : shard.span_offsets[row + 1]]
    placements = [
        Placement(**{key: value for key, value in record.items() if key not in ("row", "position")})
        for record in sidecar
        if record["row"] == row
    ]
    return PackedRow(
        shard.token_ids[row],
        int(shard.num_tokens[row]),
        tuple(shard.starts[shard.start_offsets[row] : shard.start_offsets[row + 1]].tolist()),
        tuple((begin, end) for begin, end in spans.tolist()),
        tuple(placements),
    )


def test_pyarrow_duckdb_and_polars_read_a_shard_without_this_project(packed_folder: Path) -> None:
    """As FORMAT.md says, from the file alone."""
    dataset = open_packed(packed_folder)
    path = packed_folder / "shard-00001.arrow"
    expected = dataset.gather(np.arange(300, 320))

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert np.array_equal(np.array(table.column("token_ids").to_pylist()), expected)

    frame = pl.read_ipc(path)
    assert np.array_equal(np.array(frame["token_ids"].to_list()), expected)
    assert frame["document_starts"].to_list()[3] == dataset.document_starts(303).tolist()

    found = _duckdb("select max(num_tokens), sum(len(document_starts)) from shard", shard=table)
    assert found == (
        int(dataset.num_tokens(np.arange(300, 320)).max()),
        sum(len(dataset.document_starts(row)) for row in range(300, 320)),
    )
    sidecar = sidecar_path(path)
    counted = _duckdb(f"select count(*), count(distinct sample_id) from read_parquet('{sidecar}')")
    assert counted == (found[1], found[1])
    ids = pl.read_parquet(sidecar)["sample_id"].to_list()
    assert ids == pq.read_table(sidecar)["sample_id"].to_pylist()


def _duckdb(query: str, **tables: pa.Table) -> tuple[int, ...]:
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    return connection.execute(query).fetchall()[0]


def test_rows_are_gathered_in_the_order_asked_for_over_all_shards(packed_folder: Path) -> None:
    dataset = open_packed(packed_folder)
    whole = np.concatenate([dataset.token_view(number) for number in range(dataset.num_shards)])
    wanted = np.random.default_rng(0).integers(0, dataset.num_rows, 64)
    assert dataset.num_rows == 320
    assert np.array_equal(dataset.gather(wanted), whole[wanted])
    wide = np.empty((64, dataset.sequence_length), np.int64)
    assert dataset.gather(wanted, wide) is wide
    assert np.array_equal(wide, whole[wanted])
    left, right = np.arange(0, 64, 2), np.arange(1, 64, 2)
    for places in (right, left):
        dataset.gather(wanted[places], wide, places=places)
    assert np.array_equal(wide, whole[wanted])
    with pytest.raises(IndexError, match=r"expected rows in \[0, 320\)"):
        dataset.gather([320])
    with pytest.raises(ValueError, match="buffer of shape"):
        dataset.gather([1, 2], np.empty((1, 96), np.uint16))


def test_a_shard_is_viewed_and_not_copied(packed_folder: Path) -> None:
    view = open_packed(packed_folder).token_view(0)
    assert view.shape == (300, 96)
    assert view.dtype == np.uint16
    assert not view.flags.owndata
    assert not view.flags.writeable


def test_reading_imports_no_pandas(packed_folder: Path, repository: Path) -> None:
    """pyarrow's to_numpy imports pandas at its first call, 1.5 seconds in every trainer process."""
    script = (
        "import sys; from pathlib import Path; from shards.reader import open_packed; "
        f"d = open_packed(Path({str(packed_folder)!r})); "
        "d.gather([0, 310]); d.num_tokens([1]); d.document_starts(2); d.loss_spans(3); "
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=repository, check=False).returncode == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_single_flipped_byte_is_noticed(packed_folder: Path, data: st.DataObject) -> None:
    path = packed_folder / "shard-00001.arrow"
    whole = path.read_bytes()
    # What decides how a file is read is in its first and last bytes.
    edges = st.integers(0, 2000) | st.integers(len(whole) - 2000, len(whole) - 1)
    at = data.draw(edges | st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        with pytest.raises(ChecksumMismatch, match=r"shard-00001\.arrow.*copy it again"):
            open_packed(packed_folder).gather(range(300, 320))
    finally:
        path.write_bytes(whole)


def test_damage_names_the_rows_and_off_means_off(packed_folder: Path) -> None:
    path = packed_folder / "shard-00000.arrow"
    dataset = open_packed(packed_folder)
    offset = path.read_bytes().index(dataset.token_view(0)[280].tobytes())
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ChecksumMismatch, match=r"damaged rows: 272\.\.287"):
        open_packed(packed_folder, verify="open")
    lazily = open_packed(packed_folder)
    lazily.gather([0, 271, 288, 310])  # blocks of rows that are whole
    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match=r"shard-00000\.arrow: damaged rows 272\.\.287 \(block 17\)"):
            lazily.gather([287])
    with pytest.raises(ChecksumMismatch, match=r"272\.\.287"):
        lazily.token_view(0)
    assert open_packed(packed_folder, verify="off").gather([280]).shape == (1, 96)


def test_a_shard_without_a_checksum_of_its_rest_is_compared_whole(packed_folder: Path) -> None:
    """Datasets that were packed before manifests had ``rest_crc32``."""
    path = packed_folder / MANIFEST_NAME
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        del shard["rest_crc32"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert open_packed(packed_folder).gather([0]).shape == (1, 96)
    shard = packed_folder / "shard-00000.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[shard.read_bytes().index(open_packed(packed_folder).token_view(0)[280].tobytes())] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(ChecksumMismatch, match=r"damaged rows: 272\.\.287"):
        open_packed(packed_folder).gather([0])


def test_a_cut_or_missing_shard_is_named(packed_folder: Path) -> None:
    path = packed_folder / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ChecksumMismatch, match=r"shard-00001\.arrow: expected .* bytes"):
        open_packed(packed_folder, verify="off").gather([300])
    path.unlink()
    with pytest.raises(DatasetError, match="named in the manifest and not there"):
        open_packed(packed_folder, verify="off").gather([300])


def test_an_unknown_format_version_is_refused(packed_folder: Path) -> None:
    path = packed_folder / "shard-00001.arrow"
    table = pa.ipc.open_file(path).read_all()
    header = json.loads(table.schema.metadata[METADATA_KEY]) | {"format_version": 99}
    newer = table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()})
    with pa.ipc.new_file(str(path), newer.schema) as writer:
        writer.write_table(newer)
    with pytest.raises(DatasetError, match="expected packed format version 1, found 99"):
        open_shard(path)
    manifest = read_manifest(packed_folder)
    write_manifest(packed_folder, replace(manifest, format_version=99))
    with pytest.raises(DatasetError, match="found 99; pack it again"):
        open_packed(packed_folder)


def test_a_file_that_is_no_packed_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.arrow"
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DatasetError, match="expected a packed shard"):
        open_shard(path)
    path.write_bytes(b"ARROW1 and nothing else")
    with pytest.raises(DatasetError, match="expected a packed shard"):
        open_shard(path)


def test_a_shard_of_another_vocabulary_is_refused(packed_folder: Path, vocabulary: Vocabulary) -> None:
    other = replace(vocabulary, text_fingerprint="another")
    write_manifest(packed_folder, replace(read_manifest(packed_folder), vocabulary=other))
    with pytest.raises(FingerprintMismatch, match=r"shard-00000\.arrow: written with vocabulary"):
        open_packed(packed_folder).gather([0])


def test_datasets_of_one_mixture_share_their_vocabulary(packed_folder: Path, vocabulary: Vocabulary) -> None:
    dataset = open_packed(packed_folder)
    assert same_vocabulary({"a": dataset, "b": dataset}) == vocabulary
    manifest = replace(dataset.manifest, vocabulary=replace(vocabulary, text_fingerprint="another"))
    write_manifest(packed_folder, manifest)
    with pytest.raises(FingerprintMismatch, match="b is packed with vocabulary test"):
        same_vocabulary({"a": dataset, "b": open_packed(packed_folder)})


def test_sample_shards_cannot_be_trained_on(packed_folder: Path) -> None:
    manifest = json.loads((packed_folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    (packed_folder / MANIFEST_NAME).write_text(json.dumps(manifest | {"kind": "samples"}), encoding="utf-8")
    with pytest.raises(DatasetError, match="expected packed shards, found a dataset of kind 'samples'; pack it first"):
        open_packed(packed_folder)


def test_ids_are_stored_wide_when_the_vocabulary_needs_it(tmp_path: Path) -> None:
    vocabulary = lay_out("wide", text_size=70_000, markers=[], media=[])
    row = PackedRow(np.array([1, 69_999, 2, 0]), 3, (0,), ((0, 3),), (Placement("a", "d", 0, "x", 0, 3),))
    write_packed_shard(tmp_path / "wide.arrow", [row], vocabulary=vocabulary, sequence_length=4)
    shard = open_shard(tmp_path / "wide.arrow")
    assert shard.token_ids.dtype == np.uint32
    assert shard.token_ids.tolist() == [[1, 69_999, 2, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": np.zeros(95, int)}, "expected 96 ids"),
        ({"num_tokens": 97}, "num_tokens in"),
        ({"num_tokens": 1}, "expected padding"),
        ({"token_ids": np.full(96, 60_000)}, "expected ids in"),
        ({"document_starts": (1,)}, "document starts"),
        ({"loss_spans": ((3, 2),)}, "loss spans"),
        ({"loss_spans": ((1, 3), (3, 5))}, "loss spans"),
    ],
)
def test_a_row_that_breaks_the_format_is_not_written(
    tmp_path: Path, vocabulary: Vocabulary, make_row: MakeRow, change: dict, message: str
) -> None:
    row = replace(make_row(np.random.default_rng(1), "s"), **change)
    with pytest.raises(DatasetError, match=message):
        write_packed_shard(tmp_path / "s.arrow", [row], vocabulary=vocabulary, sequence_length=96)
    assert not list(tmp_path.iterdir())
