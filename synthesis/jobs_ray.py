"""Units on Ray: one row of Ray Data a unit, and one actor that makes all calls.

The actor keeps the answers and holds the limits of rate and cost, so they count for all workers together. Workers only
make prompts and judge answers. Nothing but what a unit commits counts, so a worker that is lost costs its unit's work and
no answered call.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data

from shards.errors import AnyGPTError
from synthesis.calls import Answer, CallCounts, Request
from synthesis.calls_keeper import open_keeper
from synthesis.config import TextConfig, text_json
from synthesis.jobs import RunUnits, StagePlan, do_unit

_MOST_CALLS = 10_000


class KeeperActor:
    """The one keeper of a run, in a process of its own."""

    def __init__(self, config: str) -> None:
        self._keeper = open_keeper(TextConfig.model_validate_json(config))

    async def ask(self, request: Request) -> Answer | AnyGPTError:
        """An answer, or the error that came instead: Ray would wrap a raised one."""
        try:
            return await self._keeper.ask(request)
        except AnyGPTError as error:
            return error

    async def counts(self) -> CallCounts:
        """What was asked so far."""
        return self._keeper.counts


@contextmanager
def keeper_on_ray(config: TextConfig) -> Iterator[tuple[RunUnits, Callable[[], CallCounts]]]:
    """The actor of a run, as what does units and what counts calls; a session must be open."""
    # Ray's types know no options of a class that is not decorated.
    remote: Any = ray.remote
    keeper = remote(num_cpus=0, max_concurrency=_MOST_CALLS)(KeeperActor).remote(text_json(config))
    try:
        yield units_on_ray(keeper), lambda: ray.get(keeper.counts.remote())
    finally:
        # The session may go on; what the keeper answered is on disk, and the folder of answers is let go with it.
        ray.kill(keeper)


def units_on_ray(keeper: Any) -> RunUnits:
    """Units done by the config's number of Ray's workers."""

    def run(config: TextConfig, plan: StagePlan) -> Iterator[int]:
        if not plan.missing:
            return
        blocks = [pa.table({"number": [number], "expected": [plan.prints[number]]}) for number in plan.missing]
        arguments = {"config": text_json(config), "stage": plan.stage, "keeper": keeper}
        done = ray.data.from_arrow(_merged(blocks)).map(
            cast(Any, _do_row), fn_kwargs=arguments, num_cpus=1.0, concurrency=config.workers
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield int(row["number"])

    return run


def _merged(blocks: Sequence[pa.Table], *, most: int = 4096) -> list[pa.Table]:
    """At most so many blocks; one unit each until there are thousands, so that no worker has two while another has none."""
    size = -(-len(blocks) // most)
    return [pa.concat_tables(blocks[start : start + size]) for start in range(0, len(blocks), size)]


def _do_row(row: dict[str, Any], config: str, stage: str, keeper: Any) -> dict[str, Any]:
    """Do the unit that a row names; an error that stops the run comes back with the row."""

    async def ask(request: Request) -> Answer:
        outcome = await keeper.ask.remote(request)
        if isinstance(outcome, AnyGPTError):
            raise outcome
        return outcome

    number = int(row["number"])
    try:
        asyncio.run(do_unit(TextConfig.model_validate_json(config), stage, number, row["expected"], ask))
    except AnyGPTError as error:
        return {"number": number, "error": pickle.dumps(error)}
    return {"number": number, "error": b""}
