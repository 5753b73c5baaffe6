"""Mixtures as files: shares, how they change with the step, caps on epochs, and datasets that are no more than a size.

A mixture file (``configs/mixtures/``) has ``[shares]`` from the first step on, ``[[phases]]`` for what follows, and
``max_epochs``. A file for ``anygpt-mix`` has the numbers of the run besides, and may give sizes of datasets that do not
exist yet: as rows, as tokens, or as hours and pictures, which Table 1 (:mod:`shards.modality`) turns into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs.load import Config, StoredPath
from shards.errors import ConfigError
from shards.manifest import read_manifest
from shards.mix_plan import Holding, rows_of
from shards.modality import Modality
from shards.phases import Phase
from shards.reader import PackedDataset
from shards.schedule import Schedule, WhenExhausted
from shards.windows import Windows
from train.config import MixtureConfig

HOUR_S = 3600


class PhaseConfig(Config):
    """Other shares from a step on."""

    first_step: int = Field(gt=1)
    """Steps count from 1."""

    shares: dict[str, float]
    ramp_steps: NonNegativeInt = 0
    """Steps over which the shares change to these; 0 is at once."""


class PhasedMixtureConfig(MixtureConfig):
    """A file in ``configs/mixtures/``; without the keys below it is one phase."""

    phases: list[PhaseConfig] = []
    max_epochs: PositiveFloat | dict[str, PositiveFloat] = {}
    """How often a dataset may be read at most: one number for all, or one for each that has a cap."""

    when_exhausted: WhenExhausted = "refuse"
    """A plan that breaks a cap is refused; or the dataset leaves and the others take its share."""

    @property
    def names(self) -> list[str]:
        """Datasets with a share in any phase, in order of appearance."""
        tables = [self.shares, *(phase.shares for phase in self.phases)]
        return list(dict.fromkeys(name for table in tables for name, share in table.items() if share))


class DatasetSize(Config):
    """A dataset that need not exist."""

    rows: PositiveInt | None = None
    """None: what the tokens fill."""

    tokens: dict[Modality, PositiveFloat] = {}
    hours: dict[Modality, PositiveFloat] = {}
    """Of sound."""

    images: NonNegativeInt = 0
    fill: float = Field(default=1.0, gt=0, le=1)
    """Part of a row that packing fills."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        silent = [str(modality) for modality in self.hours if not modality.is_sound]
        if silent:
            raise ValueError(f"expected hours of a sound, found hours of {', '.join(silent)}")
        if self.rows is None and not (self.tokens or self.hours or self.images):
            raise ValueError("expected rows, tokens, hours or images, found none of them")
        return self

    def holding(self, sequence_length: int) -> Holding:
        """Its rows, and its tokens by modality."""
        tokens: dict[str, float] = {str(modality): count for modality, count in self.tokens.items()}
        found = {modality: hours * HOUR_S * modality.rate.frame_rate_hz for modality, hours in self.hours.items()}
        found[Modality.IMAGE] = self.images * Modality.IMAGE.rate.num_frames
        for modality, frames in found.items():
            if frames:
                tokens[str(modality)] = tokens.get(str(modality), 0.0) + frames * modality.rate.levels_read
        rows = rows_of(sum(tokens.values()), sequence_length=sequence_length, fill=self.fill)
        return Holding(self.rows or rows, tokens)


class MixConfig(PhasedMixtureConfig):
    """A mixture and the run it is for: what ``anygpt-mix`` reads when there is no training config."""

    steps: PositiveInt
    batch_rows: PositiveInt
    sequence_length: PositiveInt | None = None
    """None: that of the datasets on disk."""

    seed: NonNegativeInt = 0
    data: StoredPath | None = None
    """Folder of packed datasets, for those without a size below."""

    datasets: dict[str, DatasetSize] = {}


def make_schedule(
    mixture: PhasedMixtureConfig,
    sizes: Mapping[str, int],
    *,
    batch_rows: int,
    steps: int,
    seed: int,
    windows: Mapping[str, Windows] | None = None,
) -> Schedule:
    """The order in which a run reads its datasets.

    Args:
        sizes: rows of every dataset in ``mixture.names``.
        windows: of those that are read through windows.

    Raises:
        ConfigError: shares that do not sum to 1, phases out of order, a cap that the plan breaks.
    """
    following = [Phase(phase.shares, phase.first_step, phase.ramp_steps) for phase in mixture.phases]
    caps = mixture.max_epochs
    each = caps if isinstance(caps, dict) else dict.fromkeys(mixture.names, caps)
    phases = [Phase(mixture.shares), *following]
    return Schedule(phases, sizes, batch_rows, seed, steps, each, mixture.when_exhausted, windows or {})


def open_datasets(
    mixture: MixtureConfig, names: list[str], data: Path | None, *, where: str
) -> dict[str, PackedDataset]:
    """Open packed datasets, local or remote, by their manifests alone; no shard is touched.

    Args:
        where: the config file, for messages.

    Raises:
        ConfigError: a folder is missing, or rows of different lengths.
    """
    opened: dict[str, PackedDataset] = {}
    for name in names:
        folder = mixture.paths.get(name, data / name if data else None)
        if folder is None or not folder.is_dir():
            raise ConfigError(
                f"{where}: dataset {name!r}: expected a packed dataset in {folder or 'data/' + name}, found none; pack it "
                f"first, or set data or paths; a file for anygpt-mix may give its size under [datasets.{name}]"
            )
        opened[name] = PackedDataset(folder, read_manifest(folder), verify="off")
    lengths = {name: dataset.sequence_length for name, dataset in opened.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"{where}: expected rows of one length, found {lengths}; pack them again with one length")
    return opened
