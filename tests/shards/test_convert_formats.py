"""Foreign bytes are what their formats say: read here by small readers written from the formats' descriptions alone.

And the other way: files as other programs write them are read; damaged ones are in ``test_convert_damaged``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import convert_mds
from shards.convert_packed import Wanted, export_packed, import_packed
from shards.errors import DatasetError
from shards.packed import PackedRow
from shards.reader import open_packed
from shards.vocabulary import Vocabulary
from tests.fixtures.random_packed import NARROW, shards_of_rows, write_dataset

Dataset = tuple[Vocabulary, list[list[PackedRow]]]


def exported(root: Path, dataset: Dataset, format: str) -> Path:
    export_packed(write_dataset(root / "packed", *dataset), root / "foreign", format)
    return root / "foreign"


@settings(max_examples=12)
@given(shards_of_rows())
def test_megatron_bytes_are_those_of_the_format(dataset: Dataset) -> None:
    """Magic, version 1, type, counts, sizes, pointers, document index; one sequence per document, no padding."""
    rows = [row for shard in dataset[1] for row in shard]
    documents = [
        row.token_ids[start:stop].tolist()
        for row in rows
        for start, stop in zip(row.document_starts, [*row.document_starts[1:], row.num_tokens], strict=True)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = exported(Path(name), dataset, "megatron")
        index, ids = (folder / "tokens.idx").read_bytes(), (folder / "tokens.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, count, entries = struct.unpack_from("<QBQQ", index, 9)
    assert (version, code, count, entries) == (1, 8 if dataset[0] is NARROW else 4, len(documents), len(documents) + 1)
    item, letter = (2, "H") if code == 8 else (4, "i")
    sizes = struct.unpack_from(f"<{count}i", index, 34)
    pointers = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    document_index = struct.unpack_from(f"<{entries}q", index, 34 + 12 * count)
    assert len(index) == 34 + 12 * count + 8 * entries
    assert document_index == tuple(range(count + 1))
    assert pointers == tuple(item * sum(sizes[:number]) for number in range(count))
    assert [
        list(struct.unpack_from(f"<{n}{letter}", ids, at)) for n, at in zip(sizes, pointers, strict=True)
    ] == documents
    assert len(ids) == item * sum(sizes)


@settings(max_examples=12)
@given(shards_of_rows(), st.integers(600, 2000))
def test_mds_bytes_are_those_of_the_format(dataset: Dataset, size_limit: int) -> None:
    """Index, shard header and samples; shards stay below their limit, and every sample is found by its offset."""
    rows = [row for shard in dataset[1] for row in shard]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_mds, "SIZE_LIMIT", size_limit)
        folder = exported(Path(name), dataset, "mds")
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        assert (index["version"], set(index)) == (2, {"version", "shards"})
        for number, entry in enumerate(index["shards"]):
            data = (folder / entry["raw_data"]["basename"]).read_bytes()
            assert entry["raw_data"]["basename"] == f"shard.{number:05d}.mds"
            assert entry["raw_data"]["hashes"] == {"sha256": hashlib.sha256(data).hexdigest()}
            assert len(data) == entry["raw_data"]["bytes"]
            assert len(data) <= size_limit or entry["samples"] == 1
            assert (entry["version"], entry["format"], entry["compression"], entry["zip_data"]) == (
                2,
                "mds",
                None,
                None,
            )
            found += mds_samples(data, entry)
    for row, sample in zip(rows, found, strict=True):
        assert sample["tokens"].dtype == dataset[0].dtype
        assert sample["tokens"].tolist() == row.token_ids.tolist()
        assert int(sample["num_tokens"]) == row.num_tokens
        assert sample["document_starts"].tolist() == list(row.document_starts)
        assert np.frombuffer(sample["loss_spans"], np.int32).reshape(-1, 2).tolist() == [
            list(s) for s in row.loss_spans
        ]


def mds_samples(data: bytes, entry: dict[str, Any]) -> list[dict[str, Any]]:
    count = struct.unpack_from("<I", data)[0]
    assert count == entry["samples"]
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    config = json.loads(data[4 * (count + 2) : offsets[0]])
    assert config == {key: value for key, value in entry.items() if key not in ("raw_data", "samples", "zip_data")}
    assert entry["column_names"] == sorted(entry["column_names"])
    return [mds_sample(data[a:b], entry) for a, b in pairwise(offsets)]


def mds_sample(data: bytes, entry: dict[str, Any]) -> dict[str, Any]:
    sizes, at = [], 0
    for size in entry["column_sizes"]:
        if not size:
            size, at = struct.unpack_from("<I", data, at)[0], at + 4
        sizes.append(size)
    sample: dict[str, Any] = {}
    for name, encoding, size in zip(entry["column_names"], entry["column_encodings"], sizes, strict=True):
        sample[name] = mds_value(encoding, data[at : at + size])
        at += size
    assert at == len(data)
    return sample


def mds_value(encoding: str, data: bytes) -> Any:
    kind, *options = encoding.split(":")
    if kind != "ndarray":
        return data if kind == "bytes" else np.frombuffer(data, kind)[0]
    if len(options) == 2:
        return np.frombuffer(data, options[0]).reshape([int(axis) for axis in options[1].split(",")])
    axes, width = data[0] >> 2, 1 << data[0] % 4
    shape = [int.from_bytes(data[1 + width * n : 1 + width * (n + 1)], "little") for n in range(axes)]
    return np.frombuffer(data[1 + width * axes :], options[0]).reshape(shape)


@settings(max_examples=8)
@given(shards_of_rows())
def test_tars_are_those_of_the_conventions(dataset: Dataset) -> None:
    """Keys are the rows' numbers; the library that the format is named after reads the same."""
    webdataset = pytest.importorskip("webdataset")
    rows = [row for shard in dataset[1] for row in shard]
    with tempfile.TemporaryDirectory() as name:
        paths = sorted(exported(Path(name), dataset, "webdataset").glob("*.tar"))
        members = [member for path in paths for member in tar_members(path)]
        urls = [str(path) for path in paths]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()) if urls else []
    assert [name for name, _ in members] == [f"{n:09d}.{kind}" for n in range(len(rows)) for kind in ("json", "npy")]
    for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        array = np.load(io.BytesIO(members[2 * number + 1][1]), allow_pickle=False)
        facts = json.loads(members[2 * number][1])
        assert (array.dtype, array.tolist()) == (dataset[0].dtype, row.token_ids.tolist())
        assert facts == {
            "document_starts": list(row.document_starts),
            "loss_spans": [list(span) for span in row.loss_spans],
            "num_tokens": row.num_tokens,
        }
        assert sample["__key__"] == f"{number:09d}"
        assert sample["npy"].tolist() == row.token_ids.tolist()
        assert sample["json"] == facts


def tar_members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
        assert {(info.mtime, info.uid, info.uname) for info in infos} == {(0, 0, "")}
        return [(info.name, tar.extractfile(info).read()) for info in infos]


@pytest.mark.parametrize(("code", "dtype"), [(1, "<u1"), (2, "<i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_megatron_files_of_any_integer_type_are_read_sentences_joined(tmp_path: Path, code: int, dtype: str) -> None:
    """Documents of several sequences, of none, sequences in any order in the file, modes, and several prefixes."""
    sequences = [[1, 2], [3], [4, 5, 6], [7]]
    stored = np.array([7, 4, 5, 6, 1, 2, 3], dtype)
    item = stored.dtype.itemsize
    places = [4 * item, 6 * item, 1 * item, 0]
    write_megatron(tmp_path / "in" / "a", code, stored, sequences, places, [0, 2, 2, 4], modes=True)
    write_megatron(tmp_path / "in" / "b", code, stored[:1], [[7]], [0], [0, 1])
    manifest = import_packed(tmp_path / "in", tmp_path / "out", "megatron", Wanted(NARROW, 4))
    dataset = open_packed(tmp_path / "out")
    assert dataset.gather([0, 1]).tolist() == [[1, 2, 3, 3], [4, 5, 6, 7]]
    assert dataset.num_tokens([0, 1, 2]).tolist() == [3, 4, 1]
    assert manifest.counts == {"inputs": 4, "written": 3, "filtered": {"empty": 1}, "rejected": {}}
    for source in (tmp_path / "in" / "b", tmp_path / "in" / "b.idx"):
        alone = import_packed(source, tmp_path / f"alone{source.suffix}", "megatron", Wanted(NARROW, 4))
        assert alone.tokens == {"text": 1}


def write_megatron(
    prefix: Path,
    code: int,
    ids: Any,
    sequences: list[list[int]],
    places: list[int],
    documents: list[int],
    modes: bool = False,
) -> None:
    prefix.parent.mkdir(exist_ok=True)
    prefix.with_suffix(".bin").write_bytes(ids.tobytes())
    count = len(sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, count, len(documents))
    index += struct.pack(f"<{count}i", *map(len, sequences)) + struct.pack(f"<{count}q", *places)
    index += struct.pack(f"<{len(documents)}q", *documents) + bytes(count if modes else 0)
    prefix.with_suffix(".idx").write_bytes(index)


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("ndarray:uint16:4", lambda ids: np.array(ids, "<u2").tobytes()),
        ("ndarray:int64", lambda ids: bytes([1 << 2, len(ids)]) + np.array(ids, "<i8").tobytes()),
        ("ndarray:uint32:2,2", lambda ids: np.array(ids, "<u4").tobytes()),
        ("ndarray", lambda ids: bytes([33, 1 << 2 | 1, len(ids), 0]) + np.array(ids, "<i4").tobytes()),
        ("bytes", lambda ids: np.array(ids, "<i8").tobytes()),
    ],
)
@pytest.mark.parametrize("compression", [None, "zstd:7", "gz"])
def test_mds_columns_as_others_write_them_are_read(
    tmp_path: Path, encoding: str, encode: Callable[[list[int]], bytes], compression: str | None
) -> None:
    rows = [[1, 5, 6, 2], [1, 7, 8, 2]]
    write_mds(tmp_path / "in", "input_ids", encoding, [encode(row) for row in rows], compression)
    import_packed(tmp_path / "in", tmp_path / "out", "mds", Wanted(NARROW))
    dataset = open_packed(tmp_path / "out")
    assert dataset.gather([0, 1]).tolist() == rows
    assert dataset.loss_spans(1).tolist() == [[0, 4]]
    names = pq.read_table(tmp_path / "out" / "shard-00000.samples.parquet")["sample_id"].to_pylist()
    assert [name.rpartition("/")[2] for name in names] == ["0", "1"]


def write_mds(folder: Path, column: str, encoding: str, samples: list[bytes], compression: str | None = None) -> None:
    """One shard with a text column beside the ids, its sizes written when they are not fixed, as the library does."""
    folder.mkdir()
    fixed = len(samples[0]) if encoding.count(":") == 2 else None
    facts = {"column_names": [column, "text"], "column_encodings": [encoding, "str"], "column_sizes": [fixed, None]}
    facts |= {"compression": compression, "format": "mds", "hashes": [], "size_limit": 1 << 26, "version": 2}
    bodies = []
    for sample in samples:
        sizes = [4] if fixed else [len(sample), 4]
        bodies.append(struct.pack(f"<{len(sizes)}I", *sizes) + sample + b"text")
    config = json.dumps(facts).encode()
    offsets = np.cumsum([4 * (len(samples) + 2) + len(config), *map(len, bodies)])
    data = struct.pack(f"<{len(samples) + 2}I", len(samples), *offsets) + config + b"".join(bodies)
    entry = facts | {"samples": len(samples), "zip_data": None}
    entry["raw_data"] = {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {"xxh64": "0" * 16}}
    if compression:
        data = gzip.compress(data) if compression == "gz" else pa.compress(data, "zstd", asbytes=True)
        entry["zip_data"] = {"basename": f"shard.00000.mds.{compression[:4]}", "bytes": len(data)}
        entry["zip_data"]["hashes"] = {"sha1": hashlib.sha1(data).hexdigest()}
    (folder / (entry["zip_data"] or entry["raw_data"])["basename"]).write_bytes(data)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}), encoding="utf-8")


def test_tars_as_others_write_them_are_read(tmp_path: Path) -> None:
    """Written by the library itself: other members, other names, documents in place of rows."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "in").mkdir()
    with webdataset.TarWriter(str(tmp_path / "in" / "a.tar")) as writer:
        writer.write({"__key__": "x/one", "txt": "a", "input_ids.npy": np.array([1, 5, 2]), "mask.npy": np.ones(3)})
        writer.write({"__key__": "x/two", "json": {}, "input_ids.npy": np.array([1, 6, 2]), "mask.npy": np.ones(3)})
    with pytest.raises(DatasetError, match=r"a\.tar/x/one: expected one member \.npy .*--column"):
        import_packed(tmp_path / "in", tmp_path / "out", "webdataset", Wanted(NARROW, 6))
    import_packed(tmp_path / "in", tmp_path / "out", "webdataset", Wanted(NARROW, 6, "input_ids.npy"))
    dataset = open_packed(tmp_path / "out")
    assert dataset.gather([0]).tolist() == [[1, 5, 2, 1, 6, 2]]
    assert dataset.document_starts(0).tolist() == [0, 3]
    with pytest.raises(DatasetError, match=r"x/one: expected token ids in \.mask\.npy .* an array of float64"):
        import_packed(tmp_path / "in", tmp_path / "no", "webdataset", Wanted(NARROW, 6, "mask.npy"))
