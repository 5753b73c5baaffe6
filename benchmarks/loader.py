"""The loader against the least that reading can cost: the same rows copied from a memory map into a reused buffer.

Corpus: 20,000 rows of 4,500 uint16 ids in four datasets (10,000, 6,000, 3,000, 1,000), mixed 0.5 / 0.25 / 0.15 / 0.1, in
batches of 8 rows. Ratios of tokens per CPU second, medians of rounds that take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from shards.manifest import Manifest, write_manifest
from shards.mixed_rows import MixedRows
from shards.mixture import Mixture
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.reader import PackedDataset, open_packed
from shards.vocabulary import lay_out
from train.stream import RowStream

LENGTH = 4500
SIZES = {"a": 10_000, "b": 6_000, "c": 3_000, "d": 1_000}
SHARES = {"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}
BATCH_ROWS = 8
STEPS = 1500
# As many rows at once as the trainer's stream plans.
STEPS_PLANNED = 16_384 // BATCH_ROWS
ROUNDS = 15


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    print(json.dumps(measure()))


def measure() -> Mapping[str, float]:
    """Print the table; return ``ratio_int64``, ``ratio_uint16`` and the seconds to the first batch."""
    with tempfile.TemporaryDirectory() as folder:
        _write_corpus(Path(folder))
        start = time.perf_counter()
        datasets = {name: open_packed(Path(folder) / name) for name in SIZES}
        mixture = Mixture(SHARES, SIZES)
        _read(datasets, mixture, np.empty((BATCH_ROWS, LENGTH), np.uint16), steps=1)
        first_batch_s = time.perf_counter() - start
        plan, rows = _planned(mixture), _bare_rows(Path(folder), datasets)
        figures: dict[str, float] = {}
        print(f"{'reader':<34}{'Mtok / CPU s':>14}{'ratio':>8}")
        for dtype in (np.int64, np.uint16):
            buffer = np.empty((BATCH_ROWS, LENGTH), dtype)
            name = np.dtype(dtype).name
            bare, ours = _compete(
                partial(_bare, rows, plan, buffer),
                partial(_read, datasets, mixture, buffer, steps=STEPS),
            )
            figures[f"ratio_{name}"] = round(bare / ours, 3)
            _line(f"bare gather, {name}", bare, 1.0)
            _line(f"mixture + gather, {name}", ours, bare / ours)
        bare, stream = _compete(lambda: _bare(rows, plan, buffer), lambda: _stream(datasets, mixture))
        _line("trainer's stream, with loss masks", stream, bare / stream)
        print(f"first batch after {first_batch_s:.3f} s, checksums of the touched shards included")
    return {**figures, "ratio_stream": round(bare / stream, 3), "first_batch_s": round(first_batch_s, 4)}


def _write_corpus(folder: Path) -> None:
    vocabulary = lay_out("bench", text_size=53_516, markers=[], media=[])
    rng = np.random.default_rng(0)
    for name, num_rows in SIZES.items():
        ids = rng.integers(3, vocabulary.size, (num_rows, LENGTH), dtype=np.uint16)
        rows = [PackedRow(row, LENGTH, (0,), ((0, LENGTH),)) for row in ids]
        entry = write_packed_shard(
            folder / name / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=LENGTH
        )
        extra = {"sequence_length": LENGTH}
        manifest = Manifest("packed", name, name, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
        write_manifest(folder / name, manifest)


def _bare_rows(folder: Path, datasets: Mapping[str, PackedDataset]) -> list[np.ndarray]:
    """The same rows as raw memory maps: the floor knows no format."""
    found: list[np.ndarray] = []
    for name, dataset in datasets.items():
        path = folder / f"{name}.bin"
        np.asarray(dataset.token_view(0)).tofile(path)
        found.append(np.asarray(np.memmap(path, np.uint16, "r")).reshape(-1, LENGTH))
    return found


def _planned(mixture: Mixture) -> list[list[tuple[int, int]]]:
    """What the floor copies, decided before its clock runs: the very rows of the mixture."""
    plan: list[list[tuple[int, int]]] = []
    for step in range(STEPS):
        indices, rows = mixture.locate_many(mixture.batch(step, BATCH_ROWS))
        plan.append(list(zip(indices.tolist(), rows.tolist(), strict=True)))
    return plan


def _bare(maps: list[np.ndarray], plan: list[list[tuple[int, int]]], buffer: np.ndarray) -> None:
    for batch in plan:
        for position, (dataset, row) in enumerate(batch):
            buffer[position] = maps[dataset][row]


def _read(datasets: Mapping[str, PackedDataset], mixture: Mixture, buffer: np.ndarray, *, steps: int) -> None:
    mixed = MixedRows(mixture, [datasets[name] for name in mixture.names])
    for first in range(0, steps, STEPS_PLANNED):
        planned = np.arange(first, min(first + STEPS_PLANNED, steps))
        rows = mixed.plan(mixture.batches(planned, BATCH_ROWS))
        for start in range(0, len(rows), BATCH_ROWS):
            mixed.gather(rows, buffer, start=start)


def _stream(datasets: Mapping[str, PackedDataset], mixture: Mixture) -> None:
    ordered = tuple(datasets[name] for name in mixture.names)
    with RowStream(mixture, ordered, batch_rows=BATCH_ROWS, attention="row") as stream:
        for _ in range(STEPS):
            stream.next()


def _compete(floor: Callable[[], None], ours: Callable[[], None]) -> tuple[float, float]:
    """Median CPU seconds of both, measured in turns after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for measured, work in zip(seconds, (floor, ours), strict=True):
            start = time.process_time()
            work()
            if number:
                measured.append(time.process_time() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _line(name: str, seconds: float, ratio: float) -> None:
    print(f"{name:<34}{STEPS * BATCH_ROWS * LENGTH / seconds / 1e6:>14.0f}{ratio:>8.2f}")
