"""Leave-out lists: ids that tokenization passes over before any medium is decoded, each with its reason.

``anygpt-dedup`` writes such a list (``left_out.parquet``); anyone may, with the columns ``corpus`` (name of the dataset),
``sample_id`` and ``reason``. In memory a list is a sorted array of 64-bit digests beside an array of reason numbers, 9
bytes an id: 30 million ids are 270 MB, and a look-up is one binary search. Among 30 million ids and 10^9 samples, the
chance that any two digests are equal by accident is one in 600.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError

KEY = "key"
"""Optional column: :func:`leave_out_key` as uint64, so that a list of millions is loaded without hashing it."""
_NEEDED = ("corpus", "sample_id", "reason")
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOut:
    """What is left out, by corpus and sample id; opened by :meth:`load`.

    Attributes:
        keys: (ids,) uint64, sorted, each once.
        codes: (ids,) uint8 index into ``reasons``.
        fingerprint: 16 hex digits of all of it; equal lists have equal ones, however they are cut into files.
    """

    keys: npt.NDArray[np.uint64]
    codes: npt.NDArray[np.uint8]
    reasons: tuple[str, ...]
    fingerprint: str

    @classmethod
    def load(cls, paths: Sequence[Path]) -> LeaveOut:
        """Read lists: Parquet files, or folders of ``anygpt-dedup``. An id that several have keeps its first reason.

        Raises:
            DatasetError: a file is not there or is no leave-out list.
        """
        keys: list[npt.NDArray[np.uint64]] = []
        given: list[npt.NDArray[np.uint8]] = []
        numbers: dict[str, int] = {}
        for path in paths:
            for batch in _batches(path):
                keys.append(_keys_of(batch))
                given.append(_codes_of(batch, numbers, path))
        return _build(keys, given, list(numbers))

    def __len__(self) -> int:
        return len(self.keys)

    def reason(self, corpus: str, sample_id: str) -> str | None:
        """Why a sample of the dataset ``corpus`` is left out; None if it is not."""
        key = np.uint64(leave_out_key(corpus, sample_id))
        place = int(np.searchsorted(self.keys, key))
        found = place < len(self.keys) and self.keys[place] == key
        return self.reasons[int(self.codes[place])] if found else None


def leave_out_key(corpus: str, sample_id: str) -> int:
    """64-bit digest of one sample's name."""
    return int.from_bytes(hashlib.blake2b(f"{corpus}\0{sample_id}".encode(), digest_size=8).digest(), "little")


def leave_out_keys(corpora: Iterable[str], sample_ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Digests of many."""
    pairs = zip(corpora, sample_ids, strict=True)
    return np.fromiter((leave_out_key(corpus, sample_id) for corpus, sample_id in pairs), np.uint64)


def _build(
    keys: Sequence[npt.NDArray[np.uint64]], given: Sequence[npt.NDArray[np.uint8]], names: list[str]
) -> LeaveOut:
    """Sort, keep the first of equal keys, and number the reasons in alphabetical order."""
    all_keys = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    all_codes = np.concatenate(given) if given else np.empty(0, np.uint8)
    order = np.argsort(all_keys, kind="stable")
    all_keys = all_keys[order]
    first = np.ones(len(all_keys), bool)
    first[1:] = all_keys[1:] != all_keys[:-1]
    reasons = sorted(names)
    renumbered = np.array([reasons.index(name) for name in names], np.uint8)
    kept, codes = all_keys[first], all_codes[order][first]
    codes = renumbered[codes] if len(names) else codes
    digest = hashlib.sha256("\0".join(reasons).encode())
    digest.update(kept.astype("<u8").tobytes())
    digest.update(codes.tobytes())
    return LeaveOut(kept, codes, tuple(reasons), digest.hexdigest()[:16])


def _batches(path: Path) -> Iterable[pa.RecordBatch]:
    file = path / "left_out.parquet" if path.is_dir() else path
    try:
        with file.open("rb") as source:
            parquet = pq.ParquetFile(source)
            names = parquet.schema_arrow.names
            missing = [name for name in _NEEDED if name not in names]
            if missing:
                raise DatasetError(
                    f"{file}: expected a leave-out list with the columns {', '.join(_NEEDED)}, found none named "
                    f"{', '.join(missing)}; name them so, or give the output of anygpt-dedup"
                )
            columns = [KEY, "reason"] if KEY in names else list(_NEEDED)
            yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{file}: expected a leave-out list in Parquet, found {error}; run anygpt-dedup, or correct the path"
        ) from error


def _keys_of(batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    if KEY in batch.schema.names:
        return np.asarray(batch.column(KEY).to_numpy(zero_copy_only=False), np.uint64)
    return leave_out_keys(batch.column("corpus").to_pylist(), batch.column("sample_id").to_pylist())


def _codes_of(batch: pa.RecordBatch, numbers: dict[str, int], path: Path) -> npt.NDArray[np.uint8]:
    encoded = batch.column("reason").cast(pa.string()).dictionary_encode()
    codes = [numbers.setdefault(str(name), len(numbers)) for name in encoded.dictionary.to_pylist()]
    if len(numbers) > 256:
        raise DatasetError(
            f"{path}: expected at most 256 reasons, found more; a reason is a rule's name, not a message"
        )
    return np.array(codes, np.uint8)[np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)]
