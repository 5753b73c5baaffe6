"""Shares that change with the step, still as a pure function of the position.

A run is cut into *stretches* of constant shares, each a :class:`~shards.mixture.Mixture` that begins at a global batch.
A dataset goes on where it was: the n-th row it gives is row n of its own endless sequence (a fresh permutation every
epoch) whatever the shares are by then, so no row is repeated before its set is exhausted, across changes too. How many
rows it had given before a stretch is a formula (:meth:`~shards.mixture.Mixture.rows_drawn`), never a loop over steps.

``max_epochs`` caps how often a dataset is read. A plan that breaks a cap is refused before the first step, with the
numbers; or the dataset leaves before the first global batch that would break it and the others take its share in
proportion: one more stretch, found when the plan is made. Since a stretch begins with a whole batch, a dataset that
leaves keeps back less than one batch's worth of rows.

Steps of phases (:mod:`shards.phases`) count from 1, as in the trainer: step k reads positions
``[(k - 1) * batch_rows, k * batch_rows)``. With one phase and no cap this is the mixture itself, fingerprint included.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError
from shards.manifest import fingerprint
from shards.mixture import Mixture
from shards.permutation import Int64s
from shards.phases import Phase, Shares, changes
from shards.row_order import RowOrder, as_positions
from shards.windows import Windows

WhenExhausted = Literal["refuse", "drop"]
"""What becomes of a plan that reads a dataset more often than its cap: no plan, or the dataset leaves."""

_NO_END = 2**40
"""Steps; more than any run has."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions of constant shares.

    Attributes:
        start: its first position, the beginning of a global batch.
        mixture: asked for positions counted from ``start``.
        given: rows each dataset of the whole schedule gave before.
    """

    start: int
    mixture: Mixture
    given: Mapping[str, int]


@dataclass(frozen=True)
class Schedule:
    """Phases of a run; answers as a :class:`~shards.mixture.Mixture` does, over all of them.

    Attributes:
        phases: in the order of their steps.
        sizes: dataset -> its number of rows, the same in all phases. A set that grew is another dataset.
        batch_rows: rows of a global batch.
        seed: another seed is another order of the same rows.
        steps: length of the run, within which caps are kept. The last shares go on beyond it, for whoever reads ahead.
        max_epochs: dataset -> how often it may be read at most.
        windows: of the datasets that are read a few files at a time, as in a mixture.
        names: datasets with a share in any phase, in order of appearance.
        stretches: what the phases came to.

    Raises:
        ConfigError: phases out of order, unknown names, or a cap that the plan breaks.
    """

    phases: Sequence[Phase]
    sizes: Mapping[str, int]
    batch_rows: int
    seed: int = 0
    steps: int | None = None
    max_epochs: Mapping[str, float] = field(default_factory=dict[str, float])
    when_exhausted: WhenExhausted = "refuse"
    windows: Mapping[str, Windows] = field(default_factory=dict[str, Windows])
    names: tuple[str, ...] = field(init=False)
    stretches: tuple[Stretch, ...] = field(init=False)
    _starts: Int64s = field(init=False, repr=False)  # (stretches,)
    _tables: tuple[_Table, ...] = field(init=False, repr=False)
    _order: RowOrder = field(init=False, repr=False)  # a dataset gives its rows in one order in any company

    def __post_init__(self) -> None:
        _check(self)
        names = tuple(dict.fromkeys(name for phase in self.phases for name, share in phase.shares.items() if share))
        object.__setattr__(self, "names", names)
        self._settle(tuple(_stretches(self, {})))
        object.__setattr__(self, "_order", RowOrder(names, self.sizes, self.seed, self.windows))
        limits = {name: int(cap * self.sizes[name]) for name, cap in self.max_epochs.items() if name in names}
        if limits and self.when_exhausted == "refuse":
            _refuse_broken_caps(self, limits)
        elif limits:
            self._settle(tuple(_stretches(self, limits)))

    def _settle(self, stretches: tuple[Stretch, ...]) -> None:
        object.__setattr__(self, "stretches", stretches)
        object.__setattr__(self, "_starts", np.array([stretch.start for stretch in stretches], np.int64))
        object.__setattr__(self, "_tables", tuple(_table(stretch, self.names) for stretch in stretches))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides which row is read when; of one stretch, those of its mixture."""
        return self.fingerprint_until(None)

    def fingerprint_until(self, stop: int | None) -> str:
        """:attr:`fingerprint` of positions ``[0, stop)``.

        Schedules that agree in it read the same rows until then: a run may be continued at ``stop`` under another plan of
        what follows.
        """
        begun = self._begun(stop)
        if len(begun) == 1:
            return begun[0].mixture.fingerprint
        return fingerprint([[stretch.start, stretch.mixture.fingerprint] for stretch in begun])

    def names_until(self, stop: int) -> tuple[str, ...]:
        """Datasets with a share anywhere in positions ``[0, stop)``, in the order of ``names``."""
        found = {name for stretch in self._begun(stop) for name in stretch.mixture.names}
        return tuple(name for name in self.names if name in found)

    def _begun(self, stop: int | None) -> list[Stretch]:
        return [stretch for stretch in self.stretches if stop is None or stretch.start < max(stop, 1)]

    def locate(self, position: int) -> tuple[str, int]:
        """Name of the dataset and the row to read at ``position``."""
        datasets, rows = self.locate_many(np.array([position], np.int64))
        return self.names[int(datasets[0])], int(rows[0])

    def locate_many(self, positions: npt.ArrayLike) -> tuple[Int64s, Int64s]:
        """:meth:`locate` for many positions at once.

        Args:
            positions: (n,) from 0 on, in any order.

        Returns:
            (n,) indices into ``names`` and (n,) rows of those datasets.

        Raises:
            IndexError: if a position is negative.
        """
        wanted = as_positions(positions)
        datasets, nth = np.empty_like(wanted), np.empty_like(wanted)
        for number, chosen in self._by_stretch(wanted):
            found, ranks = self._tables[number].places(wanted[chosen] - self.stretches[number].start)
            datasets[chosen], nth[chosen] = found, ranks
        return datasets, self._order.rows(datasets, nth)

    def _by_stretch(self, positions: Int64s) -> Iterator[tuple[int, slice | npt.NDArray[np.bool_]]]:
        """Numbers of the stretches that have these positions, and which of the positions each has."""
        if not positions.size:
            return
        ends = np.array([positions.min(), positions.max()])
        first, last = (np.searchsorted(self._starts, ends, side="right") - 1).tolist()
        if first == last:
            yield first, slice(None)
            return
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in range(first, last + 1):
            if (chosen := numbers == number).any():
                yield number, chosen

    def batch(self, step: int, size: int, *, rank: int = 0, world_size: int = 1) -> Int64s:
        """:meth:`Mixture.batch <shards.mixture.Mixture.batch>`: positions that a rank reads; steps from 0 on here."""
        return self.batches([step], size, rank=rank, world_size=world_size)[0]

    def batches(self, steps: npt.ArrayLike, size: int, *, rank: int = 0, world_size: int = 1) -> Int64s:
        """:meth:`Mixture.batches <shards.mixture.Mixture.batches>` over all stretches.

        Args:
            steps: (n,) from 0 on.
            size: ``batch_rows``, for stretches begin with a batch of that size; any, where there is one stretch.

        Returns:
            (n, size / world_size).
        """
        if size != self.batch_rows and len(self.stretches) > 1:
            raise ValueError(f"expected batches of {self.batch_rows} rows, as the schedule has them, found {size}")
        wanted = np.asarray(steps, np.int64)
        positions = np.empty((len(wanted), size // world_size), np.int64)
        for number, chosen in self._by_stretch(wanted * size):
            stretch = self.stretches[number]
            local = wanted[chosen] - stretch.start // size
            positions[chosen] = stretch.start + stretch.mixture.batches(local, size, rank=rank, world_size=world_size)
        return positions

    def rows_drawn(self, stop: int) -> dict[str, int]:
        """Rows each dataset gives to positions ``[0, stop)``."""
        number = max(bisect.bisect_right(self._starts, stop) - 1, 0)
        stretch = self.stretches[number]
        return _sum(stretch.given, stretch.mixture.rows_drawn(stop - stretch.start))

    def epochs(self, stop: int) -> dict[str, float]:
        """How often each dataset is read in positions ``[0, stop)``; 2.5 is two whole epochs and a half."""
        return {name: count / self.sizes[name] for name, count in self.rows_drawn(stop).items()}


AnyMixture = Mixture | Schedule
"""What says which row is read when: constant shares, or shares that change."""


def position_of(schedule: AnyMixture, name: str, nth: int, *, stop: int) -> int | None:
    """Position at which a dataset gives its ``nth`` row (from 0 on), or None if that is not before ``stop``.

    With ``nth = size`` it is the first repeat. Found by bisection of :meth:`Schedule.rows_drawn`.
    """
    after = bisect.bisect_right(range(stop + 1), nth, key=lambda position: schedule.rows_drawn(position)[name])
    return after - 1 if after <= stop else None


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Where the rows of one period of a mixture come from.

    Attributes:
        dataset_of_slot: (period,) indices into the names of the schedule.
        rank_of_slot: (period,) how many rows that dataset gave before in the period.
        counts: (names,) rows of each dataset in a period.
        given: (names,) rows of each dataset before the stretch.
    """

    dataset_of_slot: Int64s
    rank_of_slot: Int64s
    counts: Int64s
    given: Int64s

    def places(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """(n,) dataset of each position of the stretch, and (n,) how many rows it gave before in the whole run."""
        periods, slots = np.divmod(positions, len(self.dataset_of_slot))
        datasets = self.dataset_of_slot[slots]
        return datasets, self.given[datasets] + periods * self.counts[datasets] + self.rank_of_slot[slots]


def _table(stretch: Stretch, names: Sequence[str]) -> _Table:
    mixture = stretch.mixture
    index = np.array([names.index(name) for name in mixture.names], np.int64)
    datasets = index[mixture.locate_many(np.arange(mixture.period))[0]]
    ranks = np.empty_like(datasets)
    for number in np.unique(datasets).tolist():
        mine = datasets == number
        ranks[mine] = np.arange(np.count_nonzero(mine))
    counts = np.bincount(datasets, minlength=len(names)).astype(np.int64)
    return _Table(datasets, ranks, counts, np.array([stretch.given[name] for name in names], np.int64))


def _check(schedule: Schedule) -> None:
    wrong = {name: cap for name, cap in schedule.max_epochs.items() if cap <= 0 or name not in schedule.sizes}
    if wrong:
        raise ConfigError(
            f"mixture: max_epochs {wrong}: expected positive numbers for {', '.join(sorted(schedule.sizes))}"
        )
    if schedule.max_epochs and schedule.steps is None:
        raise ConfigError("mixture: max_epochs needs to know how many steps the run has; give steps")
    if schedule.batch_rows < 1 or (schedule.steps is not None and schedule.steps < 1):
        raise ConfigError(
            f"mixture: expected steps and rows, found {schedule.steps} steps of {schedule.batch_rows} rows"
        )


def _stretches(schedule: Schedule, limits: Mapping[str, int]) -> Iterator[Stretch]:
    """Cut the run where its shares change, and where a dataset cannot give a whole batch more within its limit of rows."""
    size = schedule.batch_rows
    end = size * (schedule.steps if limits and schedule.steps else _NO_END)
    nominal = [((step - 1) * size, shares) for step, shares in changes(schedule.phases)]
    stops = [*(start for start, _ in nominal[1:]), end]
    given = dict.fromkeys(schedule.names, 0)
    for (start, shares), next_start in zip(nominal, stops, strict=True):
        stop = min(next_start, end)
        while start < stop:
            mixture = _mixture(schedule, shares, start)
            most = (stop - start) // size
            room = {name: limits[name] - given[name] for name in mixture.names if name in limits}
            fits = {name: _batches_within(mixture, name, rows, size, most=most) for name, rows in room.items()}
            batches = min([most, *fits.values()])
            if batches:
                yield Stretch(start, mixture, given)
                given = _sum(given, mixture.rows_drawn(batches * size))
                start += batches * size
            if start < stop:
                leaving = {name for name, fit in fits.items() if fit == batches}
                shares = _without(shares, leaving, step=start // size + 1)


def _batches_within(mixture: Mixture, name: str, rows: int, size: int, *, most: int) -> int:
    """Whole batches from the mixture's start for which a dataset gives at most ``rows`` rows."""
    drawn = bisect.bisect_right(range(most + 1), rows, key=lambda batches: mixture.rows_drawn(batches * size)[name])
    return max(drawn - 1, 0)


def _without(shares: Shares, leaving: set[str], *, step: int) -> dict[str, float]:
    """The shares of those that stay, in proportion."""
    left = {name: share for name, share in shares.items() if share and name not in leaving}
    if not left:
        raise ConfigError(
            f"mixture: every dataset has been read max_epochs times before step {step:,}; raise a cap or train fewer steps"
        )
    total = sum(left.values())
    return {name: share / total for name, share in left.items()}


def _mixture(schedule: Schedule, shares: Shares, start: int) -> Mixture:
    sizes = {name: schedule.sizes[name] for name in shares if name in schedule.sizes}
    windows = {name: schedule.windows[name] for name in shares if name in schedule.windows}
    try:
        return Mixture(shares, sizes, schedule.seed, windows)
    except ConfigError as error:
        step = start // schedule.batch_rows + 1
        raise ConfigError(f"{error} (shares from step {step:,} on)" if start else str(error)) from error


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: count + right.get(name, 0) for name, count in left.items()}


def _refuse_broken_caps(schedule: Schedule, limits: Mapping[str, int]) -> None:
    stop = (schedule.steps or 0) * schedule.batch_rows
    total, epochs = schedule.rows_drawn(stop), schedule.epochs(stop)
    broken = [
        f"{name!r} may be read {schedule.max_epochs[name]:g} times and reaches that in step "
        f"{(position_of(schedule, name, limit, stop=stop) or 0) // schedule.batch_rows + 1:,} of {schedule.steps:,}; "
        f"the plan reads it {epochs[name]:.4g} times"
        for name, limit in limits.items()
        if total[name] > limit
    ]
    if broken:
        raise ConfigError(
            f'mixture: {"; ".join(broken)}; lower the share, raise max_epochs, or set when_exhausted = "drop"'
        )
