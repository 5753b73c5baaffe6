"""Signatures of all corpora in one scratch database, numbered in their order: corpus, unit, place in the unit.

Grouping equal digests is the one step that needs all of them at once; duckdb does it on disk when memory is short. A
smaller number is always the copy that is kept, so every answer depends on the numbers alone and not on the database's
threads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from tokenize_jobs.dedup_lists import Listed
from tokenize_jobs.dedup_near import Numbers, Pairs
from tokenize_jobs.dedup_units import SIGNATURE_SCHEMA, SignatureTask

# pyarrow makes these functions when it is imported, so no type checker knows them.
_compute = cast(Any, pyarrow.compute)
_ROWS_AT_ONCE = 1 << 17
_TABLES = """
CREATE TABLE samples (sample BIGINT, corpus SMALLINT, sample_id VARCHAR);
CREATE TABLE media (medium BIGINT, sample BIGINT, sha256 BLOB, decoded_sha256 BLOB, picture UBIGINT,
                    colours BLOB);
CREATE TABLE texts (sample BIGINT, sha256 BLOB);
CREATE TABLE leaks (sample BIGINT, reason VARCHAR, entry VARCHAR);
"""


class SignatureTable:
    """The database; opened with :func:`open_table`.

    Attributes:
        inputs: samples of each corpus, by the dataset's name.
        text_samples: (texts,) the sample of each MinHash, ascending.
    """

    def __init__(self, scratch: Path, *, memory_gib: float, threads: int) -> None:
        self._scratch = scratch
        self.connection = duckdb.connect(str(scratch / "signatures.duckdb"))
        self.connection.execute(f"SET memory_limit = '{int(memory_gib * 1024)}MiB'")
        self.connection.execute(f"SET threads = {threads}")
        self.connection.execute(f"SET temp_directory = '{str(scratch / 'spill').replace(chr(39), chr(39) * 2)}'")
        self.connection.execute(_TABLES)
        self.inputs: dict[str, int] = {}
        self.num_media = 0
        self.text_samples: Numbers = np.empty(0, np.int64)
        self._permutations = 0

    @property
    def num_samples(self) -> int:
        """Over all corpora."""
        return sum(self.inputs.values())

    def fill(self, tasks: Sequence[SignatureTask], listed: Listed) -> None:
        """Read the signatures of all units, in order."""
        found: list[Numbers] = []
        with (self._scratch / "minhashes.bin").open("wb") as minhashes:
            for corpus, task in enumerate(tasks):
                self.inputs[task.name] = 0
                for table in _tables_at_once(task):
                    first = self.num_samples
                    self.inputs[task.name] += len(table)
                    samples = np.arange(first, first + len(table), dtype=np.int64)
                    self._insert(
                        "samples",
                        {
                            "sample": samples,
                            "corpus": np.full(len(table), corpus, np.int16),
                            "sample_id": table["sample_id"],
                        },
                    )
                    self._add_media(table, samples)
                    self._add_leaks(table, samples, listed)
                    found.append(self._add_texts(table, samples, minhashes))
        self.text_samples = np.concatenate(found) if found else self.text_samples

    def minhashes(self) -> npt.NDArray[np.uint32]:
        """(texts, permutations), mapped from a file."""
        shape = (len(self.text_samples), self._permutations)
        if not len(self.text_samples):
            return np.empty((0, 1), np.uint32)
        return np.memmap(self._scratch / "minhashes.bin", np.dtype("<u4"), mode="r", shape=shape)

    def equal(self, column: str) -> Pairs:
        """Media with equal digests: (later, first) of each group."""
        query = f"""
            SELECT medium, first FROM media JOIN (
                SELECT {column}, min(medium) AS first FROM media WHERE {column} IS NOT NULL
                GROUP BY {column} HAVING count(*) > 1
            ) USING ({column}) WHERE medium <> first"""
        return self.pairs(query)

    def equal_pictures(self) -> Pairs:
        """Pictures with equal perceptual hash and colours: (later, first) of each group."""
        query = """
            SELECT medium, first FROM media JOIN (
                SELECT picture, colours, min(medium) AS first FROM media WHERE picture IS NOT NULL
                GROUP BY picture, colours HAVING count(*) > 1
            ) USING (picture, colours) WHERE medium <> first"""
        return self.pairs(query)

    def equal_texts(self) -> Pairs:
        """Samples with equal texts: (later, first) of each group."""
        query = """
            SELECT sample, first FROM texts JOIN (
                SELECT sha256, min(sample) AS first FROM texts GROUP BY sha256 HAVING count(*) > 1
            ) USING (sha256) WHERE sample <> first"""
        return self.pairs(query)

    def distinct_texts(self) -> Numbers:
        """Rows of :meth:`minhashes`, of equal texts the first, ascending."""
        query = "SELECT min(sample) AS sample FROM texts GROUP BY sha256 ORDER BY sample"
        found = self.connection.execute(query).fetchnumpy()["sample"]
        return np.searchsorted(self.text_samples, np.asarray(found, np.int64))

    def pictures(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8], Numbers]:
        """Every distinct picture once: hashes ascending, (n, 12) colours, and the first medium that has both."""
        query = """
            SELECT picture, colours, min(medium) AS medium FROM media WHERE picture IS NOT NULL
            GROUP BY picture, colours ORDER BY picture, colours"""
        hashes: list[Any] = [np.empty(0, np.uint64)]
        colours: list[Any] = [np.empty((0, 12), np.uint8)]
        media: list[Any] = [np.empty(0, np.int64)]
        for batch in self.stream(query):
            hashes.append(batch.column(0).to_numpy(zero_copy_only=False).astype(np.uint64))
            colours.append(np.frombuffer(b"".join(batch.column(1).to_pylist()), np.uint8).reshape(-1, 12))
            media.append(batch.column(2).to_numpy(zero_copy_only=False).astype(np.int64))
        return np.concatenate(hashes), np.concatenate(colours), np.concatenate(media)

    def pairs(self, query: str) -> Pairs:
        """A query of two columns of whole numbers, as arrays."""
        found = self.connection.execute(query).fetchnumpy()
        left, right = (np.asarray(column, np.int64) for column in found.values())
        return left, right

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """The answer to a query, a batch at a time."""
        yield from self.connection.sql(query).to_arrow_reader(_ROWS_AT_ONCE)

    def register(self, name: str, columns: Mapping[str, Any]) -> None:
        """Let queries see arrays as a table."""
        self.connection.register(name, pa.table(dict(columns)))

    def _insert(self, name: str, columns: Mapping[str, Any]) -> None:
        self.connection.register("rows", pa.table(dict(columns)))
        self.connection.execute(f"INSERT INTO {name} SELECT * FROM rows")
        self.connection.unregister("rows")

    def _add_media(self, table: pa.Table, samples: Numbers) -> None:
        media = table["media"].combine_chunks()
        flat = _compute.list_flatten(media)
        columns: dict[str, Any] = {
            "medium": np.arange(self.num_media, self.num_media + len(flat), dtype=np.int64),
            "sample": np.repeat(samples, _lengths(media)),
        }
        for name in ("sha256", "decoded_sha256", "picture", "colours"):
            column = _compute.struct_field(flat, name)
            columns[name] = column if name == "picture" else column.cast(pa.binary())
        self.num_media += len(flat)
        self._insert("media", columns)

    def _add_texts(self, table: pa.Table, samples: Numbers, minhashes: Any) -> Numbers:
        has = np.asarray(_compute.is_valid(table["minhash"]))
        if not has.any():
            return np.empty(0, np.int64)
        chosen = table.filter(pa.array(has))
        found = chosen["minhash"].to_pylist()
        self._permutations = len(found[0]) // 4
        minhashes.write(b"".join(found))
        self._insert("texts", {"sample": samples[has], "sha256": chosen["joined_sha256"].cast(pa.binary())})
        return samples[has]

    def _add_leaks(self, table: pa.Table, samples: Numbers, listed: Listed) -> None:
        media = table["media"].combine_chunks()
        names, texts = table["names"].combine_chunks(), table["texts"].combine_chunks()
        self._add_leak("leaked_id", samples, _lengths(names), _compute.list_flatten(names), listed.names)
        self._add_leak("leaked_text", samples, _lengths(texts), _compute.list_flatten(texts), listed.texts)
        digests = _compute.struct_field(_compute.list_flatten(media), "sha256")
        self._add_leak("leaked_media", samples, _lengths(media), digests, listed.media)

    def _add_leak(
        self, reason: str, samples: Numbers, lengths: Numbers, values: pa.Array, listed: Mapping[Any, str]
    ) -> None:
        if not listed:
            return
        found = np.flatnonzero(_compute.is_in(values, value_set=pa.array(list(listed), values.type)))
        if len(found):
            entries = [listed[value] for value in values.take(pa.array(found)).to_pylist()]
            owners = np.repeat(samples, lengths)[found]
            self._insert("leaks", {"sample": owners, "reason": [reason] * len(found), "entry": entries})


@contextmanager
def open_table(output: Path, *, memory_gib: float, threads: int) -> Iterator[SignatureTable]:
    """An empty database in ``output/scratch``, which is gone afterwards, and was gone before."""
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    table = SignatureTable(scratch, memory_gib=memory_gib, threads=threads)
    try:
        yield table
    finally:
        table.connection.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _tables_at_once(task: SignatureTask) -> Iterator[pa.Table]:
    """The files of a corpus, some thousands of rows at a time."""
    waiting: list[pa.Table] = []
    for unit in cast(Iterable[Any], task.units):
        waiting.append(pq.read_table(task.path(unit), schema=SIGNATURE_SCHEMA))
        if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _lengths(lists: pa.Array) -> Numbers:
    return np.asarray(_compute.list_value_length(lists), np.int64)
