"""Foreign bytes are what their formats say: read here by small readers written from the formats' descriptions alone.

And the other way: files as other programs write them are read, and damaged ones are named.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
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
from shards.convert_packed import FORMATS, Wanted, export_packed, import_packed
from shards.errors import ChecksumMismatch, DatasetError
from shards.manifest import fingerprint
from shards.packed import PackedRow
from shards.reader import open_packed
from shards.vocabulary import Vocabulary
from tests.fixtures.random_packed import LENGTH, NARROW, WIDE, files, shards_of_rows, write_dataset

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


@pytest.fixture(params=FORMATS)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Twenty rows of 32-bit ids in each format."""
    rng = np.random.default_rng(3)
    rows = [PackedRow(rng.integers(0, WIDE.size, LENGTH), LENGTH, (0, 5), ((1, LENGTH),)) for _ in range(20)]
    return request.param, exported(tmp_path, (WIDE, [rows]), request.param)


@pytest.mark.parametrize("known", [True, False])
def test_a_file_cut_anywhere_is_named(foreign: tuple[str, Path], known: bool, tmp_path: Path) -> None:
    """With the sidecar and without it, at every place that could look like an end."""
    format, folder = foreign
    if not known:
        (folder / "anygpt").rename(tmp_path / "elsewhere")
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        whole = path.read_bytes()
        # Blocks of a tar, the last id, the header's end, all but everything.
        for size in {0, 5, 33, 34, 512, 1536, 2048, len(whole) // 2 // 512 * 512, len(whole) - 4, len(whole) - 1}:
            # A tar is padded after its end: what is cut there is not missed.
            if size < len(whole) and (path.suffix != ".tar" or size < len(whole) // 2 + 1):
                path.write_bytes(whole[:size])
                with pytest.raises(DatasetError, match=r"expected.*found"):
                    import_packed(folder, tmp_path / "again", format, Wanted(WIDE, LENGTH))
                assert not (tmp_path / "again").exists()
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """One dataset in every format, and the dataset."""
    rows = [PackedRow(np.arange(n, n + LENGTH), LENGTH, (0, 5), ((1, LENGTH),)) for n in range(4)]
    roots = {format: tmp_path_factory.mktemp(format) for format in FORMATS}
    return {format: (exported(root, (NARROW, [rows]), format), root / "packed") for format, root in roots.items()}


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_byte_of_an_export_is_noticed_or_without_meaning(
    exports: dict[str, tuple[Path, Path]], data: st.DataObject
) -> None:
    """Never another dataset, and never another error than ours."""
    format = data.draw(st.sampled_from(sorted(FORMATS)))
    folder, packed = exports[format]
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        with tempfile.TemporaryDirectory() as name:
            try:
                import_packed(folder, Path(name) / "again", format)
            except DatasetError:
                return
            assert files(Path(name) / "again") == files(packed)
    finally:
        path.write_bytes(whole)


@settings(max_examples=60)
@given(st.data())
def test_a_flipped_byte_of_anybodys_files_gives_rows_of_the_vocabulary_or_our_error(
    exports: dict[str, tuple[Path, Path]], data: st.DataObject
) -> None:
    format = data.draw(st.sampled_from(sorted(FORMATS)))
    folder, _ = exports[format]
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.is_file())))
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder, Path(name) / "in", ignore=shutil.ignore_patterns("anygpt"))
        (Path(name) / "in" / path.name).write_bytes(damaged)
        if format == "mds":  # or its hash would notice everything
            index = Path(name) / "in" / "index.json"
            index.write_text(index.read_text(encoding="utf-8", errors="replace").replace("sha256", "xxh64"))
        try:
            import_packed(Path(name) / "in", Path(name) / "out", format, Wanted(NARROW, LENGTH))
        except DatasetError:
            return
        assert int(open_packed(Path(name) / "out").token_view(0).max()) < NARROW.size


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (0, b"NOTANIDX!", "expected the magic"),
        (9, b"\x02", "expected version 1 of the index, found 2"),
        (17, b"\x06", "expected ids of an integer type .* found type 6"),
        (18, b"\x29", "for 41 sequences and 41 document entries"),
        (34, b"\xff\xff\xff\xff", "sequence 0: expected a length"),
        (34, b"\xff\xff\xff\x0f", r"tokens\.bin: expected at least .* the file is cut"),
        (34 + 12 * 40, b"\x01", "expected a document index that ascends from 0 to 40"),
    ],
)
def test_a_damaged_megatron_index_is_named(tmp_path: Path, offset: int, data: bytes, said: str) -> None:
    rows = [PackedRow(np.arange(LENGTH), LENGTH, (0, 5), ()) for _ in range(20)]
    path = exported(tmp_path, (NARROW, [rows]), "megatron") / "tokens.idx"
    index = bytearray(path.read_bytes())
    index[offset : offset + len(data)] = data
    path.write_bytes(index)
    with pytest.raises(DatasetError, match=said):
        import_packed(path.parent, tmp_path / "again", "megatron")


def test_a_sidecar_of_somebody_else_writes_nothing_outside_the_output(tmp_path: Path) -> None:
    """Its checksums may be in order, for who makes one can compute them."""
    rows = [PackedRow(np.arange(LENGTH), LENGTH, (0,), ())]
    sidecar = exported(tmp_path, (NARROW, [rows]), "mds") / "anygpt"
    origin = json.loads((sidecar / "origin.json").read_text(encoding="utf-8"))
    origin["shards"][0]["path"] = "../elsewhere/shard-00000.arrow"
    (sidecar / "origin.json").write_text(json.dumps(origin), encoding="utf-8")
    facts = json.loads((sidecar / "convert.json").read_text(encoding="utf-8"))
    facts["files"]["origin.json"] = hashlib.sha256((sidecar / "origin.json").read_bytes()).hexdigest()
    del facts["check"]
    (sidecar / "convert.json").write_text(json.dumps(facts | {"check": fingerprint(facts)}), encoding="utf-8")
    with pytest.raises(DatasetError, match="expected the name of a shard below its folder"):
        import_packed(sidecar.parent, tmp_path / "again", "mds")


def test_a_damaged_mds_dataset_is_named(tmp_path: Path) -> None:
    rows = [PackedRow(np.arange(LENGTH), LENGTH, (0,), ()) for _ in range(3)]
    folder = exported(tmp_path, (NARROW, [rows]), "mds")
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    entry = index["shards"][0]

    def refuses(said: str, error: type[DatasetError] = DatasetError, **changes: Any) -> None:
        changed = {"version": changes.pop("index_version", 2), "shards": [entry | changes]}
        (folder / "index.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(error, match=said):
            import_packed(folder, tmp_path / "again", "mds")

    raw = entry["raw_data"]
    refuses("expected version 2, found 1", index_version=1)
    refuses("shard 0: expected format 'mds'", format="csv")
    refuses("expected 9 bytes, as its index says, found", raw_data=raw | {"bytes": 9})
    refuses("expected sha256 000", ChecksumMismatch, raw_data=raw | {"hashes": {"sha256": "0" * 64}})
    refuses("named in index.json and not there", raw_data=raw | {"basename": "shard.00009.mds"})
    refuses("expected the name of a file below its folder", raw_data=raw | {"basename": "../packed/manifest.json"})
    refuses("expected 4 samples, as its index says, found 3", samples=4)
    refuses("expected a column tokens or input_ids", column_names=["a", "b", "c", "d"])
    refuses("sample 0: expected columns of", column_sizes=[None, None, 4, 99])
    refuses("expected a name, encoding and size", column_sizes=[None])
    refuses("an encoding 'str'", column_encodings=["ndarray:int32", "bytes", "uint32", "str"])
    zipped = folder / "shard.00000.mds.br"
    (folder / "shard.00000.mds").rename(zipped)
    facts = {"raw_data": raw, "zip_data": raw | {"basename": zipped.name}}
    refuses("expected no compression or one of", compression="br", **facts)
    refuses("expected zstd data", compression="zstd", **facts)
    (folder / "index.json").unlink()
    with pytest.raises(DatasetError, match="expected the index of an MDS dataset, found none"):
        import_packed(folder, tmp_path / "again", "mds")


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_there_is_said(format: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "absent"):
        with pytest.raises(DatasetError, match=r"expected.*found no"):
            import_packed(tmp_path / source, tmp_path / "again", format, Wanted(NARROW, 4))
