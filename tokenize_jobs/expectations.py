"""What a corpus on disk is expected to give, before it is read: pictures, seconds of sound, bytes.

Nothing says how long a recording is before it is opened. Where units are done, what they gave per input is taken for the
rest. Elsewhere a few inputs are looked at: the first of several raw files spread evenly over the plan, their headers only,
after the filters that need no decoded medium. Either way a plan says how it knows.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile

from pipeline.corpus import load_corpus
from pipeline.filters.apply import filter_raw
from pipeline.samples import RawMedia, RawSample
from pipeline.tokenizers.codecs import open_tokenizers, read_codec_config
from shards.ledger import read_entries
from shards.modality import MEDIA, Modality
from tokenize_jobs.bill import Bill, CorpusPlan, Expected, estimate
from tokenize_jobs.calibration import read_measurements
from tokenize_jobs.plan import TokenizeConfig, Units

if TYPE_CHECKING:
    from tokenize_jobs.job import Job

_SOURCES = 8
_INPUTS = 8
_CODEC_FILE = ".toml"


def bill_of_jobs(jobs: Sequence[Job], *, gpus: int, kind: str, usd_per_hour: float | None = None) -> Bill:
    """What is left to do of the jobs of a call, on so many devices of a kind; see :func:`tokenize_jobs.bill.estimate`.

    Raises:
        ConfigError, CorpusError: as :func:`plan_corpus`; also an unknown device, or a damaged calibration.
    """
    plans = [plan_corpus(job.config, job.units, job.todo) for job in jobs]
    measurements = read_measurements(job.config.output for job in jobs)
    return estimate(plans, gpus=gpus, kind=kind, usd_per_hour=usd_per_hour, measurements=measurements)


@dataclass(frozen=True, slots=True)
class PerInput:
    """What one input of a corpus holds on average.

    Attributes:
        inputs: how many were looked at.
        amounts: pictures, or seconds of sound.
        num_bytes: of its media and texts; 0 where unknown.
        basis: how it is known.
    """

    inputs: int = 0
    amounts: Mapping[Modality, float] = field(default_factory=dict[Modality, float])
    num_bytes: float = 0.0
    basis: str = ""


def plan_corpus(config: TokenizeConfig, units: Units, todo: npt.NDArray[np.int64]) -> CorpusPlan:
    """What the units ``todo`` of a corpus are expected to give.

    Args:
        todo: numbers of units, in order.

    Raises:
        ConfigError, CorpusError: as the reader and the codecs do.
    """
    inputs = int((units.stop[todo] - units.start[todo]).sum())
    looked = look_at(config, units)
    done = done_so_far(config.output)
    known = done if done.inputs else looked
    codecs = open_tokenizers(config.tokenizers)
    media = tuple(
        Expected(
            modality,
            known.amounts.get(modality, 0.0) * inputs,
            codecs[modality].name,
            _precision(config.tokenizers[modality]),
            codecs[modality].fingerprint,
        )
        for modality in MEDIA
        if modality in codecs and (known.amounts.get(modality) or not inputs)
    )
    # A corpus may list its media in a table, whose size says nothing about them.
    num_bytes = max(listed_bytes(config.root, units, todo), round(looked.num_bytes * inputs))
    return CorpusPlan(config.dataset_name, len(todo), inputs, num_bytes, media, known.basis)


def done_so_far(output: Path) -> PerInput:
    """What the units that are done gave per input; nothing looked at where none is."""
    inputs, units = 0, 0
    amounts: dict[Modality, float] = {}
    for entry in read_entries(output):
        inputs, units = inputs + entry.stop - entry.start, units + 1
        for name, amount in {**entry.seconds, Modality.IMAGE: entry.images}.items():
            amounts[Modality(name)] = amounts.get(Modality(name), 0.0) + amount
    if not inputs:
        return PerInput()
    basis = f"from the {units:,} unit{'s' if units > 1 else ''} that {'are' if units > 1 else 'is'} done ({inputs:,} inputs)"
    return PerInput(inputs, {modality: amount / inputs for modality, amount in amounts.items()}, basis=basis)


def look_at(config: TokenizeConfig, units: Units) -> PerInput:
    """Look at the first inputs of a few raw files, spread evenly over the plan."""
    sources = units.sources
    with_inputs = [source for source in sources if source.num_items]
    count = min(_SOURCES, len(with_inputs))
    reader, found = load_corpus(config), _Found()
    for place in range(count):
        source = with_inputs[place * len(with_inputs) // count]
        for result in reader.read(source, start=0, stop=min(_INPUTS, source.num_items)):
            found.inputs += 1
            if isinstance(result, RawSample):
                found.add(result, config, kept=isinstance(filter_raw(result, config.filters), RawSample))
    if not found.inputs:
        return PerInput(basis="unknown: the corpus has no inputs")
    basis = (
        f"estimated from the headers of {found.inputs:,} inputs of {count:,} raw files, before any rule that needs decoded "
        "media"
    )
    amounts = {modality: amount / found.inputs for modality, amount in found.amounts.items()}
    return PerInput(found.inputs, amounts, found.num_bytes / found.inputs, basis)


def listed_bytes(root: Path, units: Units, todo: npt.NDArray[np.int64]) -> int:
    """Bytes of the raw files, each in the share of its inputs that are to be done."""
    items_todo = np.bincount(
        units.source_of[todo], weights=units.stop[todo] - units.start[todo], minlength=len(units.sources)
    )
    items_of: Counter[Path] = Counter()
    todo_of: Counter[Path] = Counter()
    for source, items in zip(units.sources, items_todo.tolist(), strict=True):
        items_of[source.path] += source.num_items
        todo_of[source.path] += int(items)
    sizes = _sizes(root, [path for path, items in todo_of.items() if items])
    return sum(round(sizes.get(path, 0) * items / items_of[path]) for path, items in todo_of.items() if items)


@dataclass(slots=True)
class _Found:
    inputs: int = 0
    num_bytes: float = 0.0
    amounts: dict[Modality, float] = field(default_factory=dict[Modality, float])

    def add(self, sample: RawSample, config: TokenizeConfig, *, kept: bool) -> None:
        for segment in sample.segments:
            if not isinstance(segment, RawMedia):
                self.num_bytes += len(segment.text.encode())
                continue
            seconds, num_bytes = _measure(segment)
            self.num_bytes += num_bytes
            if kept and segment.modality in config.tokenizers:
                before = self.amounts.get(segment.modality, 0.0)
                self.amounts[segment.modality] = before + _read_amount(segment.modality, seconds, config)


def _measure(media: RawMedia) -> tuple[float, float]:
    """Seconds (0 for pictures, and where a header does not say) and bytes of a medium, or of its share of a recording."""
    size = float(len(media.data)) if media.path is None else float(_size(media.path))
    if not media.modality.is_sound:
        return 0.0, size
    whole = _duration(media)
    begin, end = media.begin_s or 0.0, media.end_s if media.end_s is not None else whole
    seconds = max(0.0, end - begin)
    return seconds, size * seconds / whole if whole else size


def _duration(media: RawMedia) -> float:
    try:
        if media.path is None:
            return float(soundfile.info(io.BytesIO(media.data)).duration)
        with media.path.open("rb") as file:
            return float(soundfile.info(file).duration)
    except (OSError, soundfile.SoundFileError):
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_amount(modality: Modality, seconds: float, config: TokenizeConfig) -> float:
    """What of a medium the front end keeps: a picture, or the seconds that its windows cover."""
    if not modality.is_sound:
        return 1.0
    sound: Any = getattr(config.media, str(modality))
    if sound.windowed:
        return min(seconds, config.windows.window_s * config.windows.max_windows)
    return seconds if seconds <= sound.max_s else 0.0


def _precision(path: Path) -> Any:
    """What a codec's products are computed in; the small ones of this project know float32 alone."""
    return read_codec_config(path)[1].precision if path.suffix == _CODEC_FILE else "fp32"


def _sizes(root: Path, paths: list[Path]) -> dict[Path, int]:
    if isinstance(root, Path):
        return {path: _size(path) for path in paths}
    # One listing instead of a request a file.
    found: dict[str, Any] = root.fs.find(root.path, detail=True)
    sizes = {name.lstrip("/"): int(facts["size"]) for name, facts in found.items()}
    return {path: sizes.get(path.path.lstrip("/"), 0) for path in paths}
