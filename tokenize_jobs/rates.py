"""How fast a codec is on a kind of device: as jobs measured it, else as ``configs/rates.toml`` assumes it.

An assumption is peak x utilisation / work, with every factor in that file beside its source; the sentence it gives is
printed with the bill, so that nobody takes it for a measurement.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.load import Config, load_config
from shards.errors import ConfigError
from shards.modality import Modality
from tokenize_jobs.calibration import Measurement, Speed, is_kind, measured_speed
from tokenize_jobs.timing import CPU

Precision = Literal["fp32", "tf32", "fp16"]


class DeviceRates(Config):
    """A kind of device."""

    tflops: dict[Precision, float]
    """Dense peak by what products are computed in."""
    source: str
    bf16_tflops: float | None = None
    memory_gib: float | None = None
    """These two are for plans of training (:mod:`train.devices`)."""


class CodecRates(Config):
    """The work of a codec."""

    modality: Modality
    gflop: float = Field(gt=0)
    """Per picture, or per second of sound."""
    utilisation: float = Field(gt=0, le=1)
    """Of a GPU's peak."""
    decode_rate: float = Field(gt=0)
    """Pictures, or seconds of sound, that one core decodes in a second."""
    cpu_rate: float = Field(gt=0)
    """The same, encoded by one core."""
    source: str


class RatesConfig(Config):
    """``configs/rates.toml``."""

    devices: dict[str, DeviceRates]
    codecs: dict[str, CodecRates]


def default_rates() -> RatesConfig:
    """The assumptions that are shipped."""
    spec = importlib.util.find_spec("configs")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return load_config(Path(folders[0]) / "rates.toml", RatesConfig)


def codec_speed(
    rates: RatesConfig,
    measurements: Iterable[Measurement],
    *,
    kind: str,
    modality: Modality,
    codec: str,
    precision: Precision,
    fingerprint: str = "",
) -> Speed:
    """Measured where a job has measured this codec on this kind of device, else assumed; no number for an unknown codec.

    Args:
        codec: its name, for the assumptions; ``fingerprint`` is what measurements know it by.

    Raises:
        ConfigError: no such device, and nothing measured.
    """
    measured = measured_speed(measurements, kind=kind, modality=modality, codec=fingerprint) if fingerprint else None
    known = rates.codecs.get(codec)
    if measured is not None:
        decode_rate = measured.decode_rate or (known.decode_rate if known else 0.0)
        return Speed(measured.encode_rate, decode_rate, measured.basis)
    if known is None:
        return Speed(
            math.nan, math.nan, "unknown: add it to configs/rates.toml, or run a small job first (--limit 1000)"
        )
    if kind.lower() == CPU:
        return Speed(known.cpu_rate, known.decode_rate, f"assumed, one core: {known.source}")
    peak = _device(rates, kind).tflops.get(precision)
    if peak is None:
        raise ConfigError(f"configs/rates.toml: devices.{kind}.tflops: expected an entry for {precision}; add it")
    return Speed(
        encode_rate=peak * 1e3 * known.utilisation / known.gflop,
        decode_rate=known.decode_rate,
        basis=f"assumed: {peak:g} TFLOP/s {precision} x {known.utilisation:g} used / {known.gflop:g} GFLOP",
    )


def _device(rates: RatesConfig, kind: str) -> DeviceRates:
    found = [device for name, device in rates.devices.items() if is_kind(kind, name)]
    if not found:
        raise ConfigError(
            f"--kind {kind}: expected cpu, one of {', '.join(rates.devices)}, or a device that a job was measured on; "
            "add it to configs/rates.toml"
        )
    return found[0]
