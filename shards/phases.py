"""Phases of a run: shares that hold from a step on, and the way from one phase's shares to the next one's.

A change is sudden, or spread over ``ramp_steps``: ten stages of shares in between, each in whole thousandths, so that every
stage keeps its shares exactly over at most a thousand rows. Steps count from 1, as in the trainer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shards.errors import ConfigError

RAMP_STAGES = 10
_RAMP_GRAIN = 1000

Shares = Mapping[str, float]
"""Dataset -> part of all rows; they sum to 1."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Shares that hold from a step on.

    Attributes:
        shares: dataset -> part of all rows; they sum to 1.
        first_step: from 1 on; the first phase begins at 1.
        ramp_steps: steps over which the shares change from those before; 0 is at once.
    """

    shares: Shares
    first_step: int = 1
    ramp_steps: int = 0


def changes(phases: Sequence[Phase]) -> Iterator[tuple[int, Shares]]:
    """Every change of shares: the first step that has them, and the shares.

    Raises:
        ConfigError: if the phases do not begin at step 1, or not in the order of their steps.
    """
    _check(phases)
    before: Shares = {}
    for phase in phases:
        stages = min(RAMP_STAGES, phase.ramp_steps)
        for stage in range(stages):
            between = _between(before, phase.shares, (stage + 1) / (stages + 1))
            yield phase.first_step + stage * phase.ramp_steps // stages, between
        yield phase.first_step + phase.ramp_steps, phase.shares
        before = phase.shares


def _check(phases: Sequence[Phase]) -> None:
    firsts = [phase.first_step for phase in phases]
    if not firsts or firsts[0] != 1:
        raise ConfigError(f"mixture: expected a first phase from step 1 on, found phases from {firsts}")
    if phases[0].ramp_steps:
        raise ConfigError(
            "mixture: the first phase has ramp_steps, and no shares before it to change from; leave it out"
        )
    for before, phase in itertools.pairwise(phases):
        if phase.first_step <= before.first_step + before.ramp_steps:
            raise ConfigError(
                f"mixture: expected phases in the order of their steps, found one from step {phase.first_step:,} after one "
                f"from step {before.first_step:,} that takes {before.ramp_steps:,} steps to change"
            )


def _between(before: Shares, after: Shares, part: float) -> dict[str, float]:
    """Shares ``part`` of the way from one to the other, in thousandths that sum to 1 (largest remainders)."""
    names = [*before, *(name for name in after if name not in before)]
    exact = [_RAMP_GRAIN * (before.get(n, 0.0) * (1 - part) + after.get(n, 0.0) * part) for n in names]
    counts = [int(value + 1e-9) for value in exact]
    largest = sorted(range(len(names)), key=lambda number: counts[number] - exact[number])
    for number in largest[: _RAMP_GRAIN - sum(counts)]:
        counts[number] += 1
    return {name: count / _RAMP_GRAIN for name, count in zip(names, counts, strict=True)}
