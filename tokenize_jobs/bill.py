"""The plan before the bill: units, bytes, tokens, hours and cost of tokenizing corpora, before anything runs.

Tokens follow from Table 1 (:mod:`shards.modality`) and from how many pictures and seconds of sound there are; hours from
speeds that jobs have measured or that ``configs/rates.toml`` assumes (:mod:`tokenize_jobs.rates`); cost from hours and an
hourly rate. What a corpus holds is known from its units that are done, or estimated from a few of its inputs
(:mod:`tokenize_jobs.expectations`); sizes of corpora that are not at hand come from a file
(``configs/bills/paper.toml``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from configs.load import Config, load_config, read_toml
from shards.errors import ConfigError
from shards.modality import Modality
from tokenize_jobs.calibration import Measurement, Speed
from tokenize_jobs.rates import Precision, RatesConfig, codec_speed, default_rates
from tokenize_jobs.timing import CPU, HOUR_S

_CODE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Expected:
    """How much of a medium a corpus has, and which codec encodes it.

    Attributes:
        amount: pictures, or seconds of sound.
        codec: its name; ``fingerprint`` is what measurements know it by, empty where it is not at hand.
    """

    modality: Modality
    amount: float
    codec: str
    precision: Precision = "fp32"
    fingerprint: str = ""

    @property
    def frames(self) -> float:
        """Frames of codes, as Table 1 has them."""
        rate = self.modality.rate
        return self.amount * (rate.frame_rate_hz if rate.is_sound else rate.num_frames)

    @property
    def tokens(self) -> int:
        """What the language model reads."""
        return round(self.frames * self.modality.rate.levels_read)

    @property
    def stored_bytes(self) -> int:
        """Codes at rest, all levels, before compression."""
        return round(self.frames * self.modality.rate.levels_at_rest) * _CODE_BYTES


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """What is to be tokenized of one corpus.

    Attributes:
        inputs: before windows are cut.
        num_bytes: of what will be read.
        basis: how its amounts are known.
    """

    name: str
    units: int
    inputs: int
    num_bytes: int
    media: tuple[Expected, ...]
    basis: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSlots:
    """What a training run reads of the tokens, repetitions included."""

    steps: int
    batch_rows: int
    sequence_length: int
    vocabulary_size: int

    @property
    def slots(self) -> int:
        """Positions of all rows of all steps."""
        return self.steps * self.batch_rows * self.sequence_length

    @property
    def id_bytes(self) -> int:
        """Of one id: 2 while the vocabulary fits in 16 bits."""
        return np.min_scalar_type(self.vocabulary_size - 1).itemsize

    @property
    def num_bytes(self) -> int:
        """Of all ids."""
        return self.slots * self.id_bytes


@dataclass(frozen=True, slots=True)
class BillLine:
    """One corpus on a bill.

    Attributes:
        device_hours: of one device.
        core_hours: of one core, decoding; on a CPU, encoding is in ``device_hours``.
        speeds: per medium.
    """

    plan: CorpusPlan
    device_hours: float
    core_hours: float
    speeds: tuple[Speed, ...]


@dataclass(frozen=True, slots=True)
class Bill:
    """All corpora of a call on so many devices of one kind.

    Attributes:
        usd_per_hour: of one device; None prints no cost.
    """

    lines: tuple[BillLine, ...]
    gpus: int
    kind: str
    usd_per_hour: float | None = None
    training: TrainingSlots | None = None

    @property
    def device_hours(self) -> float:
        """Over all corpora."""
        return sum(line.device_hours for line in self.lines)

    @property
    def core_hours(self) -> float:
        """Over all corpora."""
        return sum(line.core_hours for line in self.lines)

    @property
    def wall_hours(self) -> float:
        """With all devices busy all the time."""
        return self.device_hours / self.gpus

    @property
    def usd(self) -> float | None:
        """What the devices cost; the cores beside them are part of a node's rate, or not counted."""
        return None if self.usd_per_hour is None else self.device_hours * self.usd_per_hour

    def tokens(self) -> dict[Modality, int]:
        """By modality, over all corpora."""
        total: dict[Modality, int] = {}
        for line in self.lines:
            for medium in line.plan.media:
                total[medium.modality] = total.get(medium.modality, 0) + medium.tokens
        return total


class ExpectedConfig(Config):
    """A medium of a corpus in a bill's file."""

    codec: str
    precision: Precision = "fp32"
    amount_per_item: float | None = Field(default=None, gt=0)
    """Pictures, or seconds, of an input."""
    total: float | None = Field(default=None, gt=0)
    """Pictures, or seconds, of the whole corpus, where that is what is known."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ExpectedConfig:
        if (self.amount_per_item is None) == (self.total is None):
            raise ValueError("expected one of amount_per_item and total")
        return self


class BillCorpus(Config):
    """A corpus in a bill's file."""

    name: str
    items: int = Field(gt=0)
    unit_items: int = Field(gt=0)
    bytes_per_item: int = Field(gt=0)
    media: dict[Modality, ExpectedConfig]


class TrainingConfig(Config):
    """What a training run reads."""

    steps: int = Field(gt=0)
    batch_rows: int = Field(gt=0)
    sequence_length: int = Field(gt=0)
    vocabulary_size: int = Field(gt=1)


class BillConfig(Config):
    """Corpora by their published sizes: ``configs/bills/*.toml``."""

    corpora: list[BillCorpus] = Field(min_length=1)
    training: TrainingConfig | None = None


def is_bill(path: Path) -> bool:
    """Whether a config names the sizes of corpora instead of a corpus on disk."""
    return "corpora" in read_toml(path)


def bill_from_file(
    path: Path, *, gpus: int, kind: str, usd_per_hour: float | None = None, measurements: Iterable[Measurement] = ()
) -> Bill:
    """The bill of a file of sizes.

    Raises:
        ConfigError: the file is wrong, or the device is unknown.
    """
    config = load_config(path, BillConfig)
    plans = [_plan(corpus) for corpus in config.corpora]
    training = TrainingSlots(**config.training.model_dump()) if config.training else None
    return estimate(
        plans, gpus=gpus, kind=kind, usd_per_hour=usd_per_hour, measurements=measurements, training=training
    )


def estimate(
    plans: Sequence[CorpusPlan],
    *,
    gpus: int,
    kind: str,
    usd_per_hour: float | None = None,
    measurements: Iterable[Measurement] = (),
    rates: RatesConfig | None = None,
    training: TrainingSlots | None = None,
) -> Bill:
    """What the plans take on ``gpus`` devices of a kind.

    Args:
        kind: a name of ``configs/rates.toml``, of a measured device, or ``cpu`` (then ``gpus`` are cores).
        usd_per_hour: of one device.
        rates: assumptions; those that are shipped by default.

    Raises:
        ConfigError: an unknown device, or no device at all. Hours of an unknown codec are no number.
    """
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: expected one device at least")
    rates, measured = rates or default_rates(), tuple(measurements)
    lines: list[BillLine] = []
    for plan in plans:
        speeds = tuple(_speed(rates, measured, kind, medium) for medium in plan.media)
        both = list(zip(plan.media, speeds, strict=True))
        device_s = sum(medium.amount / speed.encode_rate for medium, speed in both)
        core_s = sum(medium.amount / speed.decode_rate for medium, speed in both if speed.decode_rate)
        if kind.lower() == CPU:
            # The same cores do both.
            device_s, core_s = device_s + core_s, device_s + core_s
        lines.append(BillLine(plan, device_s / HOUR_S, core_s / HOUR_S, speeds))
    return Bill(tuple(lines), gpus, kind, usd_per_hour, training)


def _speed(rates: RatesConfig, measured: Sequence[Measurement], kind: str, medium: Expected) -> Speed:
    return codec_speed(
        rates,
        measured,
        kind=kind,
        modality=medium.modality,
        codec=medium.codec,
        precision=medium.precision,
        fingerprint=medium.fingerprint,
    )


def _plan(corpus: BillCorpus) -> CorpusPlan:
    media = tuple(
        Expected(
            modality,
            one.total if one.total is not None else (one.amount_per_item or 0.0) * corpus.items,
            one.codec,
            one.precision,
        )
        for modality, one in corpus.media.items()
    )
    units = -(-corpus.items // corpus.unit_items)
    return CorpusPlan(
        corpus.name, units, corpus.items, corpus.items * corpus.bytes_per_item, media, "sizes as published"
    )
