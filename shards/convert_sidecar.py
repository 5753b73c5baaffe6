"""What a foreign format has no place for: the folder ``anygpt/`` beside its files, which its own readers do not look at.

    origin.json                  the manifest of the packed dataset, byte for byte: vocabulary, shards, config, counts
    SHARD.samples.parquet        which sample every stretch of a row came from, copied
    SHARD.rows.parquet           documents and loss spans of each row, only where the format itself cannot say them
    rejects.parquet              copied, if the dataset has one
    convert.json                 format, version of the converter, what it was made of, the sha256 of each file above and
                                 a CRC-32 of each shard's rows, and a fingerprint of all this

With it the way back gives the same dataset. Without it, or when the foreign files are not those it was written for, they
are read as anybody's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.convert_rows import shard_digest
from shards.errors import ChecksumMismatch, ConfigError, DatasetError
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, fingerprint, to_entry
from shards.open_shard import OpenShard
from shards.packed import Placement, sidecar_path
from shards.reader import PackedDataset
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes, commit_table, file_sha256

CONVERTER_VERSION = 1
FOLDER = "anygpt"
CONVERT_NAME = "convert.json"
ORIGIN_NAME = "origin.json"
REJECTS_NAME = "rejects.parquet"
ROWS_SUFFIX = ".rows.parquet"

ROWS_SCHEMA = pa.schema(
    [
        pa.field("documents", pa.int32(), nullable=False),
        pa.field("loss_spans", pa.list_(pa.list_(pa.int32(), 2)), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What :func:`write_sidecar` left.

    Attributes:
        root: the foreign folder.
        made_of: of which dataset, by which converter.
        origin: the manifest of the dataset that was exported.
        digests: CRC-32 of each of its shards' rows, see :func:`shards.convert_rows.shard_digest`.
        files: name below ``anygpt/`` -> sha256.
    """

    root: Path
    format: str
    made_of: str
    origin: Manifest
    digests: tuple[str, ...]
    files: Mapping[str, str]

    def read(self, name: Path) -> bytes:
        """A file below ``anygpt/``.

        Raises:
            DatasetError: it is missing, or not what was written.
        """
        return _read_checked(self.root / FOLDER / name, self.files.get(name.as_posix(), ""))

    def placements(self, shard: ShardEntry) -> list[list[Placement]]:
        """Of every row of a shard."""
        table = pq.read_table(pa.BufferReader(self.read(sidecar_path(Path(shard.path)))))
        rows: list[list[Placement]] = [[] for _ in range(shard.num_rows)]
        for record in table.drop_columns(["position"]).to_pylist():
            rows[record.pop("row")].append(Placement(**record))
        return rows

    def rows(self, shard: ShardEntry) -> list[dict[str, Any]]:
        """``documents`` and ``loss_spans`` of every row of a shard, of a format that cannot say them."""
        return pq.read_table(pa.BufferReader(self.read(rows_path(shard)))).to_pylist()


def made_of(dataset: Path, format: str) -> str:
    """16 hex digits over everything that decides an export."""
    return fingerprint(
        {"converter": CONVERTER_VERSION, "format": format, "manifest": file_sha256(dataset / MANIFEST_NAME)}
    )


def rows_path(shard: ShardEntry) -> Path:
    """Of the documents and loss spans of a shard, below ``anygpt/``."""
    return Path(shard.path).with_suffix(ROWS_SUFFIX)


def write_rows(folder: Path, entry: ShardEntry, shard: OpenShard) -> None:
    """Commit documents and loss spans of every row of one shard."""
    spans = [
        shard.spans[begin:end].tolist()
        for begin, end in zip(shard.span_offsets[:-1].tolist(), shard.span_offsets[1:].tolist(), strict=True)
    ]
    columns = {"documents": pa.array(shard.start_offsets[1:] - shard.start_offsets[:-1]), "loss_spans": spans}
    commit_table(folder / FOLDER / rows_path(entry), pa.Table.from_pydict(columns, schema=ROWS_SCHEMA))


def write_sidecar(folder: Path, dataset: PackedDataset, format: str) -> None:
    """Commit all but :func:`write_rows`, ``convert.json`` last.

    Raises:
        DatasetError: a shard lacks its sample ids.
    """
    names = [sidecar_path(Path(entry.path)) for entry in dataset.manifest.shards]
    names += [Path(REJECTS_NAME)] * (dataset.folder / REJECTS_NAME).is_file()
    for name in names:
        try:
            data = (dataset.folder / name).read_bytes()
        except FileNotFoundError as error:
            raise DatasetError(
                f"{dataset.folder / name}: expected the sample ids beside their shard, found none; copy the dataset again"
            ) from error
        commit_bytes(folder / FOLDER / name, data)
    commit_bytes(folder / FOLDER / ORIGIN_NAME, (dataset.folder / MANIFEST_NAME).read_bytes())
    written = sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())
    facts = {
        "converter": CONVERTER_VERSION,
        "format": format,
        "made_of": made_of(dataset.folder, format),
        "files": {path.relative_to(folder / FOLDER).as_posix(): file_sha256(path) for path in written},
        "rows_crc32": [shard_digest(dataset.checked_shard(number)) for number in range(dataset.num_shards)],
    }
    text = json.dumps(facts | {"check": fingerprint(facts)}, indent=1, sort_keys=True) + "\n"
    commit_bytes(folder / FOLDER / CONVERT_NAME, text.encode())


def read_sidecar(root: Path, format: str) -> Sidecar | None:
    """What lies beside foreign files; None if nothing does.

    Raises:
        DatasetError: it is damaged, of another version, or of another format.
    """
    path = root / FOLDER / CONVERT_NAME
    if not path.is_file():
        return None
    facts = dict(_read_json(path))
    if (check := facts.pop("check", None)) != fingerprint(facts):
        raise ChecksumMismatch(
            f"{path}: expected contents with the fingerprint {check}, found {fingerprint(facts)}; copy it again, or remove "
            f"the folder {FOLDER}/ to read the files as anybody's"
        )
    if (facts.get("converter"), facts.get("format")) != (CONVERTER_VERSION, format):
        raise DatasetError(
            f"{path}: expected format {format!r} of converter {CONVERTER_VERSION}, found {facts.get('format')!r} of "
            f"{facts.get('converter')}; give the --format it was exported as, or export it again"
        )
    files, digests = facts.get("files"), facts.get("rows_crc32")
    if not isinstance(files, dict) or not isinstance(digests, list):
        raise DatasetError(f"{path}: expected the checksums of files and rows, found none; export it again")
    origin = _read_manifest(root / FOLDER / ORIGIN_NAME, str(files.get(ORIGIN_NAME)))
    if len(digests) != len(origin.shards):
        raise DatasetError(
            f"{path}: expected a CRC-32 for each of {len(origin.shards)} shards, found {len(digests)}; export it again"
        )
    for name in (PurePosixPath(entry.path) for entry in origin.shards):
        if name.is_absolute() or ".." in name.parts or name.suffix != ".arrow":
            raise DatasetError(
                f"{root / FOLDER / ORIGIN_NAME}: expected the name of a shard below its folder, found {str(name)!r}; it is "
                f"not ours: remove the folder {FOLDER}/ to read the files as anybody's"
            )
    return Sidecar(root, format, str(facts.get("made_of")), origin, tuple(digests), files)


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary that a user names: a packed dataset's folder, or a JSON file of one, or of a manifest.

    Raises:
        ConfigError: there is none.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found = data.get("vocabulary", data)
        return Vocabulary.from_json(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--vocabulary {path}: expected a packed dataset or a JSON file with its vocabulary, found {error!r}; "
            "name a dataset that was packed with the same vocabulary"
        ) from error


def _read_manifest(path: Path, sha256: str) -> Manifest:
    try:
        data = json.loads(_read_checked(path, sha256))
        shards = tuple(to_entry(shard) for shard in data.pop("shards"))
        vocabulary = Vocabulary.from_json(data.pop("vocabulary"))
        return Manifest(shards=shards, vocabulary=vocabulary, **data)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: expected a complete manifest, found {error!r}; export it again") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected a JSON object, found {error}; export it again") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: expected a JSON object, found {type(data).__name__}; export it again")
    return data


def _read_checked(path: Path, sha256: str) -> bytes:
    again = f"copy it again, or remove the folder {FOLDER}/ to read the files as anybody's"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: expected what the export left here, found {error}; {again}") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ChecksumMismatch(f"{path}: expected sha256 {sha256[:16]}..., found {found[:16]}...; {again}")
    return data
