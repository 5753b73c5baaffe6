"""Which units a corpus is cut into: slices ``[start, stop)`` of its raw files, numbered in the reader's order.

A plan depends on the corpus and ``unit_items`` alone, never on workers or on what is done already, so 1, 2 or 40
workers commit the same files. A raw file that is added at the end only adds units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from configs.load import Config
from pipeline.corpus import CorpusConfig
from pipeline.samples import Source
from shards.errors import ConfigError
from shards.ledger import unit_name
from tokenize_jobs.listing import list_sources


class ClusterConfig(Config):
    """Where a tokenization runs, and what one worker takes. It never decides a byte of the output."""

    address: str = ""
    """Of a running Ray cluster; empty starts Ray on this machine, unless RAY_ADDRESS says otherwise."""
    decode_cpus: float = Field(default=1.0, gt=0)
    encode_cpus: float = Field(default=1.0, gt=0)
    """CPUs of one decoding task and of one encoding actor. When they are equal and neither a GPU nor a resource is asked
    for, Ray runs both in one process and no payload crosses a process border."""
    encode_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or a fraction of one, of one encoding actor."""
    decode_resources: dict[str, float] = Field(default_factory=dict[str, float])
    """Custom resources of one decoding task, e.g. ``decode = 1`` that only the CPU nodes declare."""
    encoders: int = Field(default=0, ge=0)
    """Encoding actors at least; 0: ``workers``."""
    max_encoders: int = Field(default=0, ge=0)
    """Encoding actors at most, for a cluster that grows; 0: as many as ``encoders``."""
    encode_threads: int = Field(default=1, ge=1, le=4)
    """Units an encoding actor has in hand at once. One encodes at a time; with 2, the next payload is unpacked and the
    last unit committed meanwhile, so that a GPU does not wait for either."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Of one GPU, or of one encoder where there is none; the report then says what a billion tokens cost."""
    sample_timeout_s: float = Field(default=300.0, gt=0)
    """A sample that takes longer to decode is rejected (``decode_timeout``), and its worker replaced; one that ends its
    worker again and again is rejected, too (``decode_crash``)."""


class TokenizeConfig(CorpusConfig):
    """What ``anygpt-tokenize`` reads: a corpus, and where its job runs."""

    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _a_cluster_has_workers(self) -> TokenizeConfig:
        if self.cluster.address and not self.workers:
            raise ValueError(
                f"workers = 0 is this process, without Ray, and cluster.address = {self.cluster.address} says otherwise: "
                "expected one worker or more, or no address"
            )
        return self


@dataclass(frozen=True, slots=True)
class Unit:
    """A slice of one raw file: what one worker does in one go, and what one sample shard holds.

    Attributes:
        number: its place in the plan.
        source: the raw file and how many items it has.
        start, stop: items of that file, counted from 0.
    """

    number: int
    source: Source
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Stable name."""
        return unit_name(self.number)

    @property
    def num_items(self) -> int:
        """Inputs in this unit, before windows are cut."""
        return self.stop - self.start

    def shard(self, output: Path) -> Path:
        """The sample shard it commits, unless no sample of it is left."""
        return output / "shards" / f"{self.name}.parquet"

    def left_out(self, output: Path) -> Path:
        """What of it was rejected or filtered, if anything was."""
        return output / "rejects" / f"{self.name}.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class Units(Sequence[Unit]):
    """All units of a corpus, made when asked for: a million of them are three arrays.

    Attributes:
        sources: the raw files.
        source_of: (units,) int32 index into ``sources``.
        start, stop: (units,) int64, items of that file.
    """

    sources: tuple[Source, ...]
    source_of: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    @property
    def num_items(self) -> int:
        """Inputs over all units, before windows are cut."""
        return int((self.stop - self.start).sum())

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Unit]: ...
    def __getitem__(self, index: int | slice) -> Unit | list[Unit]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"unit {index}: expected one of {len(self)}")
        source = self.sources[int(self.source_of[number])]
        return Unit(number, source, int(self.start[number]), int(self.stop[number]))

    def sources_only(self) -> Units:
        """What :meth:`from_row` needs, without the arrays."""
        return Units(self.sources, self.source_of[:0], self.start[:0], self.stop[:0])

    def to_table(
        self, numbers: npt.NDArray[np.int64], *, task: int, again: npt.NDArray[np.int64] | None = None
    ) -> pa.Table:
        """Rows for Ray Data: which corpus of a call, which unit, and where it lies, in 33 bytes each.

        Args:
            again: numbers of those whose entry is there but no longer true.
        """
        columns = {
            "task": np.full(len(numbers), task, np.int32),
            "number": numbers.astype(np.int64),
            "source": self.source_of[numbers],
            "start": self.start[numbers],
            "stop": self.stop[numbers],
            "again": np.isin(numbers, again) if again is not None else np.zeros(len(numbers), bool),
        }
        return pa.table(columns)

    def from_row(self, row: Mapping[str, Any]) -> Unit:
        """The unit of a row of :meth:`to_table`, given sources alone."""
        return Unit(int(row["number"]), self.sources[int(row["source"])], int(row["start"]), int(row["stop"]))


def plan_units(config: TokenizeConfig, *, limit: int | None = None) -> Units:
    """All units of one corpus, done or not.

    Raises:
        ConfigError: ``root`` is not there, or an option is wrong.
        CorpusError: the folder holds none of the corpus's files.
    """
    if not config.root.is_dir():
        raise ConfigError(
            f"root = {config.root}: expected the folder of the corpus {config.corpus}, found "
            f"{'a file' if config.root.exists() else 'nothing'}; give its path with --set root=DIR"
        )
    return cut_units(list_sources(config), unit_items=config.unit_items, limit=limit)


def cut_units(sources: Sequence[Source], *, unit_items: int, limit: int | None = None) -> Units:
    """Cut every source into slices of ``unit_items``; the last of a source is shorter. Empty sources give no unit.

    Args:
        limit: stop after so many items over all sources.
    """
    items = np.array([source.num_items for source in sources], dtype=np.int64)
    if limit is not None:
        items = np.clip(limit - (np.cumsum(items) - items), 0, items)
    pieces = -(-items // unit_items)
    source_of = np.repeat(np.arange(len(items), dtype=np.int32), pieces)
    # Of each unit, its place among the units of its source.
    place = np.arange(len(source_of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = place * unit_items
    return Units(tuple(sources), source_of, start, np.minimum(start + unit_items, items[source_of]))
