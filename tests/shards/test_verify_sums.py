"""What a manifest says of its dataset as a whole is compared with what is there; nothing is said of a sound one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.left_out import FILTERED_NAME, REJECT_SCHEMA, REJECTS_NAME
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.modality import Modality
from shards.packed import PackedRow, sidecar_path, write_packed_shard
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.verify import verify_dataset
from shards.vocabulary import Vocabulary
from shards.writer import commit_table, file_sha256


def _rejects(*reasons: str) -> pa.Table:
    rows = [
        {name: reason if name == "reason" else 0 if name == "offset" else "x" for name in REJECT_SCHEMA.names}
        for reason in reasons
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def _samples(folder: Path, ids: list[list[str]], **counts: Any) -> Path:
    entries = []
    for number, names in enumerate(ids):
        codes = np.arange(300 * 8, dtype=np.uint16).reshape(300, 8) % 1024
        speech = Segment("speech", Modality.SPEECH, codes=codes, duration_s=6.0)
        samples = [TokenizedSample(name, "c", "train", (speech,), Provenance("f")) for name in names]
        path = folder / f"unit-{number:06d}.parquet"
        sha256 = commit_table(path, samples_to_table(samples))
        tokens = {"speech": 300 * len(samples)}
        entries.append(ShardEntry(path.name, len(samples), path.stat().st_size, sha256, tokens))
    write_manifest(folder, Manifest("samples", "c", "f", tuple(entries), FORMAT_VERSION, counts=counts))
    return folder


def _edit(folder: Path, **changes: Any) -> None:
    write_manifest(folder, replace(read_manifest(folder), **changes))


def _faults(folder: Path) -> list[str]:
    return [str(fault) for fault in verify_dataset(folder).faults]


def test_the_left_out_are_listed_as_often_as_they_are_counted(tmp_path: Path) -> None:
    counts = {"inputs": 7, "written": 2, "filtered": {"unsafe": 1, "removed": 1}, "rejected": {"truncated": 3}}
    folder = _samples(tmp_path, [["a", "b"]], **counts)
    assert _faults(folder) == [
        "rejects.parquet: the manifest says {'truncated': 3} rejected, the list of them is missing",
        "filtered.parquet: the manifest says {'removed': 1, 'unsafe': 1} filtered, the list of them is missing",
    ]
    commit_table(folder / REJECTS_NAME, _rejects("truncated", "truncated", "truncated"))
    commit_table(folder / FILTERED_NAME, _rejects("removed", "unsafe"))
    assert _faults(folder) == []
    commit_table(folder / REJECTS_NAME, _rejects("truncated", "truncated"))
    (folder / FILTERED_NAME).write_bytes(b"PAR1")
    first, second = _faults(folder)
    assert first == "rejects.parquet: the manifest says {'truncated': 3} rejected, it lists {'truncated': 2}"
    assert second.startswith("filtered.parquet: cannot be read: ")


def test_written_is_what_the_shards_hold_and_tokens_are_their_frames(tmp_path: Path) -> None:
    folder = _samples(tmp_path, [["a", "b"], ["c"]], inputs=4, written=4, filtered={}, rejected={})
    assert _faults(folder) == ["manifest.json: written 4 samples, the shards hold 3"]
    manifest = read_manifest(folder)
    first, second = manifest.shards
    counts = {"inputs": 3, "written": 3, "filtered": {}, "rejected": {}}
    _edit(folder, counts=counts, shards=(replace(first, tokens={"speech": 599}), second))
    assert _faults(folder) == [
        "unit-000000.parquet: the manifest says {'speech': 599} tokens, it holds frames {'speech': 600}"
    ]


def test_ids_seen_before_are_named_in_every_later_shard(tmp_path: Path) -> None:
    folder = _samples(tmp_path, [["a", "b"], ["c", "a", "b"], ["d"], ["c", "c"]])
    assert _faults(folder) == [
        "unit-000001.parquet: rows 1..2: sample ids that are there twice",
        "unit-000003.parquet: rows 0..1: sample ids that are there twice",
    ]


def test_a_shard_named_twice_is_found(packed_folder: Path) -> None:
    manifest = read_manifest(packed_folder)
    _edit(packed_folder, shards=(*manifest.shards, manifest.shards[1]))
    assert _faults(packed_folder) == ["shard-00001.arrow: the manifest names it 2 times"]


def test_tokens_by_source_and_direction_are_those_of_the_sidecars(packed_folder: Path) -> None:
    manifest = read_manifest(packed_folder)
    num_tokens = sum(manifest.tokens.values())
    sums = {"sources": {"test": num_tokens, "empty": 0}, "tokens_by_direction": {"text_to_image": num_tokens}}
    _edit(packed_folder, extra={**manifest.extra, **sums})
    assert _faults(packed_folder) == []
    wrong = {"sources": {"other": num_tokens}, "tokens_by_direction": {"text_to_image": num_tokens - 1}}
    _edit(packed_folder, extra={**manifest.extra, **wrong})
    assert _faults(packed_folder) == [
        f"manifest.json: sources says {{'other': {num_tokens}}} tokens, the sidecars hold {{'test': {num_tokens}}}",
        f"manifest.json: tokens_by_direction says {{'text_to_image': {num_tokens - 1}}} tokens, the sidecars hold "
        f"{{'text_to_image': {num_tokens}}}",
    ]


def test_a_sidecar_the_manifest_has_no_checksum_of_is_found(packed_folder: Path) -> None:
    manifest = read_manifest(packed_folder)
    sidecars = dict(manifest.extra["sidecars"])
    del sidecars["shard-00000.samples.parquet"]
    _edit(packed_folder, extra={**manifest.extra, "sidecars": sidecars})
    assert _faults(packed_folder) == [
        "shard-00000.samples.parquet: the manifest does not name its checksum; pack it again"
    ]


def test_documents_out_of_order_in_a_sidecar_name_their_rows(packed_folder: Path) -> None:
    path = sidecar_path(packed_folder / "shard-00001.arrow")
    table = pq.read_table(path)
    positions = np.array(table["position"].to_pylist(), np.int32)
    positions[0] += 1
    column = table.schema.get_field_index("position")
    commit_table(path, table.set_column(column, table.schema.field("position"), pa.array(positions)))
    manifest = read_manifest(packed_folder)
    sidecars = {**manifest.extra["sidecars"], path.name: file_sha256(path)}
    _edit(packed_folder, extra={**manifest.extra, "sidecars": sidecars})
    assert _faults(packed_folder) == [f"{path.name}: rows 0: its positions do not count the documents of a row"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda row: {"document_starts": (0, row.num_tokens)}, "document starts are not ascending from 0"),
        (lambda row: {"document_starts": (1,)}, "document starts are not ascending from 0"),
        (lambda row: {"document_starts": ()}, "document starts are not ascending from 0"),
        (lambda row: {"loss_spans": ((4, 3),)}, "loss spans are not ascending"),
        (lambda row: {"loss_spans": ((0, 96),)}, "loss spans are not ascending"),
        (lambda row: {"num_tokens": row.num_tokens - 1, "loss_spans": ()}, "ids after num_tokens are not padding"),
        (lambda row: {"num_tokens": 0}, "num_tokens outside [1, 96]"),
        (lambda row: {"token_ids": np.append(row.token_ids[:-1], 65_000)}, "ids outside [0, "),
    ],
)
def test_rows_that_no_writer_of_ours_writes_are_named(
    tmp_path: Path,
    vocabulary: Vocabulary,
    make_row: Callable[..., PackedRow],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[PackedRow], dict[str, Any]],
    expected: str,
) -> None:
    # Our writer refuses such rows; another program's does not.
    monkeypatch.setattr("shards.packed._check_row", lambda *_: None)
    monkeypatch.setattr("shards.packed.count_tokens", lambda *_: {})
    rng = np.random.default_rng(1)
    rows = [make_row(rng, f"s{number}") for number in range(40)]
    rows[33] = replace(rows[33], **change(rows[33]))
    path = tmp_path / "shard-00000.arrow"
    entry = write_packed_shard(path, rows, vocabulary=vocabulary, sequence_length=96)
    extra = {"sequence_length": 96}
    write_manifest(tmp_path, Manifest("packed", "t", "f", (entry,), 1, vocabulary=vocabulary, extra=extra))
    of_rows = [fault for fault in verify_dataset(tmp_path).faults if fault.path == path.name and fault.rows]
    assert [fault.rows for fault in of_rows] == [(33,)]
    assert of_rows[0].what.startswith(expected)
