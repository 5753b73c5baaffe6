"""Rows of a mixture straight into a buffer: what is gathered is what the mixture names, from any number of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ChecksumMismatch
from shards.manifest import Manifest, write_manifest
from shards.mixed_rows import MixedRows
from shards.mixture import Mixture
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.reader import PackedDataset, open_packed
from shards.vocabulary import lay_out

LENGTH = 6
FILES = {"a": (3, 1, 7), "b": (5,), "c": (2, 2)}
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


def write(folder: Path, name: str, sizes: tuple[int, ...], first: int) -> PackedDataset:
    """Rows that begin with a number of their own."""
    vocabulary = lay_out("rows", text_size=500, markers=[], media=[])
    entries = []
    for number, size in enumerate(sizes):
        rows = [
            PackedRow(np.array([first + n, *range(1, LENGTH)], np.uint16), LENGTH, (0, 2), ((1, LENGTH),))
            for n in range(size)
        ]
        path = folder / name / f"shard-{number:05d}.arrow"
        entries.append(write_packed_shard(path, rows, vocabulary=vocabulary, sequence_length=LENGTH))
        first += size
    extra = {"sequence_length": LENGTH}
    manifest = Manifest("packed", name, name, tuple(entries), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder / name, manifest)
    return open_packed(folder / name)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mixture, list[PackedDataset]]:
    folder = tmp_path_factory.mktemp("mixed")
    datasets = [write(folder, name, sizes, 100 * n) for n, (name, sizes) in enumerate(FILES.items())]
    return Mixture(SHARES, {name: sum(sizes) for name, sizes in FILES.items()}), datasets


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40), st.integers(1, 8), st.sampled_from(["u2", "i4", "i8"]))
def test_what_is_gathered_is_what_the_mixture_names(
    mixed: tuple[Mixture, list[PackedDataset]], positions: list[int], batch_rows: int, dtype: str
):
    mixture, datasets = mixed
    reader = MixedRows(mixture, datasets)
    rows = reader.plan(positions)
    expected = [datasets[mixture.names.index(name)].gather([row])[0] for name, row in map(mixture.locate, positions)]
    for start in range(0, len(positions), batch_rows):
        buffer = np.zeros((min(batch_rows, len(positions) - start), LENGTH), dtype)
        assert reader.gather(rows, buffer, start=start) is buffer
        assert (buffer == expected[start : start + len(buffer)]).all()
    for place, (shard, row) in enumerate(zip(rows.shards, rows.rows, strict=True)):
        assert reader.shard(shard).token_ids[row].tolist() == expected[place].tolist()
        assert reader.shard(shard).document_starts(row).tolist() == [0, 2]
        assert reader.shard(shard).loss_spans(row).tolist() == [[1, LENGTH]]


def test_datasets_in_another_order_are_refused(mixed: tuple[Mixture, list[PackedDataset]]):
    mixture, datasets = mixed
    with pytest.raises(ValueError, match=r"expected datasets of \[11, 5, 4\] rows, .* found \[4, 5, 11\]"):
        MixedRows(mixture, datasets[::-1])


def test_a_file_is_opened_when_it_is_first_read_from(tmp_path: Path):
    dataset = write(tmp_path, "a", (4, 4), 0)
    path = tmp_path / "a" / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    reader = MixedRows(Mixture({"a": 1.0}, {"a": 8}), [dataset])
    buffer = np.zeros((1, LENGTH), np.int64)
    reader.gather(reader.find(np.array([0]), np.array([3])), buffer)
    with pytest.raises(ChecksumMismatch, match=r"shard-00001\.arrow"):
        reader.gather(reader.find(np.array([0]), np.array([4])), buffer)
