"""How fast devices were: pictures and seconds of sound per second of encoding, by device and codec, as jobs measured it.

``calibration.json`` lies in the folder that holds the datasets, so the next corpus of that folder is planned with the
figures of the last. It is remade from logs: a dataset's lines replace those it gave before, so updating twice changes
nothing. Only units of a single medium count, for nobody knows which of two media took the time; nor do units that were
done again, whose counts are of the whole unit and whose times are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.ledger import unit_number
from shards.modality import SOUNDS, Modality
from shards.writer import commit_bytes
from tokenize_jobs.log import beside, log_path
from tokenize_jobs.timing import read_events

CALIBRATION_NAME = "calibration.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the units of one dataset with one medium took on one kind of device.

    Attributes:
        device: as torch names it, or ``cpu``.
        codec: fingerprint of the codec.
        dataset: whose log it is from.
        amount: pictures, or seconds of sound.
        encode_s: of one device.
        decode_s: of one core.
    """

    device: str
    modality: str
    codec: str
    dataset: str
    units: int
    amount: float
    encode_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Pictures or seconds of sound per second, and how well that is known.

    Attributes:
        encode_rate: of one device.
        decode_rate: of one core; 0 when unknown.
        basis: ``measured`` or ``assumed``, and on what, for the reader of a bill.
    """

    encode_rate: float
    decode_rate: float
    basis: str


def calibration_path(output: Path) -> Path:
    """The file of the folder a dataset lies in."""
    return beside(output, "").with_name(CALIBRATION_NAME)


def read_calibration(path: Path) -> tuple[Measurement, ...]:
    """What was measured; nothing where there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return ()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Measurement(**one) for one in data["measurements"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected a calibration that a job wrote, found {error!r}; remove it, the next job makes another"
        ) from error


def read_measurements(outputs: Iterable[Path]) -> tuple[Measurement, ...]:
    """What was measured in the folders that these datasets lie in, every measurement once.

    Raises:
        ConfigError: a file is damaged.
    """
    paths = dict.fromkeys(calibration_path(output) for output in outputs)
    return tuple(dict.fromkeys(one for path in paths for one in read_calibration(path)))


def update_calibration(
    output: Path, tokenizers: Mapping[str, str], *, path: Path | None = None
) -> tuple[Measurement, ...]:
    """Put what the log of a dataset says in place of what it said before, and commit the file.

    Args:
        tokenizers: modality -> fingerprint, as in the dataset's manifest.
        path: of the calibration; the one of the dataset's folder by default.

    Returns:
        All measurements, in the order of the file.
    """
    path = path or calibration_path(output)
    kept = [one for one in read_calibration(path) if one.dataset != output.name]
    found = measure_log(log_path(output), tokenizers, dataset=output.name)
    every = tuple(sorted([*kept, *found], key=lambda one: (one.device, one.modality, one.codec, one.dataset)))
    if found or len(kept) < len(every):
        data = {"version": _VERSION, "measurements": [asdict(one) for one in every]}
        commit_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    return every


def measure_log(path: Path, tokenizers: Mapping[str, str], *, dataset: str) -> list[Measurement]:
    """Sum up the units of a log by device and medium."""
    sums: dict[tuple[str, str], list[float]] = {}
    for event in _first_units(path):
        medium = _only_medium(event)
        if medium is None or medium[0] not in tokenizers or not event.get("device"):
            continue
        modality, amount = medium
        total = sums.setdefault((str(event["device"]), modality), [0, 0.0, 0.0, 0.0])
        for place, value in enumerate((1, amount, event["encode_s"], event.get("decode_s", 0.0))):
            total[place] += value
    return [
        Measurement(
            device, modality, tokenizers[modality], dataset, int(t[0]), round(t[1], 3), round(t[2], 3), round(t[3], 3)
        )
        for (device, modality), t in sorted(sums.items())
    ]


def measured_speed(measurements: Iterable[Measurement], *, kind: str, modality: Modality, codec: str) -> Speed | None:
    """The speed of a codec on a kind of device, or None where nobody has measured it.

    Args:
        kind: a device's whole name, or a word of it: ``A100`` is ``NVIDIA A100-SXM4-80GB`` and no ``A10``.
    """
    found = [
        one
        for one in measurements
        if one.modality == modality and one.codec == codec and one.encode_s > 0 and is_kind(one.device, kind)
    ]
    if not found:
        return None
    amount, decode_s = sum(one.amount for one in found), sum(one.decode_s for one in found)
    units, devices = sum(one.units for one in found), ", ".join(sorted({one.device for one in found}))
    return Speed(
        encode_rate=amount / sum(one.encode_s for one in found),
        decode_rate=amount / decode_s if decode_s else 0.0,
        basis=f"measured on {devices} over {units:,} unit{'s' if units > 1 else ''}",
    )


def is_kind(device: str, kind: str) -> bool:
    """Whether a device's name is, or holds as a word, ``kind``."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(kind)}(?![A-Za-z0-9])", device, re.IGNORECASE) is not None


def _first_units(path: Path) -> Iterator[Mapping[str, Any]]:
    """The first line of every unit; one byte of memory a unit."""
    seen, retry = bytearray(), False
    for event in read_events(path):
        if event["event"] == "tokenize_begun":
            retry = bool(event.get("retry"))
        if event["event"] != "unit_done":
            continue
        number = unit_number(event["unit"])
        seen.extend(bytes(max(0, number + 1 - len(seen))))
        if not seen[number] and not retry and event.get("encode_s", 0.0) > 0:
            yield event
        seen[number] = 1


def _only_medium(event: Mapping[str, Any]) -> tuple[str, float] | None:
    """(modality, amount) of a unit of one medium; None for one of none or of several."""
    amounts = {name: seconds for name, seconds in event.get("sound_s", {}).items() if seconds > 0 and name in SOUNDS}
    if event.get("images"):
        amounts[str(Modality.IMAGE)] = event["images"]
    return next(iter(amounts.items())) if len(amounts) == 1 else None
