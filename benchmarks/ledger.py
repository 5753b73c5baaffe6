"""What it costs to begin and to finish: 300 M samples in 300,000 units, and a million units, on paper.

Writes the ledger and the (empty) shards of such a dataset into a temporary folder, half of it done, with real file names
and real entries; then plans, looks up and chooses as ``anygpt-tokenize`` does. Then writes the other half, sums up and
writes the manifest. Memory is the growth of a process's largest resident size, each measured in a process of its own; what
the driver takes in between is in ``benchmarks.driver``.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.samples import Source
from shards.ledger import FOLD_UNITS, LEDGER, Entry, commit_entry, fold_group, read_entries, unit_name
from shards.manifest import ShardEntry, write_manifest
from shards.summary import summarize
from tokenize_jobs.ledger import planned_entries
from tokenize_jobs.plan import Units, cut_units
from tokenize_jobs.report import make_manifest

SHARD_SAMPLES, UNIT_SAMPLES = 10_000, 1000
SIZES = (300_000, 1_000_000)
_UNFOLDED = FOLD_UNITS - 1


def main() -> None:
    """Print a line a size, then the figures as one JSON object."""
    figures: dict[str, float] = {}
    head = f"{'units':>10}{'samples':>15}{'plan s':>9}{'look up s':>11}{'rows s':>9}{'start s':>9}{'memory MiB':>12}"
    print(f"{head}{'finish s':>10}{'memory MiB':>12}")
    for num_units in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _begin(Path(folder), num_units)
            half = num_units // 2 + _UNFOLDED
            _write(Path(folder), num_units, 0, half)
            # A fresh interpreter, so that the memory is that of starting and not of writing.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                plan_s, look_up_s, rows_s, mib = pool.apply(_start, (Path(folder), num_units))
            _write(Path(folder), num_units, half, num_units)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                finish_s, finish_mib = pool.apply(_finish, (Path(folder), num_units))
        start_s = plan_s + look_up_s + rows_s
        samples = num_units * UNIT_SAMPLES
        line = (
            f"{num_units:>10,}{samples:>15,}{plan_s:>9.2f}{look_up_s:>11.2f}{rows_s:>9.2f}{start_s:>9.2f}{mib:>12.0f}"
        )
        print(f"{line}{finish_s:>10.1f}{finish_mib:>12.0f}", flush=True)
        figures |= {
            f"start_s_{num_units}": round(start_s, 2),
            f"start_mib_{num_units}": round(mib, 1),
            f"finish_s_{num_units}": round(finish_s, 1),
            f"finish_mib_{num_units}": round(finish_mib, 1),
        }
    print(json.dumps(figures))


def _plan(folder: Path, num_units: int) -> Units:
    per_shard = SHARD_SAMPLES // UNIT_SAMPLES
    sources = [Source(folder / "root" / f"{n:05d}.tar", SHARD_SAMPLES) for n in range(num_units // per_shard)]
    return cut_units(sources, unit_items=UNIT_SAMPLES)


def _begin(folder: Path, num_units: int) -> None:
    """The corpus's files, empty, and the folders of its dataset."""
    for name in ("root", "output/shards", "output/rejects", f"output/{LEDGER}"):
        (folder / name).mkdir(parents=True)
    for source in _plan(folder, num_units).sources:
        source.path.touch()


def _write(folder: Path, num_units: int, start: int, stop: int) -> None:
    """Shards and entries of some units; whole groups are folded, as the job does."""
    units = _plan(folder, num_units)
    output = folder / "output"
    for number in range(start, stop):
        (output / "shards" / f"{unit_name(number)}.parquet").touch()
        unit = units[number]
        shard = ShardEntry(f"shards/{unit.name}.parquet", 990, 0, "0" * 64, {"image": 32 * 990})
        entry = Entry(
            unit.name, "f" * 16, unit.source.path.name, 0, unit.start, unit.stop, 1000, 990,
            rejected={"image_truncated": 10}, tokens=shard.tokens, images=990, shard=shard,
        )  # fmt: skip
        _commit_without_waiting(output, entry)
        if number % FOLD_UNITS == FOLD_UNITS - 1:
            fold_group(output, number + 1 - FOLD_UNITS)


def _commit_without_waiting(output: Path, entry: Entry) -> None:
    """As the job does, without waiting for the disk: half a million times that would take an hour."""
    import os

    fsync = os.fsync
    os.fsync = lambda _: None
    try:
        commit_entry(output, entry)
    finally:
        os.fsync = fsync


def _start(folder: Path, num_units: int) -> tuple[float, float, float, float]:
    """Seconds of planning, of looking up what is done, of making the rows of what is not; and MiB."""
    before = _peak_mib()
    begun = time.perf_counter()
    units = _plan(folder, num_units)
    planned = time.perf_counter()
    is_done = np.zeros(len(units), bool)
    for entry, is_there in planned_entries(units, folder / "output", folder / "root", "f" * 16):
        is_done[entry.number] = is_there
    looked_up = time.perf_counter()
    rows: pa.Table = units.to_table(np.flatnonzero(~is_done), task=0)
    made = time.perf_counter()
    assert len(rows) == num_units - num_units // 2 - _UNFOLDED, len(rows)
    return planned - begun, looked_up - planned, made - looked_up, _peak_mib() - before


def _finish(folder: Path, num_units: int) -> tuple[float, float]:
    """Seconds and MiB of summing up a whole ledger, and of writing the manifest."""
    before = _peak_mib()
    begun = time.perf_counter()
    summary = summarize(read_entries(folder / "output"))
    assert summary.sums["inputs"] == num_units * UNIT_SAMPLES, summary.sums
    facts = {"config": {}}
    manifest = make_manifest("paper", summary, fingerprint="f" * 16, facts=facts, tokenizers={"image": "a" * 16})
    write_manifest(folder / "output", manifest)
    return time.perf_counter() - begun, _peak_mib() - before


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
