"""Filters: declared rules that leave sound inputs out, each counted under its own name.

A rule is one function ``(view, config) -> bool``: true leaves the sample out, and the function's name is the reason in the
report. Every rule is off until its key is set; a rule whose number a sample does not have (no CLIP score, or NaN) keeps
the sample, unless ``keep_unknown`` is false.

Rules run twice: on what a corpus says (:func:`filter_raw`, before any medium is decoded) and on what was measured
(:func:`filter_decoded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from configs.load import Config
from pipeline.samples import Filtered, RawMedia, RawSample, RawText
from pipeline.sounds import silence_share
from pipeline.tokenization import SAMPLE_RATES_HZ, Decoded, DecodedMedia, DecodedSample
from shards.records import Provenance
from shards.vocabulary import Modality

CAPTION_SLOTS = frozenset({"caption", "transcript"})


class FilterConfig(Config):
    """Thresholds; None switches a rule off."""

    min_caption_chars: int | None = Field(default=None, ge=0)
    max_caption_chars: int | None = Field(default=None, ge=1)
    min_side_px: int | None = Field(default=None, ge=1)
    """Of the stored picture, where the corpus tells its size."""
    max_aspect_ratio: float | None = Field(default=None, ge=1.0)
    min_similarity: float | None = None
    max_punsafe: float | None = None
    max_pwatermark: float | None = None
    min_aesthetic: float | None = None
    min_speech_s: float | None = Field(default=None, ge=0.0)
    max_speech_s: float | None = Field(default=None, gt=0.0)
    min_chars_per_s: float | None = Field(default=None, ge=0.0)
    max_chars_per_s: float | None = Field(default=None, gt=0.0)
    """Of a transcript: far too many or too few characters a second mean that it belongs to another sound."""
    max_silence_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Of music: share of 20 ms frames below -60 dB of full scale."""
    keep_unknown: bool = True
    """Whether a sample without the number that a rule needs is kept."""


@dataclass(frozen=True, slots=True)
class View:
    """What rules look at.

    Attributes:
        captions: texts of the caption and transcript slots.
        numbers: the corpus's quality fields, and what was measured.
        modalities: of the sample's media.
    """

    captions: tuple[str, ...]
    numbers: Mapping[str, float]
    modalities: frozenset[Modality]


def filter_raw(sample: RawSample, config: FilterConfig) -> RawSample | Filtered:
    """Apply the rules that need no decoded medium."""
    captions = tuple(s.text for s in sample.segments if isinstance(s, RawText) and s.slot in CAPTION_SLOTS)
    modalities = frozenset(s.modality for s in sample.segments if isinstance(s, RawMedia))
    reason = _first_reason(View(captions, sample.quality, modalities), config, RAW_RULES)
    return sample if reason is None else _filtered(sample, reason)


def filter_decoded(items: Iterable[Decoded], config: FilterConfig) -> Iterator[Decoded]:
    """Measure sounds, and apply the rules that need it; what is no sample passes through.

    Samples leave with what was measured in ``quality``: ``silence_share`` of music, ``chars_per_s`` of speech.
    """
    for item in items:
        if not isinstance(item, DecodedSample):
            yield item
            continue
        measured = measure(item)
        modalities = frozenset(s.modality for s in item.segments if isinstance(s, DecodedMedia))
        numbers = {**item.quality, **measured}
        reason = _first_reason(View(_texts(item), numbers, modalities), config, DECODED_RULES)
        if reason is not None:
            yield _filtered(item, reason)
            continue
        measured.pop("speech_s", None)
        yield replace(item, quality={**item.quality, **measured})


def measure(sample: DecodedSample) -> dict[str, float]:
    """What rules ask of decoded sounds.

    Returns:
        ``speech_s`` (longest), ``chars_per_s`` (of one speech with its transcript), ``silence_share`` (most silent music).
    """
    numbers: dict[str, float] = {}
    sounds = [(s.modality, s.clip.medium) for s in sample.segments if isinstance(s, DecodedMedia)]
    speech_s = [len(wave) / SAMPLE_RATES_HZ[kind] for kind, wave in sounds if kind is Modality.SPEECH]
    music = [wave.astype(np.float32, copy=False) for kind, wave in sounds if kind is Modality.MUSIC]
    if speech_s:
        numbers["speech_s"] = max(speech_s)
        texts = _texts(sample)
        if len(speech_s) == 1 and texts:
            numbers["chars_per_s"] = len(texts[0]) / speech_s[0]
    if music:
        numbers["silence_share"] = max(silence_share(wave, SAMPLE_RATES_HZ[Modality.MUSIC]) for wave in music)
    return numbers


def caption_too_short(view: View, config: FilterConfig) -> bool:
    """A caption or transcript says next to nothing."""
    least = config.min_caption_chars
    return least is not None and any(len(text) < least for text in view.captions)


def caption_too_long(view: View, config: FilterConfig) -> bool:
    """A caption or transcript is longer than a picture can mean."""
    most = config.max_caption_chars
    return most is not None and any(len(text) > most for text in view.captions)


def picture_too_small(view: View, config: FilterConfig) -> bool:
    """The stored picture's shorter side is small."""
    return _outside(_side(view, min), view, config, least=config.min_side_px, only=Modality.IMAGE)


def picture_too_long(view: View, config: FilterConfig) -> bool:
    """The picture is a strip."""
    short, long = _side(view, min), _side(view, max)
    ratio = long / short if short and long else None
    return _outside(ratio, view, config, most=config.max_aspect_ratio, only=Modality.IMAGE)


def similarity_too_low(view: View, config: FilterConfig) -> bool:
    """CLIP finds that picture and text have little in common."""
    number = view.numbers.get("similarity")
    return _outside(number, view, config, least=config.min_similarity, only=Modality.IMAGE)


def unsafe(view: View, config: FilterConfig) -> bool:
    """The corpus's classifier thinks the picture unsafe."""
    return _outside(view.numbers.get("punsafe"), view, config, most=config.max_punsafe, only=Modality.IMAGE)


def watermarked(view: View, config: FilterConfig) -> bool:
    """The corpus's classifier sees a watermark."""
    return _outside(view.numbers.get("pwatermark"), view, config, most=config.max_pwatermark, only=Modality.IMAGE)


def aesthetic_too_low(view: View, config: FilterConfig) -> bool:
    """The corpus's predictor of taste scores it low."""
    return _outside(view.numbers.get("aesthetic"), view, config, least=config.min_aesthetic, only=Modality.IMAGE)


def speech_duration(view: View, config: FilterConfig) -> bool:
    """Speech shorter or longer than asked for."""
    seconds = view.numbers.get("speech_s")
    return _outside(seconds, view, config, least=config.min_speech_s, most=config.max_speech_s, only=Modality.SPEECH)


def speech_rate(view: View, config: FilterConfig) -> bool:
    """More or fewer characters a second than anybody speaks."""
    rate = view.numbers.get("chars_per_s")
    return _outside(rate, view, config, least=config.min_chars_per_s, most=config.max_chars_per_s, only=Modality.SPEECH)


def music_silent(view: View, config: FilterConfig) -> bool:
    """Too much of the music is silence."""
    share = view.numbers.get("silence_share")
    return _outside(share, view, config, most=config.max_silence_share, only=Modality.MUSIC)


Rule = Callable[[View, FilterConfig], bool]
RAW_RULES: tuple[Rule, ...] = (
    caption_too_short,
    caption_too_long,
    picture_too_small,
    picture_too_long,
    similarity_too_low,
    unsafe,
    watermarked,
    aesthetic_too_low,
)
DECODED_RULES: tuple[Rule, ...] = (speech_duration, speech_rate, music_silent)


def _first_reason(view: View, config: FilterConfig, rules: Iterable[Rule]) -> str | None:
    return next((rule.__name__ for rule in rules if rule(view, config)), None)


def _outside(
    number: float | None,
    view: View,
    config: FilterConfig,
    *,
    least: float | None = None,
    most: float | None = None,
    only: Modality,
) -> bool:
    """Whether a number leaves its range; unknown numbers do if the config says so."""
    if (least is None and most is None) or only not in view.modalities:
        return False
    if number is None or not np.isfinite(number):
        return not config.keep_unknown
    return (least is not None and number < least) or (most is not None and number > most)


def _side(view: View, pick: Callable[[float, float], float]) -> float | None:
    width, height = view.numbers.get("width"), view.numbers.get("height")
    return None if width is None or height is None else pick(width, height)


def _texts(sample: DecodedSample) -> tuple[str, ...]:
    return tuple(
        segment.text
        for segment in sample.segments
        if not isinstance(segment, DecodedMedia) and segment.text is not None and segment.slot in CAPTION_SLOTS
    )


def _filtered(sample: RawSample | DecodedSample, reason: str) -> Filtered:
    provenance: Provenance = sample.provenance
    return Filtered(sample.sample_id, sample.corpus, reason, f"left out by the filter {reason}", provenance)
