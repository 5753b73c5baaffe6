"""What a mixture comes to before anything is read: rows, tokens and epochs of every dataset, and what each rank sees.

Everything follows from the shares, the sizes and the number of steps, so a plan needs manifests, or sizes alone: no row is
read and nothing is drawn. Only what ranks get is measured, over the first steps, because that is a promise of
:mod:`shards.dealing` which a plan can show to be kept.

Tokens are estimates: rows read times the mean tokens of a row of that dataset. They are exact after whole epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.errors import ConfigError
from shards.mixture import Mixture
from shards.schedule import Schedule, position_of

_EXAMINED_ROWS = 1_000_000
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True, slots=True)
class Holding:
    """What a dataset holds.

    Attributes:
        num_rows: its packed rows.
        tokens: modality -> ids that are no padding, over all rows; empty where it is not known.
    """

    num_rows: int
    tokens: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """What a run reads of one dataset.

    Attributes:
        share: part of all rows of the run, as it comes out.
        num_rows: rows there are.
        rows_read: rows of the run, repeats included.
        first_repeat: step that reads the first row for the second time; None if none does.
        left_before: step from which its cap keeps it out; None if it never does.
        tokens: modality -> ids read, padding not counted.
    """

    name: str
    share: float
    num_rows: int
    rows_read: int
    epochs: float
    first_repeat: int | None
    left_before: int | None
    tokens: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StretchPlan:
    """Constant shares from a step on; any ``period`` rows in a row hold them exactly."""

    first_step: int
    period: int
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RankCheck:
    """What each of some ranks read in the first steps.

    Attributes:
        rows: rows of a rank in a step.
        steps: how many steps were looked at.
        farthest: most rows by which any rank was off the shares in any dataset at the end of any step.
        exact_after: steps after which every rank has had the shares exactly, for the first time; None: not in these steps.
    """

    world_size: int
    rows: int
    steps: int
    farthest: float
    exact_after: int | None


@dataclass(frozen=True, slots=True)
class MixPlan:
    """A run's data.

    Attributes:
        divisors: numbers of ranks over which a global batch divides.
    """

    steps: int
    batch_rows: int
    sequence_length: int
    datasets: tuple[DatasetPlan, ...]
    stretches: tuple[StretchPlan, ...]
    divisors: tuple[int, ...]
    ranks: tuple[RankCheck, ...]

    @property
    def slots(self) -> int:
        """Places for ids, padding included."""
        return self.steps * self.batch_rows * self.sequence_length

    @property
    def tokens(self) -> dict[str, float]:
        """Modality -> ids read, over all datasets."""
        return _added(dataset.tokens for dataset in self.datasets)


def rows_of(tokens: float, *, sequence_length: int, fill: float = 1.0) -> int:
    """Rows that so many ids fill, when packing leaves the rest of ``fill`` empty."""
    return max(1, math.ceil(tokens / (sequence_length * fill)))


def plan_mix(
    schedule: Schedule,
    holdings: Mapping[str, Holding],
    *,
    steps: int,
    sequence_length: int,
    world_sizes: Sequence[int] = (),
) -> MixPlan:
    """What ``steps`` steps of a schedule read.

    Args:
        holdings: of every dataset of the schedule.
        world_sizes: numbers of ranks to look at.

    Raises:
        ConfigError: a number of ranks over which a global batch does not divide.
    """
    size = schedule.batch_rows
    divisors = tuple(count for count in range(1, size + 1) if size % count == 0)
    # Of the first shares; others are dealt by the same rule.
    ranks = tuple(
        check_ranks(schedule.stretches[0].mixture, count, batch_rows=size, steps=steps) for count in world_sizes
    )
    begun = [stretch for stretch in schedule.stretches if stretch.start < steps * size]
    stretches = tuple(
        StretchPlan(
            stretch.start // size + 1,
            stretch.mixture.period,
            {name: stretch.mixture.shares[name] for name in stretch.mixture.names},
        )
        for stretch in begun
    )
    datasets = tuple(_plan_dataset(schedule, name, holdings[name], steps) for name in schedule.names)
    return MixPlan(steps, size, sequence_length, datasets, stretches, divisors, ranks)


def _plan_dataset(schedule: Schedule, name: str, holding: Holding, steps: int) -> DatasetPlan:
    stop = steps * schedule.batch_rows
    read = schedule.rows_drawn(stop)[name]
    repeat = position_of(schedule, name, schedule.sizes[name], stop=stop)
    return DatasetPlan(
        name,
        share=read / stop,
        num_rows=holding.num_rows,
        rows_read=read,
        epochs=read / holding.num_rows,
        first_repeat=None if repeat is None else repeat // schedule.batch_rows + 1,
        left_before=_left_before(schedule, name, stop),
        tokens={modality: count * read / holding.num_rows for modality, count in holding.tokens.items()},
    )


def _left_before(schedule: Schedule, name: str, stop: int) -> int | None:
    """Step from which a cap keeps a dataset out although its phase wants it."""
    for stretch in schedule.stretches:
        if stretch.start >= stop:
            return None
        step = stretch.start // schedule.batch_rows + 1
        wanted = [phase for phase in schedule.phases if phase.first_step <= step][-1].shares
        if name in schedule.max_epochs and wanted.get(name) and name not in stretch.mixture.names:
            return step
    return None


def check_ranks(mixture: Mixture, world_size: int, *, batch_rows: int, steps: int) -> RankCheck:
    """Count what every rank reads of a mixture, step by step.

    Raises:
        ConfigError: if a global batch does not divide over the ranks.
    """
    if world_size < 1 or batch_rows % world_size:
        raise ConfigError(f"a batch of {batch_rows} rows does not divide over {world_size} ranks; choose a divisor")
    rows = batch_rows // world_size
    # The deal promises exactness after a cycle, or after as many cycles as there are ranks.
    cycle = math.lcm(batch_rows, mixture.period) // batch_rows
    looked = max(1, min(steps, 2 * cycle * world_size, _EXAMINED_ROWS // batch_rows))
    names = len(mixture.names)
    counts = np.empty((world_size, looked, names), np.int64)
    for rank in range(world_size):
        positions = mixture.batches(np.arange(looked), batch_rows, rank=rank, world_size=world_size)
        datasets = mixture.locate_many(positions.reshape(-1))[0].reshape(looked, rows)
        counts[rank] = (datasets[:, :, None] == np.arange(names)).sum(axis=1)
    # Rows times the period, so that being exact is a comparison of whole numbers.
    wanted = np.array([round(mixture.shares[name] * mixture.period) for name in mixture.names])
    expected = np.arange(1, looked + 1)[:, None] * rows * wanted
    off = np.abs(counts.cumsum(axis=1) * mixture.period - expected)
    exact = np.flatnonzero((off == 0).all(axis=(0, 2)))
    first_exact = int(exact[0]) + 1 if exact.size else None
    return RankCheck(world_size, rows, looked, float(off.max()) / mixture.period, first_exact)


def format_plan(plan: MixPlan, title: str) -> str:
    """A plan for a terminal."""
    rows = plan.steps * plan.batch_rows
    return "\n".join(
        [
            f"{title}: {plan.steps:,} steps of {plan.batch_rows:,} rows of {plan.sequence_length:,} ids "
            f"({rows:,} rows, {_amount(plan.slots)} token slots)",
            "",
            *_dataset_table(plan),
            "",
            *_token_lines(plan),
            *_stretch_lines(plan),
            *_rank_lines(plan),
        ]
    )


def _dataset_table(plan: MixPlan) -> list[str]:
    width = max(len("dataset"), *(len(dataset.name) for dataset in plan.datasets))
    lines = [f"{'dataset':<{width}}   share         rows    rows read   epochs  first repeat  tokens read"]
    for one in plan.datasets:
        repeat = f"step {one.first_repeat:,}" if one.first_repeat else "none"
        tokens = ", ".join(f"{name} {_amount(count)}" for name, count in one.tokens.items()) or "not known"
        left = f"; capped, leaves before step {one.left_before:,}" if one.left_before else ""
        lines.append(
            f"{one.name:<{width}}  {one.share:>6.4f} {one.num_rows:>12,} {one.rows_read:>12,} {one.epochs:>8.2f}  "
            f"{repeat:>12}  {tokens}{left}"
        )
    return lines


def _token_lines(plan: MixPlan) -> list[str]:
    total = sum(plan.tokens.values())
    if not all(dataset.tokens for dataset in plan.datasets):
        return ["tokens   not known for every dataset"]
    parts = [f"{name} {_amount(count)} ({count / total:.1%})" for name, count in sorted(plan.tokens.items())]
    return [f"tokens   {', '.join(parts)}; {total / plan.slots:.1%} of the slots are filled"]


def _stretch_lines(plan: MixPlan) -> list[str]:
    lines: list[str] = []
    for stretch in plan.stretches:
        shares = ""
        if len(plan.stretches) > 1:
            shares = ": " + ", ".join(f"{name} {share:.4g}" for name, share in stretch.shares.items())
        lines.append(f"shares   from step {stretch.first_step:,} on exact in any {stretch.period:,} rows{shares}")
    return lines


def _rank_lines(plan: MixPlan) -> list[str]:
    lines = [f"ranks    a batch divides over {', '.join(map(str, plan.divisors))}"]
    for check in plan.ranks:
        after = f"exact after {check.exact_after:,}" if check.exact_after else "nowhere exact"
        lines.append(
            f"         {check.world_size} ranks: {check.rows:,} rows each a step; in {check.steps:,} steps {after}, "
            f"never more than {check.farthest:.2f} rows off the shares"
        )
    return lines


def _amount(number: float) -> str:
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return f"{number:.4g}"


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0.0) + count
    return total
