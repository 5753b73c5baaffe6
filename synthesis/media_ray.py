"""Units on a cluster: one Ray Data row a unit, one actor a worker, so that weights are loaded once.

What an actor commits is all that counts: one that is lost takes nothing with it but the unit it had in hand, which Ray,
or the next run, gives to another.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, cast

import pyarrow as pa
import ray.data

from shards.errors import AnyGPTError
from shards.ledger import Entry
from synthesis.media_plugs import open_plugs
from synthesis.media_unit import MediaTask, Slice, make_unit
from tokenize_jobs.session import ray_session

_MAX_BLOCKS = 4096
_COLUMNS = tuple(field.name for field in fields(Slice))


class MediaWorker:
    """Makes one unit after the other; an error of input or config comes back with the row."""

    def __init__(self, task: MediaTask) -> None:
        self._task = task
        self._plugs = open_plugs(task.config, task.output)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the unit that a row names."""
        unit = Slice(*(int(row[name]) for name in _COLUMNS))
        try:
            entry = make_unit(self._task, unit, self._plugs)
        except AnyGPTError as error:
            return {"entry": b"", "error": pickle.dumps(error)}
        return {"entry": pickle.dumps(entry), "error": b""}


def make_on_ray(task: MediaTask, units: Sequence[Slice]) -> Iterator[Entry]:
    """Entries of the units as they are done, in any order.

    Raises:
        AnyGPTError: what a worker raised.
    """
    config = task.config
    rows = pa.table({name: [getattr(unit, name) for unit in units] for name in _COLUMNS})
    size = -(-len(units) // _MAX_BLOCKS)
    blocks = [rows.slice(start, size) for start in range(0, len(units), size)]
    with ray_session(workers=config.workers, address=config.address):
        done = ray.data.from_arrow(blocks).map(
            cast(Any, MediaWorker),
            fn_constructor_args=(task,),
            compute=ray.data.ActorPoolStrategy(size=min(config.workers, len(units)), max_tasks_in_flight_per_actor=2),
            num_cpus=1.0,
            num_gpus=config.worker_gpus or None,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield pickle.loads(row["entry"])
