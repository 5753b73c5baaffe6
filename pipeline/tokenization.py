"""What happens to samples in stage A: decode their media, encode them, hold them to Table 1.

Pure functions over iterables; where they run (a Ray actor, a test, a bare loop) is no matter here. This is the only
place of stage A that catches a sample's failure: ``SampleError`` alone, with its named reason, one ``Reject`` each.
Everything else is allowed to stop the unit.

A long sound may be cut into windows (:mod:`pipeline.media`); each window becomes a sample of its own, ``ID#w0``,
``ID#w1``, ..., and counts as one input from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject
from pipeline.tokenizers.base import MediaTokenizer, Medium
from shards.errors import ConfigError, SampleError
from shards.modality import MEDIA, SOUNDS
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Codes, Modality

TOKENIZATION_VERSION = 2
"""Raised whenever the same raw sample would become another row; part of every dataset's fingerprint."""

LEVELS_AT_REST = {modality: modality.rate.levels_at_rest for modality in MEDIA}
LEVELS_READ = {modality: modality.rate.levels_read for modality in MEDIA}
"""Levels the language model reads; the rest is for a vocoder."""
SAMPLES_PER_FRAME = {modality: modality.rate.samples_per_frame for modality in SOUNDS}
SAMPLE_RATES_HZ = {modality: modality.rate.sample_rate_hz for modality in SOUNDS}


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded medium: what a codec reads, and what is kept about it.

    Attributes:
        medium: (224, 224, 3) uint8, or (samples,) float32 at the modality's sample rate.
        media_sha256: of the raw media bytes it was decoded from.
    """

    medium: Medium
    media_sha256: str


@dataclass(frozen=True, slots=True)
class DecodedMedia:
    """A media segment between decoding and encoding."""

    slot: str
    modality: Modality
    clip: Clip


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """A sample whose media are decoded: text segments are final, media wait for a codec."""

    sample_id: str
    corpus: str
    split: str
    segments: tuple[Segment | DecodedMedia, ...]
    provenance: Provenance
    quality: Mapping[str, float] = field(default_factory=dict[str, float])


DecodeMedia = Callable[[RawMedia], Sequence[Clip]]
"""One clip, or several windows of a long sound; raises SampleError."""

Decoded = DecodedSample | Filtered | Reject
Encoded = TokenizedSample | Filtered | Reject


def decode_samples(items: Iterable[RawSample | Filtered | Reject], decode: DecodeMedia) -> Iterator[Decoded]:
    """Decode what can be decoded; what cannot becomes a reject, and what was left out before passes through."""
    for item in items:
        if not isinstance(item, RawSample):
            yield item
            continue
        try:
            yield from decode_sample(item, decode)
        except SampleError as error:
            yield _rejected(item, error)


def decode_sample(sample: RawSample, decode: DecodeMedia) -> list[DecodedSample]:
    """Decode the media of one sample.

    Returns:
        One sample, or one per window when a medium of it was cut.

    Raises:
        SampleError: a medium cannot be decoded; the sample is empty; two of its media were cut into windows.
    """
    if not sample.segments:
        raise SampleError("sample_empty", f"{sample.sample_id}: no segment at all")
    choices: list[list[Segment | DecodedMedia]] = []
    for segment in sample.segments:
        if isinstance(segment, RawText):
            choices.append([Segment(segment.slot, Modality.TEXT, text=segment.text)])
            continue
        clips = decode(segment)
        if not clips:
            raise SampleError("media_empty", f"{sample.sample_id}: {segment.slot} gave no clip")
        choices.append([DecodedMedia(segment.slot, segment.modality, clip) for clip in clips])
    windows = max(len(choice) for choice in choices)
    if windows == 1:
        return [_decoded(sample, sample.sample_id, [choice[0] for choice in choices])]
    if sum(len(choice) > 1 for choice in choices) > 1:
        raise SampleError("several_long_media", f"{sample.sample_id}: windows can be cut from one medium of a sample")
    return [
        _decoded(sample, f"{sample.sample_id}#w{window}", [choice[window % len(choice)] for choice in choices])
        for window in range(windows)
    ]


def encode_samples(items: Sequence[Decoded], codecs: Mapping[Modality, MediaTokenizer]) -> Iterator[Encoded]:
    """Encode all media of a modality in one call, for codecs cut batches themselves; check every code against Table 1.

    Args:
        codecs: a tokenizer for every modality that occurs.

    Raises:
        ConfigError: one of them is missing.
    """
    codes = _encode_media(items, codecs)
    seen: set[str] = set()
    for index, item in enumerate(items):
        if not isinstance(item, DecodedSample):
            yield item
            continue
        try:
            if item.sample_id in seen:
                raise SampleError("duplicate_id", f"{item.sample_id}: the second sample of that id in its unit")
            seen.add(item.sample_id)
            yield _tokenized(item, codes.get(index, {}))
        except SampleError as error:
            yield _rejected(item, error)


def check_rate(modality: Modality, codes: Codes, num_samples: int) -> None:
    """Hold codes to Table 1.

    Args:
        num_samples: of the sound that was encoded; not read for pictures.

    Raises:
        SampleError: ``rate_mismatch``, naming what was expected and found.
    """
    rate = modality.rate
    expected = (rate.frames_for(num_samples), rate.levels_at_rest)
    if codes.shape != expected or codes.dtype != np.uint16:
        raise SampleError(
            "rate_mismatch", f"{modality}: expected uint16 codes {expected}, found {codes.dtype} {codes.shape}"
        )
    if codes.size and int(codes.max()) >= rate.codebook_size:
        raise SampleError(
            "rate_mismatch", f"{modality}: expected codes below {rate.codebook_size}, found {int(codes.max())}"
        )


def count_tokens(samples: Iterable[TokenizedSample]) -> dict[str, int]:
    """Media tokens by modality as the language model reads them: level 1 of speech, all levels of other sounds."""
    total: dict[str, int] = {}
    for sample in samples:
        for segment in sample.segments:
            if segment.codes is not None:
                tokens = len(segment.codes) * LEVELS_READ[segment.modality]
                total[str(segment.modality)] = total.get(str(segment.modality), 0) + tokens
    return dict(sorted(total.items()))


def _decoded(sample: RawSample, sample_id: str, segments: Sequence[Segment | DecodedMedia]) -> DecodedSample:
    return DecodedSample(
        sample_id, sample.corpus, sample.split, tuple(segments), sample.provenance, dict(sample.quality)
    )


def _rejected(sample: RawSample | DecodedSample, error: SampleError) -> Reject:
    return Reject(sample.sample_id, sample.corpus, error.reason, str(error), sample.provenance)


def _encode_media(items: Sequence[Decoded], codecs: Mapping[Modality, MediaTokenizer]) -> dict[int, dict[int, Codes]]:
    """Codes by sample index and segment index."""
    waiting: dict[Modality, list[tuple[int, int, Medium]]] = {}
    for index, item in enumerate(items):
        if isinstance(item, DecodedSample):
            for position, segment in enumerate(item.segments):
                if isinstance(segment, DecodedMedia):
                    waiting.setdefault(segment.modality, []).append((index, position, segment.clip.medium))
    codes: dict[int, dict[int, Codes]] = {}
    for modality, media in waiting.items():
        if modality not in codecs:
            raise ConfigError(f"tokenizers.{modality}: expected a codec, for the corpus has {modality}; give its path")
        encoded = codecs[modality].encode([medium for _, _, medium in media])
        for (index, position, _), one in zip(media, encoded, strict=True):
            codes.setdefault(index, {})[position] = one
    return codes


def _tokenized(sample: DecodedSample, codes: Mapping[int, Codes]) -> TokenizedSample:
    segments: list[Segment] = []
    for position, segment in enumerate(sample.segments):
        if isinstance(segment, Segment):
            segments.append(segment)
            continue
        medium, one = segment.clip.medium, codes[position]
        check_rate(segment.modality, one, len(medium))
        duration_s = len(medium) / segment.modality.rate.sample_rate_hz if segment.modality.is_sound else None
        segments.append(
            Segment(
                segment.slot,
                segment.modality,
                codes=one,
                duration_s=duration_s,
                media_sha256=segment.clip.media_sha256,
            )
        )
    return TokenizedSample(
        sample.sample_id, sample.corpus, sample.split, tuple(segments), sample.provenance, sample.quality
    )
