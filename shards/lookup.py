"""Finding sample ids in the files of a dataset: one column is read, of the files that hold an id the others too.

An id stands for itself and for its windows: ``X`` finds ``X``, ``X#w0``, ``X#w1``, ...; ``X#w0`` finds that window.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.ledger import LEDGER
from shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from shards.storage import match_files

pc: Any = pyarrow.compute  # made when imported, so that type checkers do not see its functions
_WINDOW = r"#w[0-9]+$"
_SHORTLIST = 20
_MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one Parquet file.

    Attributes:
        rows: (n,) their numbers in the file, ascending.
        table: n rows of the columns that were asked for.
    """

    path: Path
    rows: npt.NDArray[np.int64]
    table: pa.Table


def input_id(sample_id: str) -> str:
    """The id of the whole that a window was cut from; any other id is its own."""
    whole, mark, window = sample_id.rpartition("#w")
    return whole if mark and window.isascii() and window.isdigit() else sample_id


def matches(ids: pa.ChunkedArray, wanted: Sequence[str]) -> pa.ChunkedArray:
    """(n,) bool: whether an id is wanted, or is a window of one that is."""
    values = pa.array(wanted, pa.string())
    whole = pc.replace_substring_regex(ids, _WINDOW, "")
    return pc.or_(pc.is_in(ids, value_set=values), pc.is_in(whole, value_set=values))


def find_ids(paths: Iterable[Path], wanted: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[Found]:
    """Files with a row of a wanted id, in the order given.

    Args:
        columns: what to read of those rows; None reads all.

    Raises:
        DatasetError: a file is missing, cut or has no sample ids.
    """
    if not wanted:
        return

    def look(path: Path) -> Found | None:
        rows = np.flatnonzero(matches(_read(path, ["sample_id"])["sample_id"], wanted).to_numpy())
        return Found(path, rows, _read(path, columns).take(rows)) if len(rows) else None

    yield from (found for found in _map(look, paths) if found is not None)


def nearest_ids(paths: Iterable[Path], wanted: str, count: int = 3) -> list[str]:
    """The stored ids that look most like ``wanted``, best first; for the message that it is not there.

    Ids are compared by the beginning and the end they share with it, which numpy does for a million in a second; the few
    best are then ranked by :mod:`difflib`.
    """
    best: list[tuple[int, str]] = []
    for shortlist in _map(lambda path: _shortlist(_read(path, ["sample_id"])["sample_id"], wanted), paths):
        best = sorted({*best, *shortlist})[:_SHORTLIST]
    ranked = sorted((-difflib.SequenceMatcher(None, wanted, found).ratio(), found) for _, found in best)
    return [found for _, found in ranked[:count]]


def find_datasets(folders: Iterable[Path], kind: str) -> list[tuple[Path, Manifest]]:
    """Datasets of one kind in these folders or below them, by path, each once.

    Raises:
        DatasetError: a folder is not there.
    """
    found: dict[Path, Manifest] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: expected a folder with datasets in it, found none; check the path")
        for path in sorted(match_files(folder, [MANIFEST_NAME])):
            # A manifest below a ledger was set aside by a removal that was killed.
            if path.parent.name == LEDGER or path.parent in found:
                continue
            if (manifest := read_manifest(path.parent)).kind == kind:
                found[path.parent] = manifest
    return list(found.items())


def _map(work: Any, paths: Iterable[Path]) -> Iterator[Any]:
    """Reading is done in threads, a few files ahead; results come in order."""
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
        yield from threads.map(work, paths)


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as parquet:
            return parquet.read(list(columns) if columns is not None else None, use_threads=False)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DatasetError(
            f"{path}: expected a Parquet file of the dataset, found {error}; run anygpt-verify"
        ) from error


def _shortlist(ids: pa.ChunkedArray, wanted: str) -> list[tuple[int, str]]:
    """(bytes that are not of the common beginning or end, id) of the best of one file."""
    if not len(ids):
        return []
    texts = np.array([text.encode()[:_MAX_ID_BYTES] for text in ids.to_pylist()])
    target = wanted.encode()[:_MAX_ID_BYTES]
    width = max(texts.dtype.itemsize, len(target)) + 1
    lengths = np.char.str_len(texts)
    # One place more than the widest text differs for certain, so that every count stops.
    begin = _equal_run(texts, target.ljust(width, b"\1"))
    end = _equal_run(np.char.rjust(texts, width, b" "), target.rjust(width, b"\1"), from_right=True)
    common = np.minimum(begin + end, np.minimum(lengths, len(target)))
    distance = np.maximum(lengths, len(target)) - common
    best = np.argsort(distance, kind="stable")[:_SHORTLIST]
    return [(int(distance[place]), str(ids[int(place)].as_py())) for place in best]


def _equal_run(texts: npt.NDArray[Any], target: bytes, *, from_right: bool = False) -> npt.NDArray[np.int64]:
    """(n,) how many bytes in a row are the target's; no text is wider than the target."""
    width = len(target)
    padded = np.ascontiguousarray(texts.astype(f"S{width}")).view(np.uint8).reshape(len(texts), width)
    differs = padded != np.frombuffer(target, np.uint8)
    return (differs[:, ::-1] if from_right else differs).argmax(axis=1)
