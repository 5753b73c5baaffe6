"""What a tokenization took, read back from the log beside a dataset: the only place that has times.

Work is what units report: decoding, encoding, and how long the encoder waited for a payload. ``encode_s + wait_s``
summed over units is the time encoders were held, so their hours and their busy share add up whatever the number of
workers. Wall time is what the runs lasted; where one call had several corpora, that of each covers the others' too.

A log outlives its dataset. Lines before the last run that began with every unit missing, or with another fingerprint,
are about a dataset that is gone, and are not read. Logs of older versions lack some fields; those times are zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

CPU = "cpu"
UNKNOWN = "unknown"
_NO_GPU = {CPU, UNKNOWN}
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """The encoders of one kind of device.

    Attributes:
        device: as torch names it, ``cpu``, or ``unknown`` in a log that did not say.
        units: finished on it.
        encode_s: encoding.
        wait_s: idle before a payload came; model loading and committing are part of it.
    """

    device: str
    units: int = 0
    encode_s: float = 0.0
    wait_s: float = 0.0

    @property
    def held_s(self) -> float:
        """How long its encoders were occupied, busy or not."""
        return self.encode_s + self.wait_s

    @property
    def busy_share(self) -> float:
        """Of the time they were held; 0 when nothing is known."""
        return self.encode_s / self.held_s if self.held_s else 0.0


@dataclass(frozen=True, slots=True)
class Times:
    """Sums over all runs that made a dataset.

    Attributes:
        runs: how many times the command was started.
        wall_s: from the start of each run to its last line, summed.
        decode_s: CPU seconds of decoding, over all workers.
        curve: (seconds of wall time, tokens so far) at most some hundred points, for a chart.
    """

    runs: int = 0
    wall_s: float = 0.0
    decode_s: float = 0.0
    workers: int = 0
    devices: tuple[DeviceTimes, ...] = ()
    curve: tuple[tuple[float, int], ...] = ()

    @property
    def encode_s(self) -> float:
        """Over all devices."""
        return sum(device.encode_s for device in self.devices)

    @property
    def wait_s(self) -> float:
        """Over all devices."""
        return sum(device.wait_s for device in self.devices)

    @property
    def busy_share(self) -> float:
        """Of GPUs where there were any, else of the CPU's encoders."""
        used = [device for device in self.devices if device.device not in _NO_GPU] or list(self.devices)
        held = sum(device.held_s for device in used)
        return sum(device.encode_s for device in used) / held if held else 0.0

    def gpu_hours(self, gpus_per_encoder: float = 1.0) -> float:
        """Hours GPUs were held; 0 without any.

        Args:
            gpus_per_encoder: share of a GPU that one encoder takes.
        """
        return sum(d.held_s for d in self.devices if d.device not in _NO_GPU) * gpus_per_encoder / HOUR_S

    @property
    def cpu_hours(self) -> float:
        """Hours of a core: decoding, and encoders without a GPU."""
        return (self.decode_s + sum(d.encode_s for d in self.devices if d.device in _NO_GPU)) / HOUR_S


@dataclass(slots=True)
class _Sums:
    runs: int = 0
    wall_s: float = 0.0
    decode_s: float = 0.0
    tokens: int = 0
    begun: float | None = None
    last: float = 0.0
    workers: set[str] = field(default_factory=set[str])
    devices: dict[str, DeviceTimes] = field(default_factory=dict[str, DeviceTimes])
    curve: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])


_MAX_POINTS = 400


def read_times(path: Path) -> Times:
    """Sum up a log; a log that is not there gives zeros. Memory does not grow with the log."""
    sums = _Sums()
    for event in read_events(path):
        now = _seconds(event)
        if event["event"] == "tokenize_begun":
            _close_run(sums)
            sums.runs, sums.begun, sums.last = sums.runs + 1, now, now
            continue
        sums.last = max(sums.last, now)
        if event["event"] == "unit_done":
            _add_unit(sums, event, now)
    _close_run(sums)
    devices = tuple(sums.devices[name] for name in sorted(sums.devices))
    return Times(sums.runs, sums.wall_s, sums.decode_s, len(sums.workers), devices, tuple(sums.curve))


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of the dataset that is there now; a line that a killed run has cut is left out."""
    start = _start(path)
    for place, event in _lines(path):
        if place >= start:
            yield event


def times_report(times: Times, *, tokens: int, gpus_per_encoder: float, usd_per_hour: float | None) -> dict[str, Any]:
    """The times of a report: sums, shares, hours, and the price of a billion tokens where a rate is given.

    Args:
        usd_per_hour: of one GPU, or of one encoding worker where there was none.
    """
    gpu_hours = times.gpu_hours(gpus_per_encoder)
    held_hours = gpu_hours or sum(device.held_s for device in times.devices) / HOUR_S
    report: dict[str, Any] = {
        "runs": times.runs,
        "wall_s": round(times.wall_s, 3),
        "decode_s": round(times.decode_s, 3),
        "encode_s": round(times.encode_s, 3),
        "wait_s": round(times.wait_s, 3),
        "busy_share": round(times.busy_share, 4),
        "wall_hours": round(times.wall_s / HOUR_S, 6),
        "gpu_hours": round(gpu_hours, 6),
        "cpu_hours": round(times.cpu_hours, 6),
        "workers": times.workers,
        "devices": {
            one.device: {
                "units": one.units,
                "encode_s": round(one.encode_s, 3),
                "wait_s": round(one.wait_s, 3),
                "busy_share": round(one.busy_share, 4),
            }
            for one in times.devices
        },
        "device_hours_per_billion_tokens": round(held_hours * 1e9 / tokens, 4) if tokens else None,
    }
    if usd_per_hour is not None:
        report["usd_per_hour"] = usd_per_hour
        report["usd"] = round(held_hours * usd_per_hour, 4)
        report["usd_per_billion_tokens"] = round(held_hours * usd_per_hour * 1e9 / tokens, 2) if tokens else None
    return report


def _lines(path: Path, having: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for place, line in enumerate(file):
            if having not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield place, event


def _start(path: Path) -> int:
    """Where the lines about the dataset that is there now begin."""
    start, fingerprint = 0, None
    # Few lines are; the others need no parsing to be passed over.
    for place, event in _lines(path, b"tokenize_begun"):
        if event["event"] != "tokenize_begun":
            continue
        found = event.get("fingerprint")
        is_other = fingerprint is not None and found != fingerprint
        if is_other or (event.get("missing") == event.get("units") and not event.get("retry")):
            start = place
        fingerprint = found
    return start


def _add_unit(sums: _Sums, event: Mapping[str, Any], now: float) -> None:
    # Before there were separate fields, a unit had its busy seconds only.
    encode_s = float(event.get("encode_s", event.get("busy_s", 0.0)))
    name = str(event.get("device") or UNKNOWN)
    old = sums.devices.get(name, DeviceTimes(name))
    wait_s = old.wait_s + float(event.get("wait_s", 0.0))
    sums.devices[name] = DeviceTimes(name, old.units + 1, old.encode_s + encode_s, wait_s)
    sums.decode_s += float(event.get("decode_s", 0.0))
    sums.tokens += sum(event.get("tokens", {}).values())
    if "worker" in event:
        sums.workers.add(str(event["worker"]))
    if sums.begun is not None:
        sums.curve.append((round(sums.wall_s + now - sums.begun, 3), sums.tokens))
    if len(sums.curve) > _MAX_POINTS:
        sums.curve[:] = [*sums.curve[1:-1:2], sums.curve[-1]]


def _close_run(sums: _Sums) -> None:
    if sums.begun is not None:
        sums.wall_s += sums.last - sums.begun
    sums.begun = None


def _seconds(event: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(event["timestamp"])).timestamp()
    except (KeyError, ValueError):
        return 0.0
