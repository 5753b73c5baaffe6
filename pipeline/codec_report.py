"""What a codec does to media, in figures: code usage by level, rate, speed, and how close the way back comes.

Any codec of the protocol is measured, fitted here or of published weights, on media nobody fitted it on. Names and
definitions of the quality figures are those of ``anygpt-fit``'s report, so the two can be compared.

An entropy measured on n codes cannot exceed log2 n, however good the codec; every level carries that ceiling along.
Speed is measured after one item of warm-up, and is the only part of a report that differs from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer, Medium, Picture, Wave
from pipeline.tokenizers.codecs import codec_weight_files, open_detokenizer, open_tokenizer
from pipeline.tokenizers.quality import log_mel_distance, psnr_db
from shards.errors import ConfigError, TokenizerError
from shards.vocabulary import Codes, Modality

_BEST_PSNR_DB = 99.0  # of a picture that comes back exactly, as in the report of a fit
_SHOWN = {Modality.IMAGE: 8}
_SHOWN_SOUNDS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LevelUsage:
    """How one level's codebook is used.

    Attributes:
        level: from 1.
        counts: of every code that occurs, the most frequent first.
    """

    level: int
    codebook_size: int
    counts: tuple[int, ...]

    @property
    def num_observed(self) -> int:
        """Codes looked at."""
        return sum(self.counts)

    @property
    def num_used(self) -> int:
        """Different codes that occur."""
        return len(self.counts)

    @property
    def num_dead(self) -> int:
        """Codes that do not occur in what was looked at."""
        return self.codebook_size - self.num_used

    @property
    def most_common_share(self) -> float:
        """Of the most frequent code; 0 without codes."""
        return self.counts[0] / self.num_observed if self.counts else 0.0

    @property
    def entropy_bits(self) -> float:
        """Bits per code, from the observed frequencies; 0 without codes."""
        if self.num_used < 2:
            return 0.0
        shares = np.asarray(self.counts, np.float64) / self.num_observed
        return float(-(shares * np.log2(shares)).sum())

    @property
    def perplexity(self) -> float:
        """2^entropy: as many equally frequent codes would give this entropy."""
        return 2.0**self.entropy_bits

    @property
    def ceiling_bits(self) -> float:
        """The most that so many observations of this codebook can give: log2 min(n, codebook)."""
        return float(np.log2(max(1, min(self.num_observed, self.codebook_size))))


@dataclass(frozen=True, slots=True)
class Shown:
    """One item for the page.

    Attributes:
        decoded: ways back by name, e.g. ``all 8 levels`` and ``level 1 alone``; empty without a detokenizer.
    """

    original: Medium
    codes: Codes
    decoded: tuple[tuple[str, Medium], ...]


@dataclass(frozen=True, slots=True)
class WayBack:
    """A detokenizer, or the reason why there is none.

    Attributes:
        generative: it makes up a new medium of the same meaning; differences to the original measure nothing.
    """

    detokenizer: MediaDetokenizer | None
    missing: str = ""
    generative: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """What media a report is about.

    Attributes:
        corpora: paths of their configs.
        num_undecodable: chosen, but damaged.
    """

    corpora: tuple[str, ...]
    num_undecodable: int = 0


@dataclass(frozen=True, slots=True)
class CodecReport:
    """One codec on some media of its modality.

    Attributes:
        media_s: seconds of sound; 0 for pictures.
        quality: by the names of a fit's report: ``image_psnr_db``, ``speech_mel``, ``speech_mel_shuffled`` ...
        encode_s, decode_s: seconds it took; ``decode_s`` is None without a way back.
    """

    codec: MediaTokenizer
    back: WayBack
    measured_on: MeasuredOn
    num_items: int
    media_s: float
    levels: tuple[LevelUsage, ...]
    quality: tuple[tuple[str, float], ...]
    encode_s: float
    decode_s: float | None
    shown: tuple[Shown, ...]

    @property
    def modality(self) -> Modality:
        """The codec's."""
        return self.codec.modality

    @property
    def codes_per_unit(self) -> float:
        """Codes per second of sound, all levels (Table 1), or per picture."""
        per_level = self.codec.frame_rate_hz if self.media_s else self.codec.frames_for(0)
        return per_level * self.codec.levels

    @property
    def bits_per_unit(self) -> float:
        """Room in the codes of a second, or of a picture: codes x log2 of the codebook."""
        return self.codes_per_unit * float(np.log2(self.codec.codebook_size))

    @property
    def used_bits_per_unit(self) -> float:
        """The same with the measured entropy of each level, codes taken one by one."""
        return self.codes_per_unit / self.codec.levels * sum(level.entropy_bits for level in self.levels)

    def speed(self, seconds: float) -> float:
        """Seconds of sound, or pictures, per second of work."""
        return (self.media_s or self.num_items) / max(seconds, 1e-9)


def usage_by_level(codes: Sequence[Codes], codebook_size: int) -> tuple[LevelUsage, ...]:
    """Usage of every level over all items.

    Args:
        codes: (frames, levels) each, with as many levels, values in [0, codebook_size).

    Raises:
        TokenizerError: a code that is not in the codebook.
    """
    together = np.concatenate(codes)
    if together.size and int(together.max()) >= codebook_size:
        raise TokenizerError(
            f"expected codes below {codebook_size}, found {int(together.max())}; the codec does not keep its promise"
        )
    return tuple(
        _usage(level, together[:, level - 1].astype(np.int64), codebook_size)
        for level in range(1, together.shape[1] + 1)
    )


def open_codec(path: Path, modality: Modality) -> tuple[MediaTokenizer, WayBack]:
    """The codec a path means, and its way back where there is one.

    Raises:
        ConfigError, TokenizerError: as ``open_tokenizer``; also for a way back that is there and damaged.
    """
    codec = open_tokenizer(path, modality)
    absent = [
        file
        for file in codec_weight_files(path)
        if "decode" in file.needed_for and not file.required and (file.path is None or not file.path.exists())
    ]
    if absent:
        missing = "; ".join(f"options.{file.option} = {file.path or 'nothing'}" for file in absent)
        return codec, WayBack(None, missing)
    detokenizer = open_detokenizer(path, modality)
    return codec, WayBack(detokenizer, generative=bool(getattr(detokenizer, "generative", False)))


def measure_codec(
    codec: MediaTokenizer, back: WayBack, media: Sequence[Medium], measured_on: MeasuredOn
) -> CodecReport:
    """Encode and decode the media, and count.

    Args:
        media: one item at least; the shuffled control of sounds needs two.

    Raises:
        ConfigError: no media.
    """
    if not media:
        raise ConfigError(f"expected {codec.modality} to measure on, found none; give --items 1 or more")
    codec.encode(media[:1])
    codes, encode_s = _timed(lambda: codec.encode(media))
    decoded: list[Medium] | None = None
    first: list[Medium] | None = None
    decode_s = None
    if (detokenizer := back.detokenizer) is not None:
        if not back.generative:
            detokenizer.decode(codes[:1])
        decoded, decode_s = _timed(lambda: detokenizer.decode(codes))
        if codec.modality is Modality.SPEECH and codec.levels > 1:
            first = detokenizer.decode([one[:, :1] for one in codes])
    is_sound = codec.sample_rate_hz > 0
    return CodecReport(
        codec,
        back,
        measured_on,
        num_items=len(media),
        media_s=sum(map(len, media)) / codec.sample_rate_hz if is_sound else 0.0,
        levels=usage_by_level(codes, codec.codebook_size),
        quality=tuple(_quality(codec, back, media, decoded, first).items()) if decoded else (),
        encode_s=encode_s,
        decode_s=decode_s,
        shown=_shown(codec, media, codes, decoded, first),
    )


def figures(report: CodecReport) -> dict[str, Any]:
    """All figures for a JSON file; what differs from run to run is under ``timing``."""
    codec, sound = report.codec, report.media_s > 0
    unit = "second" if sound else "picture"
    speed = "realtime_factor" if sound else "pictures_per_second"
    timing = {"encode_s": report.encode_s, f"encode_{speed}": report.speed(report.encode_s)}
    if report.decode_s is not None:
        timing |= {"decode_s": report.decode_s, f"decode_{speed}": report.speed(report.decode_s)}
    return {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "codebook_size": codec.codebook_size,
        "num_levels": codec.levels,
        "sample_rate_hz": codec.sample_rate_hz,
        "frame_rate_hz": codec.frame_rate_hz,
        "corpora": list(report.measured_on.corpora),
        "num_items": report.num_items,
        "num_undecodable": report.measured_on.num_undecodable,
        "media_s": round(report.media_s, 3),
        f"codes_per_{unit}": report.codes_per_unit,
        f"bits_per_{unit}": round(report.bits_per_unit, 3),
        f"used_bits_per_{unit}": round(report.used_bits_per_unit, 3),
        "levels": [_level_figures(level) for level in report.levels],
        "way_back": "none" if report.back.detokenizer is None else report.back.detokenizer.name,
        "generative": report.back.generative,
        "quality": {name: round(value, 3) for name, value in report.quality},
        "timing": {name: round(value, 4) for name, value in timing.items()},
    }


def _level_figures(level: LevelUsage) -> dict[str, Any]:
    return {
        "level": level.level,
        "num_observed": level.num_observed,
        "num_used": level.num_used,
        "num_dead": level.num_dead,
        "used_share": round(level.num_used / level.codebook_size, 4),
        "entropy_bits": round(level.entropy_bits, 4),
        "ceiling_bits": round(level.ceiling_bits, 4),
        "perplexity": round(level.perplexity, 2),
        "most_common_share": round(level.most_common_share, 4),
    }


def _usage(level: int, codes: np.ndarray[Any, np.dtype[np.int64]], codebook_size: int) -> LevelUsage:
    counts = np.bincount(codes, minlength=codebook_size)
    return LevelUsage(level, codebook_size, tuple(sorted((int(count) for count in counts if count), reverse=True)))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _quality(
    codec: MediaTokenizer,
    back: WayBack,
    media: Sequence[Medium],
    decoded: Sequence[Medium],
    first: Sequence[Medium] | None,
) -> dict[str, float]:
    if back.generative:
        return {}
    if codec.modality is Modality.IMAGE:
        pairs = zip(cast(Sequence[Picture], media), cast(Sequence[Picture], decoded), strict=True)
        return {"image_psnr_db": float(np.mean([min(psnr_db(a, b), _BEST_PSNR_DB) for a, b in pairs]))}
    name, rate = f"{codec.modality}_mel", codec.sample_rate_hz
    found = {name: _distance(media, decoded, rate)}
    if len(media) > 1:
        found[f"{name}_shuffled"] = _distance(media, [decoded[-1], *decoded[:-1]], rate)
    if first is not None:
        found[f"{name}_level1"] = _distance(media, first, rate)
    return found


def _distance(truth: Sequence[Medium], decoded: Sequence[Medium], rate: int) -> float:
    pairs = zip(truth, decoded, strict=True)
    return float(np.mean([log_mel_distance(cast(Wave, a), cast(Wave, b), rate) for a, b in pairs]))


def _shown(
    codec: MediaTokenizer,
    media: Sequence[Medium],
    codes: Sequence[Codes],
    decoded: Sequence[Medium] | None,
    first: Sequence[Medium] | None,
) -> tuple[Shown, ...]:
    """Items spread evenly over what was measured."""
    count = min(len(media), _SHOWN.get(codec.modality, _SHOWN_SOUNDS))
    places = [number * len(media) // count for number in range(count)]
    every = f"all {codec.levels} levels" if codec.levels > 1 else "decoded"
    return tuple(
        Shown(
            media[place],
            codes[place],
            tuple(
                (name, made[place]) for name, made in ((every, decoded), ("level 1 alone", first)) if made is not None
            ),
        )
        for place in places
    )
