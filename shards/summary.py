"""What a ledger adds up to: the sums of a report, the shards of a manifest, and which units left something out.

One pass, one group of entries in memory at a time; what grows with the units is a hundred bytes each.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.ledger import Entry, unit_name
from shards.left_out import part_path
from shards.manifest import ShardEntry, ShardTable
from shards.modality import SOUNDS

_COUNTERS = ("filtered", "rejected", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all units of a dataset.

    Attributes:
        sums: what the report says: ``items``, ``inputs``, ``written``, ``filtered``, ``rejected``, ``tokens``, ``images``,
            ``hours`` and ``units``.
        shards: in the order of the units.
        left_out: numbers of the units that have a part of what was left out.
    """

    sums: Mapping[str, Any]
    shards: ShardTable
    left_out: array[int]

    @property
    def counts(self) -> dict[str, Any]:
        """What a manifest says of its inputs."""
        return {key: self.sums[key] for key in ("inputs", "written", "filtered", "rejected")}

    @property
    def extra(self) -> dict[str, Any]:
        """What a manifest says of a tokenized corpus alone."""
        return {key: self.sums[key] for key in ("items", "images", "hours", "units")}

    def parts(self, folder: Path) -> Iterator[Path]:
        """Where the parts of what was left out lie, in the order of the units."""
        return (part_path(folder, unit_name(number)) for number in self.left_out)


def summarize(entries: Iterable[Entry]) -> Summary:
    """Sums over all units; ``inputs = written + filtered + rejected`` holds or it is a mistake of ours.

    Floats are added in the order of the units, so that equal ledgers give equal hours.
    """
    numbers: Counter[str] = Counter()
    by: dict[str, Counter[str]] = {name: Counter() for name in _COUNTERS}
    left_out: array[int] = array("q")

    def shards() -> Iterator[ShardEntry]:
        for entry in entries:
            numbers.update(items=entry.stop - entry.start, inputs=entry.inputs, written=entry.written)
            numbers.update(images=entry.images, units=1)
            for name, counter in by.items():
                counter.update(getattr(entry, name))
            if entry.left_out_sha256:
                left_out.append(entry.number)
            if entry.shard is not None:
                yield entry.shard

    table = ShardTable.build(shards())
    found = {name: dict(sorted(by[name].items())) for name in _COUNTERS}
    sums: dict[str, Any] = {
        **{name: numbers[name] for name in ("items", "inputs", "written")},
        **{name: found[name] for name in ("filtered", "rejected", "tokens")},
        "images": numbers["images"],
        "hours": {str(sound): round(by["seconds"][sound] / 3600, 6) for sound in SOUNDS},
        "units": numbers["units"],
    }
    out = sum(sums["filtered"].values()) + sum(sums["rejected"].values())
    assert sums["inputs"] == sums["written"] + out, f"inputs are not written + filtered + rejected: {sums}"
    return Summary(sums, table, left_out)
