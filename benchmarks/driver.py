"""What the driver of a tokenization takes in memory while it runs, by the number of units.

Rows of real units go through the real two stages of Ray; what the stages do is nothing, because only the driver is
watched: the growth of its largest resident size, each size in a process and a Ray session of its own. Beginning and
finishing are in ``benchmarks.ledger``.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.samples import Source
from tokenize_jobs.plan import ClusterConfig, Units, cut_units
from tokenize_jobs.ray_stages import Row, run_rows
from tokenize_jobs.session import ray_session

SIZES = (1000, 30_000, 1_000_000)
UNIT_SAMPLES, SOURCE_UNITS = 1000, 10


def main() -> None:
    """Print a line a size, then the figures as one JSON object."""
    figures: dict[str, float] = {}
    print(f"{'units':>12}{'seconds':>10}{'units/s':>10}{'driver MiB':>12}")
    for num_units in SIZES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, mib = pool.apply(_run, (num_units,))
        print(f"{num_units:>12,}{seconds:>10.1f}{num_units / seconds:>10.0f}{mib:>12.0f}", flush=True)
        figures |= {f"seconds_{num_units}": round(seconds, 1), f"driver_mib_{num_units}": round(mib)}
    print(json.dumps(figures))


def decode_nothing(row: Row, tasks: Sequence[Units]) -> Row:
    """The first stage: what a unit's row has besides its payload."""
    return {**row, "payload": b"", "error": b"", "decode_s": 0.0}


class EncodeNothing:
    """The second stage: a row of counts as long as a real one."""

    def __init__(self, tasks: Sequence[Units]) -> None:
        self._worker = "node/1"

    def __call__(self, row: Row) -> Row:
        """The row that the driver gets."""
        kept = {name: row[name] for name in ("task", "number", "decode_s", "error")}
        return {**kept, "encode_s": 0.0, "wait_s": 0.0, "device": "cpu", "worker": self._worker}


def _run(num_units: int) -> tuple[float, float]:
    """Seconds between the first and the last row, and MiB that the process grew by after Ray had started."""
    with ray_session(workers=2):
        # What Ray's libraries take is there whatever the size.
        list(_rows(10))
        before = _peak_mib()
        begun = time.perf_counter()
        is_done = np.zeros(num_units, bool)
        for row in _rows(num_units):
            is_done[int(row["number"])] = True
        assert is_done.all()
        return time.perf_counter() - begun, _peak_mib() - before


def _rows(num_units: int) -> Iterator[Row]:
    folder = Path("corpus")
    sources = [
        Source(folder / f"{n:05d}.tar", SOURCE_UNITS * UNIT_SAMPLES) for n in range(-(-num_units // SOURCE_UNITS))
    ]
    units = cut_units(sources, unit_items=UNIT_SAMPLES, limit=num_units * UNIT_SAMPLES)
    rows = units.to_table(np.arange(num_units), task=0)
    # Tasks name every raw file, as the real ones do.
    tasks = [units.sources_only()]
    return run_rows(rows, decode_nothing, EncodeNothing, tasks, cluster=ClusterConfig(), workers=2)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    # By its own name, under which workers find the stages.
    from benchmarks.run import main as run

    sys.exit(run(["driver"]))
