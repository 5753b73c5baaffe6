"""Damaged and crafted foreign files: every cut and flip is named, or changes nothing, and nothing is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.convert_packed import FORMATS, Wanted, import_packed
from shards.errors import ChecksumMismatch, DatasetError
from shards.manifest import fingerprint
from shards.packed import PackedRow
from shards.reader import open_packed
from tests.fixtures.random_packed import LENGTH, NARROW, WIDE, files
from tests.shards.test_convert_formats import exported


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
