"""Where the text stages run: in this process, or on Ray; opened when the first unit is missing, and not before.

Ray takes as long to start as our rules take for some thousand calls, so their smaller jobs are done here, however many
workers there are. Calls of an endpoint are waited for, not computed, but their answers are judged by the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from synthesis.calls import CallCounts
from synthesis.config import SynthesisConfig, TextConfig
from synthesis.jobs import STAGES, RunUnits, StagePlan, run_stage, units_in_this_process
from synthesis.jobs_plan import plan_costs

LEAST_CALLS_FOR_RAY = 5_000
"""Of our rules, which need some milliseconds each: 15 s of one core, as much as Ray and its workers need to start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to run units.

    Attributes:
        counts: of the calls so far.
    """

    run_units: RunUnits
    counts: Callable[[], CallCounts]


@dataclass(slots=True)
class _Opened:
    """A place that is opened when it is needed.

    Attributes:
        stack: closes the place.
        session: closes Ray, which may be wanted for longer.
    """

    config: SynthesisConfig
    stack: ExitStack
    session: ExitStack
    place: Place | None = None

    def run_units(self, config: TextConfig, plan: StagePlan) -> Iterator[int]:
        if not plan.missing:
            return
        if self.place is None:
            self.place = self.stack.enter_context(self._open())
        yield from self.place.run_units(config, plan)

    def _open(self) -> AbstractContextManager[Place]:
        if not runs_on_ray(self.config):
            return _here(self.config)
        # Ray takes seconds to import and start.
        from tokenize_jobs.session import ray_session

        media, workers, kept = self.config.media, self.config.workers, self.stack
        if media is not None and media.workers and media.address == self.config.address:
            workers, kept = max(workers, media.workers), self.session
        kept.enter_context(ray_session(workers=workers, address=self.config.address))
        return _on_ray(self.config)

    def counts(self) -> CallCounts:
        return self.place.counts() if self.place is not None else CallCounts()


def run_text(config: SynthesisConfig, *, retry: bool = False, session: ExitStack | None = None) -> dict[str, Any]:
    """All text stages; their reports, and under ``calls`` what was asked in this run.

    Args:
        session: closes Ray, where it was started; None: that is done before this returns.

    Raises:
        AnyGPTError: a config is wrong, a budget is spent, or too much was rejected.
    """
    with ExitStack() as own, ExitStack() as stack:
        opened = _Opened(config, stack, session or own)
        reports: dict[str, Any] = {stage: run_stage(config, stage, opened.run_units, retry=retry) for stage in STAGES}
        return reports | {"calls": opened.counts()}


def runs_on_ray(config: TextConfig) -> bool:
    """Whether Ray does the text stages of a config."""
    if not config.workers:
        return False
    return config.llm.kind != "rules" or sum(cost.calls for cost in plan_costs(config).values()) >= LEAST_CALLS_FOR_RAY


@contextmanager
def _on_ray(config: TextConfig) -> Iterator[Place]:
    from synthesis.jobs_ray import keeper_on_ray

    with keeper_on_ray(config) as (run_units, counts):
        yield Place(run_units, counts)


@contextmanager
def _here(config: TextConfig) -> Iterator[Place]:
    from synthesis.calls_keeper import open_keeper

    keeper = open_keeper(config)
    loop = asyncio.new_event_loop()
    try:
        yield Place(units_in_this_process(keeper.ask, loop), lambda: keeper.counts)
    finally:
        loop.run_until_complete(keeper.close())
        loop.close()
