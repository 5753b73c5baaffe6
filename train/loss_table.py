"""Losses by dataset, direction and modality, summed on the device until somebody asks.

Every target belongs to one cell: the dataset its row is from, the direction of the document it is in, its own modality.
One table of cells, so sums over any of the three add up to the whole. Cells are looked up on the host, from what the
batch was made of; the device adds numbers to numbers and is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Cells = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axes:
    """What the table is over; names in the order of their indices."""

    datasets: tuple[str, ...]
    directions: tuple[str, ...]
    modalities: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the three."""
        return len(self.datasets), len(self.directions), len(self.modalities)


@dataclass(frozen=True, slots=True)
class LossSums:
    """What a table says.

    Attributes:
        sums, counts: (datasets, directions, modalities) summed losses, numbers of targets.
    """

    axes: Axes
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    @property
    def mean(self) -> float | None:
        """Over all targets; None without any."""
        return float(self.sums.sum() / self.counts.sum()) if self.counts.any() else None

    def means(self, axis: int) -> dict[str, float]:
        """By what one axis tells apart; names without a target are left out."""
        names = (self.axes.datasets, self.axes.directions, self.axes.modalities)[axis]
        others = tuple(number for number in range(3) if number != axis)
        sums, counts = self.sums.sum(others), self.counts.sum(others)
        return {name: float(s / c) for name, s, c in zip(names, sums, counts, strict=True) if c}

    @property
    def targets(self) -> dict[str, int]:
        """How many ids were predicted, by modality."""
        counts = self.counts.sum((0, 1))
        return {name: int(count) for name, count in zip(self.axes.modalities, counts, strict=True) if count}

    def to_json(self) -> list[list[Any]]:
        """Cells with targets: dataset, direction, modality, sum, count."""
        axes = self.axes
        return [
            [axes.datasets[i], axes.directions[j], axes.modalities[k], float(self.sums[i, j, k]), int(count)]
            for (i, j, k), count in np.ndenumerate(self.counts)
            if count
        ]


class LossTable:
    """Sums of one process."""

    def __init__(self, axes: Axes, device: torch.device) -> None:
        self.axes = axes
        self._device = device
        self._size = int(np.prod(axes.shape))
        self._sums = torch.zeros(self._size, dtype=torch.float64, device=device)
        self._counts = np.zeros(self._size, np.int64)

    def add(self, losses: torch.Tensor, cells: Cells) -> None:
        """Add the losses of some targets.

        Args:
            losses: (N,) on the device.
            cells: (N,) as :meth:`cells_of` has them.
        """
        on_device = torch.from_numpy(cells).to(self._device, non_blocking=True)
        self._sums.index_add_(0, on_device, losses.detach().double())
        self._counts += np.bincount(cells, minlength=self._size)

    def add_stored(self, cells: Sequence[Sequence[Any]]) -> None:
        """Add what :meth:`LossSums.to_json` gave; names that are no more are left out."""
        axes = self.axes
        for dataset, direction, modality, total, count in cells:
            if dataset in axes.datasets and modality in axes.modalities:
                known = direction if direction in axes.directions else axes.directions[0]
                place = np.ravel_multi_index(
                    (axes.datasets.index(dataset), axes.directions.index(known), axes.modalities.index(modality)),
                    axes.shape,
                )
                self._sums[int(place)] += total
                self._counts[place] += count

    def packed(self) -> torch.Tensor:
        """(2 * cells,) float64 on the device: sums, then counts; to be summed over processes."""
        return torch.cat([self._sums, torch.from_numpy(self._counts).to(self._device).double()])

    def unpack(self, values: torch.Tensor) -> LossSums:
        """What :meth:`packed` is over all processes."""
        sums, counts = values.cpu().numpy().reshape(2, *self.axes.shape)
        return LossSums(self.axes, sums, counts)

    def clear(self) -> None:
        """Begin again."""
        self._sums.zero_()
        self._counts[:] = 0

    def cells_of(
        self,
        datasets: npt.NDArray[np.integer[Any]],
        directions: npt.NDArray[np.integer[Any]],
        modalities: npt.NDArray[np.integer[Any]],
    ) -> Cells:
        """(N,) cells of N targets, by indices along the three axes."""
        _, num_directions, num_modalities = self.axes.shape
        return (datasets.astype(np.int64) * num_directions + directions) * num_modalities + modalities


def stored_cells(before: Mapping[str, Any], axes: Axes) -> list[list[Any]]:
    """The cells a checkpoint's log has; one from before there were directions has a (2, datasets, modalities) table."""
    stored = before.get("losses", [])
    if not stored or isinstance(stored[0][0], str):
        return stored
    sums, counts = stored
    return [
        [dataset, axes.directions[0], modality, sums[i][k], counts[i][k]]
        for i, dataset in enumerate(axes.datasets[: len(sums)])
        for k, modality in enumerate(axes.modalities)
        if counts[i][k]
    ]
