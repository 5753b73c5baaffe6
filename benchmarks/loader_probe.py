"""Measurements of the trainer's stream, each in a process of its own, started when everything was imported (:func:`probe`).

The processes are forked from one that has imported this module and nothing else was done in: they begin as a trainer does,
without the ten seconds that torch and transformers take.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from shards.mixture import Mixture
from shards.reader import PackedDataset, open_packed
from train.stream import RowStream

BATCH_ROWS = 8
_SAMPLED_STEPS = 100


def probe(measured: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """What one of the functions below returns in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
        return executor.submit(measured, **arguments).result()


def first_batch(folders: Mapping[str, str], shares: Mapping[str, float], step: int) -> dict[str, Any]:
    """Seconds, of the clock and of the CPU, from folder names to the batch of a step, its loss masks included."""
    start, cpu = time.perf_counter(), time.process_time()
    mixture, datasets = open_mixture(folders, shares)
    with RowStream(mixture, datasets, batch_rows=BATCH_ROWS, attention="document", first_step=step) as stream:
        stream.next()
        return {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}


def memory(folders: Mapping[str, str], shares: Mapping[str, float], steps: int) -> dict[str, Any]:
    """Most anonymous memory (no mapped files) during so many steps, in MiB above what it was after the imports."""
    before = anonymous_mib()
    most = 0.0
    start = time.perf_counter()
    mixture, datasets = open_mixture(folders, shares)
    with RowStream(mixture, datasets, batch_rows=BATCH_ROWS, attention="document") as stream:
        for step in range(steps):
            stream.next()
            if step % _SAMPLED_STEPS == 0:
                most = max(most, anonymous_mib())
        most = max(most, anonymous_mib())
    rows = sum(dataset.num_rows for dataset in datasets)
    return {"mib": most - before, "imports_mib": before, "rows": rows, "seconds": time.perf_counter() - start}


def open_mixture(folders: Mapping[str, str], shares: Mapping[str, float]) -> tuple[Mixture, tuple[PackedDataset, ...]]:
    """A mixture of datasets and the datasets in its order."""
    datasets = {name: open_packed(Path(folder)) for name, folder in folders.items()}
    mixture = Mixture(shares, {name: dataset.num_rows for name, dataset in datasets.items()})
    return mixture, tuple(datasets[name] for name in mixture.names)


def anonymous_mib() -> float:
    """Memory of this process that is no mapped file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024
