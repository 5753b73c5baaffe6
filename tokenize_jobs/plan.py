"""Which units a corpus is cut into: slices ``[start, stop)`` of its raw files, numbered in the reader's order.

A plan depends on the corpus and ``unit_items`` alone, never on workers or on what is done already, so 1, 2 or 40
workers commit the same files. A raw file that is added at the end only adds units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from configs.load import Config
from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.samples import Source
from shards.errors import ConfigError


class ClusterConfig(Config):
    """Where a tokenization runs, and what one worker takes. It never decides a byte of the output."""

    address: str = ""
    """Of a running Ray cluster; empty starts Ray on this machine, unless RAY_ADDRESS says otherwise."""
    decode_cpus: float = Field(default=1.0, gt=0)
    encode_cpus: float = Field(default=1.0, gt=0)
    """CPUs of one decoding task and of one encoding actor. When they are equal and no GPU is asked for, Ray runs both
    in one process and no payload crosses a process border."""
    encode_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or a fraction of one, of one encoding actor."""


class TokenizeConfig(CorpusConfig):
    """What ``anygpt-tokenize`` reads: a corpus, and where its job runs."""

    cluster: ClusterConfig = ClusterConfig()


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
        """Stable name, zero-padded so that files sort as units do."""
        return f"unit-{self.number:06d}"

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

    def entry(self, output: Path) -> Path:
        """The ledger entry that says it is done."""
        return output / "ledger" / f"{self.name}.json"

    def to_row(self) -> dict[str, Any]:
        """Plain values for a Ray Data row."""
        return {
            "number": self.number,
            "path": str(self.source.path),
            "num_items": self.source.num_items,
            "part": self.source.part,
            "start": self.start,
            "stop": self.stop,
        }

    @staticmethod
    def from_row(row: dict[str, Any]) -> Unit:
        """Inverse of :meth:`to_row`."""
        source = Source(Path(row["path"]), int(row["num_items"]), str(row["part"]))
        return Unit(int(row["number"]), source, int(row["start"]), int(row["stop"]))


def plan_units(config: TokenizeConfig, *, limit: int | None = None) -> list[Unit]:
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
    return cut_units(load_corpus(config).sources(), unit_items=config.unit_items, limit=limit)


def cut_units(sources: Sequence[Source], *, unit_items: int, limit: int | None = None) -> list[Unit]:
    """Cut every source into slices of ``unit_items``; the last of a source is shorter. Empty sources give no unit.

    Args:
        limit: stop after so many items over all sources.
    """
    return [Unit(number, *piece) for number, piece in enumerate(_slices(sources, unit_items, limit))]


def _slices(sources: Sequence[Source], unit_items: int, limit: int | None) -> Iterator[tuple[Source, int, int]]:
    left = sum(source.num_items for source in sources) if limit is None else limit
    for source in sources:
        stop = min(source.num_items, left)
        for start in range(0, stop, unit_items):
            yield source, start, min(start + unit_items, stop)
        left -= stop
