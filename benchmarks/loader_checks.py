"""Promises of the loader that are counted, not timed: the trainer's stream over small datasets, read row by row."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.loader_data import SHARES, write_datasets
from benchmarks.loader_probe import open_mixture
from shards.errors import AnyGPTError
from shards.mixed_rows import MixedRows
from shards.mixture import Mixture
from shards.reader import PackedDataset, open_packed
from train.stream import RowStream

LENGTH = 64
# 24,000 rows of a mixture by SHARES read a and c once, d twice, five sixths of b.
SIZES = {"a": 12_000, "b": 7_200, "c": 3_600, "d": 1_200}
EPOCH, BATCH_ROWS = 24_000, 24
WORLD_SIZES = (2, 4, 1, 3)
SWITCHES = (0, 137, 500, 811, EPOCH // BATCH_ROWS)
"""Steps between which the number of ranks is the same."""
FLIPS = 200
_BATCHES_AND_WORLDS = ((480, 2), (480, 8), (480, 40), (24, 3), (64, 16), (8, 8))


@dataclass(frozen=True, slots=True)
class Elastic:
    """Whether every step read what one rank without interruption reads, and rows read more or less often than due."""

    same_batches: bool
    wrong_rows: int
    rows: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Rows off the shares at worst: in windows of one period, and by (batch, ranks) per rank in cycles and in a period."""

    worst_global: int
    windows: int
    per_rank: Mapping[tuple[int, int], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows read again before their dataset was read to its end."""

    early: int
    rows: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Damaged copies of a shard, all rows of each read.

    Attributes:
        noticed: flips that raised an error of ours.
        harmless: flips that did not and changed nothing that is read.
        named: errors whose message has the file's name.
        messages: what was done to the file -> an error.
    """

    flips: int
    noticed: int
    harmless: int
    named: int
    truncated: bool
    messages: Mapping[str, str]


def elastic() -> Elastic:
    """An epoch of a weighted mixture on changing numbers of ranks, against one rank that is never interrupted."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_datasets(folder, SIZES, length=LENGTH)
        mixture, datasets = open_mixture({name: str(folder / name) for name in SIZES}, SHARES)
        whole = list(_global_batches(mixture, datasets, range(EPOCH // BATCH_ROWS), 1))
        parts: list[list[bytes]] = []
        for world_size, (first, last) in zip(WORLD_SIZES, pairwise(SWITCHES), strict=True):
            parts += _global_batches(mixture, datasets, range(first, last), world_size)
    read = Counter(row for batch in parts for row in batch)
    # Row i of dataset d begins with the ids (d, i): how often each is due follows from the shares alone.
    wrong = 0
    by_dataset = [Counter[int]() for _ in SIZES]
    for row, count in read.items():
        dataset, number = np.frombuffer(row, np.uint16, 2).tolist()
        by_dataset[dataset][number] += count
    for found, (name, size) in zip(by_dataset, SIZES.items(), strict=True):
        due, rest = divmod(round(SHARES[name] * EPOCH), size)
        often = sum(found[number] == due + 1 for number in range(size))
        wrong += sum(found[number] not in (due, due + 1) for number in range(size)) + abs(often - rest)
    return Elastic(parts == whole, wrong, sum(read.values()))


def _global_batches(
    mixture: Mixture, datasets: tuple[PackedDataset, ...], steps: range, world_size: int
) -> Iterator[list[bytes]]:
    """The rows of each step, of all ranks together, in an order of their own; the ranks resume at the first step."""
    streams = [
        RowStream(
            mixture,
            datasets,
            batch_rows=BATCH_ROWS,
            attention="row",
            first_step=steps.start + 1,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for _ in steps:
        yield sorted(row.tobytes() for stream in streams for row in stream.next().token_ids)
    for stream in streams:
        stream.__exit__(None, None, None)


def shares() -> Shares:
    """Counts of rows in windows, sliding over ten periods of a mixture of paper-like shares."""
    parts = {"mmc4": 0.05, "images": 0.30, "mls": 0.13, "speech": 0.27, "music": 0.25}
    mixture = Mixture(parts, dict.fromkeys(parts, 10_000_019))
    datasets, _ = mixture.locate_many(np.arange(11 * mixture.period))
    worst = _worst(datasets, mixture, mixture.period)
    return Shares(
        round(worst),
        10 * mixture.period + 1,
        {(batch, world): _per_rank(mixture, batch, world) for batch, world in _BATCHES_AND_WORLDS},
    )


def _per_rank(mixture: Mixture, batch: int, world_size: int) -> tuple[int, float]:
    """The worst rank's rows off in its part of whole cycles, from any step on, and in its part of any one period."""
    cycle = math.lcm(batch, mixture.period)
    counts = [round(part * cycle) for part in mixture.shares.values()]
    # Where a cycle's rows of a dataset do not divide over the ranks, they change places for so many cycles.
    cycles = 1 if not any(count % world_size for count in counts) else world_size
    steps = np.arange((2 * cycles + 1) * cycle // batch)
    whole, within = 0.0, 0.0
    for rank in range(world_size):
        positions = mixture.batches(steps, batch, rank=rank, world_size=world_size).reshape(-1)
        datasets, _ = mixture.locate_many(positions)
        rows = batch // world_size
        start = cycles * cycle // world_size
        whole = max(whole, _worst(datasets[: 2 * start], mixture, start, step=start))
        if cycles == 1:
            whole = max(whole, _worst(datasets, mixture, start, step=rows))
        within = max(within, _worst(datasets, mixture, max(1, mixture.period // world_size)))
    return round(whole), round(within, 2)


def _worst(datasets: np.ndarray, mixture: Mixture, window: int, *, step: int = 1) -> float:
    """Rows that any dataset is off its share in a window, at worst; windows begin at every ``step``-th row."""
    worst = 0.0
    for index, part in enumerate(mixture.shares.values()):
        read = np.concatenate([[0], np.cumsum(datasets == index)])
        found = (read[window:] - read[:-window])[::step]
        worst = max(worst, float(np.abs(found - part * window).max()))
    return round(worst, 6)


def repeats() -> Repeats:
    """Rows of a dataset that come again within an epoch of it; the largest dataset is read twice."""
    mixture = Mixture(SHARES, SIZES)
    stop = 2 * max(math.ceil(size / SHARES[name]) for name, size in SIZES.items())
    datasets, rows = mixture.locate_many(np.arange(stop))
    early = 0
    for index, name in enumerate(mixture.names):
        read = rows[datasets == index]
        for start in range(0, len(read), SIZES[name]):
            epoch = read[start : start + SIZES[name]]
            early += len(epoch) - len(np.unique(epoch))
    return Repeats(early, stop)


def damage() -> Damage:
    """Flip single bits anywhere in a shard, and cut it; the default checks, which are made while rows are read."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_datasets(folder, {"whole": 400}, length=LENGTH)
        content = (folder / "whole" / "shard-00000.arrow").read_bytes()
        expected = _read_all(folder / "whole")
        rng = np.random.default_rng(0)
        noticed = harmless = named = 0
        messages: dict[str, str] = {}
        for number, place in enumerate(rng.integers(0, len(content), FLIPS).tolist()):
            broken = bytearray(content)
            broken[place] ^= 1 << int(rng.integers(8))
            problem, found = _read_damaged(folder, f"flip-{number}", bytes(broken))
            noticed += problem is not None
            named += problem is not None and f"flip-{number}" in problem
            harmless += problem is None and found == expected
        broken = bytearray(content)
        broken[content.index(expected[300][: 2 * LENGTH])] ^= 1
        messages["one bit of row 300"] = _read_damaged(folder, "bit", bytes(broken))[0] or "nothing"
        cut, _ = _read_damaged(folder, "cut", content[: len(content) * 6 // 10])
        messages["cut to 60 %"] = cut or "nothing"
    return Damage(FLIPS, noticed, harmless, named, cut is not None, messages)


def _read_damaged(folder: Path, name: str, content: bytes) -> tuple[str | None, list[bytes]]:
    """A copy of the dataset with other bytes in its shard: the error that reading it raises, or what was read."""
    copy = folder / name
    shutil.copytree(folder / "whole", copy)
    (copy / "shard-00000.arrow").write_bytes(content)
    try:
        return None, _read_all(copy)
    except AnyGPTError as error:
        return str(error).replace(f"{folder}/", ""), []


def _read_all(folder: Path) -> list[bytes]:
    """Everything a trainer reads of a dataset, row by row."""
    dataset = open_packed(folder)
    mixture = Mixture({"whole": 1.0}, {"whole": dataset.num_rows})
    mixed = MixedRows(mixture, [dataset])
    buffer = np.empty((1, dataset.sequence_length), dataset.vocabulary.dtype)
    found: list[bytes] = []
    for row in range(dataset.num_rows):
        mixed.gather(mixed.find(np.array([0]), np.array([row])), buffer)
        spans = dataset.loss_spans(row).tobytes() + dataset.document_starts(row).tobytes()
        found.append(buffer.tobytes() + spans + dataset.num_tokens([row]).tobytes())
    return found
