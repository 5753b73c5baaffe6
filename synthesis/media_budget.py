"""A cap on what an endpoint's media cost, counted over all workers and all runs into one output.

``OUTPUT/spent/<modality>`` holds one number: the items that were asked for and may have been charged. It is raised, under a
lock and on disk, before a request goes out, and lowered when the endpoint has charged nothing for certain. So workers that
ask together cannot pass the cap, and a run that is killed has counted too much at worst, never too little.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DatasetError
from synthesis.calls import BudgetSpent
from synthesis.media_config import Endpoint

SPENT_FOLDER = "spent"
# Of a number on disk: written as a whole, in one piece, at one place.
_DIGITS = 20
# Of sums of prices that are no binary fractions.
_ROUNDING_USD = 1e-9


@dataclass(frozen=True, slots=True)
class MediaBudget:
    """What the items of one modality cost, and how many were asked for.

    Attributes:
        path: of the number.
        name: of the config's table, for messages.
    """

    path: Path
    name: str
    usd_per_item: float
    max_usd: float | None

    @property
    def items(self) -> int:
        """Asked for by all runs, those under way included."""
        return self._change(0)

    def reserve(self) -> None:
        """Count one more item, which may be asked for then.

        Raises:
            BudgetSpent: it might cost more than is left; it is not counted.
            DatasetError: the file holds no number.
        """
        most = None
        if self.max_usd is not None and self.usd_per_item:
            most = int((self.max_usd + _ROUNDING_USD) / self.usd_per_item)
        self._change(1, most=most)

    def refund(self) -> None:
        """Count one less: the endpoint has charged nothing for it."""
        self._change(-1)

    def _change(self, by: int, *, most: int | None = None) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            items = self._parsed(os.pread(file, 4 * _DIGITS, 0))
            if most is not None and items + by > most:
                raise self._spent(items)
            if by:
                os.pwrite(file, b"%0*d\n" % (_DIGITS, max(0, items + by)), 0)
                os.fsync(file)
            return items + by
        finally:
            os.close(file)

    def _parsed(self, data: bytes) -> int:
        text = data.strip()
        if text and not text.isdigit():
            raise DatasetError(
                f"{self.path}: expected the number of media that were asked for, found {text[:40]!r}; write what the "
                "endpoint's bill says"
            )
        return int(text or b"0")

    def _spent(self, items: int) -> BudgetSpent:
        return BudgetSpent(
            f"{self.name}.max_usd = {self.max_usd:g}: {items} media were asked for, which is "
            f"{items * self.usd_per_item:.4f} USD, and the next one may cost {self.usd_per_item:g}; raise the cap and "
            f"run again, what was made is kept ({self.path})"
        )


def open_budget(config: Endpoint, output: Path, name: str) -> MediaBudget:
    """The budget of a table of the config for one output."""
    return MediaBudget(output / SPENT_FOLDER / name, name, config.usd_per_item, config.max_usd)
