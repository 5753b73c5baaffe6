"""Kinds of devices a run may be planned on: memory and peak, as ``configs/rates.toml`` has them.

The peak is that of dense bfloat16 products. Data sheets since Ampere print the figure with structured sparsity, twice as
high, which no training reaches; utilisation computed with it is half of what it is.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from configs.load import Config, read_toml, validate
from shards.errors import ConfigError

CPU = "cpu"


class Device(Config):
    """A kind of device."""

    tflops: dict[str, float]
    """Dense peak by what products are computed in; codecs are planned with it."""

    source: str
    bf16_tflops: float | None = None
    """Dense peak of bfloat16; None: it has none."""

    memory_gib: float
    """That a program sees, a little less than what is printed on the box."""

    @property
    def peak(self) -> float:
        """FLOPs a second in bfloat16, 0 where it has none."""
        return (self.bf16_tflops or 0.0) * 1e12


def read_devices() -> dict[str, Device]:
    """All kinds, by name."""
    spec = importlib.util.find_spec("configs")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(folders[0]) / "rates.toml"
    tables = read_toml(path)["devices"]
    return {name: validate(table, Device, where=f"{path}: devices.{name}") for name, table in tables.items()}


def find_device(kind: str) -> tuple[str, Device]:
    """The kind of that name, or the first whose name is a word of it (``NVIDIA H200``).

    Raises:
        ConfigError: no such kind.
    """
    devices = read_devices()
    same = [name for name in devices if name.lower() == kind.lower()]
    words = [name for name in devices if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", kind, re.I)]
    for name in [*same, *sorted(words, key=len, reverse=True)]:
        return name, devices[name]
    raise ConfigError(f"--kind {kind}: expected one of {', '.join(devices)}; add it to configs/rates.toml")
