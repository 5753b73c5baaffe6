"""Pass one on a cluster: one Ray Data row a unit, a plain task each; what a task commits is all that counts.

Nothing is kept between units, so a task that is lost is simply run again, by Ray now or by the next call.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
import torch

from shards.errors import AnyGPTError
from tokenize_jobs.dedup_units import SignatureTask, sign_unit
from tokenize_jobs.session import ray_session

_MAX_BLOCKS = 4096


def sign_row(row: dict[str, Any], tasks: Sequence[SignatureTask]) -> dict[str, Any]:
    """Sign the unit that a row names; an error of input or config comes back with the row."""
    torch.set_num_threads(1)
    task = tasks[int(row["task"])]
    try:
        sign_unit(task, task.units.from_row(row), watched=True)
    except AnyGPTError as error:
        return {"task": row["task"], "number": row["number"], "error": pickle.dumps(error)}
    return {"task": row["task"], "number": row["number"], "error": b""}


def sign_on_ray(
    tasks: Sequence[SignatureTask], missing: Sequence[npt.NDArray[np.int64]], *, workers: int, address: str
) -> Iterator[tuple[int, int]]:
    """Sign units on as many workers; yields (task, unit) as they are done, in any order.

    Args:
        missing: numbers of the units to do, for every task.
    """
    rows = pa.concat_tables(
        [task.units.to_table(numbers, task=n) for n, (task, numbers) in enumerate(zip(tasks, missing, strict=True))]
    )
    if not len(rows):
        return
    size = -(-len(rows) // _MAX_BLOCKS)
    blocks = [rows.slice(start, size) for start in range(0, len(rows), size)]
    # The tail is not waited for by one worker: Ray hands out blocks, and a block is one unit until there are thousands.
    with ray_session(workers=workers, address=address):
        done = ray.data.from_arrow(blocks).map(
            cast(Any, sign_row), fn_kwargs={"tasks": [task.for_workers() for task in tasks]}, num_cpus=1.0
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield int(row["task"]), int(row["number"])
