"""The media front end: from a raw segment to what a codec reads.

Everything here that changes a code is a config key, and :func:`front_end_facts` lists all of it for the fingerprint of a
dataset. Pictures are read by :mod:`pipeline.pictures`, sounds by :mod:`pipeline.sounds`.

Windows (music): consecutive pieces of ``window_s`` from the start, at most ``max_windows``; what remains at the end is
kept as a shorter piece if it is at least ``min_s`` long, else dropped. A clip shorter than one window is one shorter piece.
The default is one window of 5 s, as Table 1 has it: a million clips of five seconds are the paper's billion music tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from configs.load import Config
from pipeline.pictures import FORMATS, PictureConfig, decode_picture
from pipeline.samples import RawMedia
from pipeline.sounds import READER, RESAMPLER, RecordingCache, SoundConfig, decode_sound
from pipeline.tokenization import Clip
from pipeline.tokenizers.base import Wave
from shards.errors import SampleError
from shards.vocabulary import Modality

FRONT_END_VERSION = 1
"""Raised whenever the same bytes would become other pixels or samples under the same config."""


class WindowConfig(Config):
    """How music is cut into windows."""

    window_s: float = Field(default=5.0, gt=0.0)
    max_windows: int = Field(default=1, ge=1)
    min_s: float = Field(default=1.0, gt=0.0)
    """A remainder shorter than this is dropped."""


class MediaConfig(Config):
    """How media are read, by modality."""

    picture: PictureConfig = PictureConfig()
    speech: SoundConfig = SoundConfig()
    music: SoundConfig = SoundConfig(sample_rate_hz=32_000, channel="mean", min_s=1.0)


def front_end_facts(media: MediaConfig, windows: WindowConfig) -> dict[str, Any]:
    """Every choice that decides what a codec reads, as plain data for a fingerprint."""
    return {
        "version": FRONT_END_VERSION,
        "sound_reader": READER,
        "resampler": RESAMPLER,
        "picture_formats": list(FORMATS),
        "media": media.model_dump(mode="json"),
        "windows": windows.model_dump(mode="json"),
    }


def make_decoder(media: MediaConfig, windows: WindowConfig) -> Callable[[RawMedia], Sequence[Clip]]:
    """A function that decodes raw segments; it remembers the last long recording, so use one per unit of work.

    Its clips are one a segment, or up to ``windows.max_windows`` of music. It raises ``SampleError``.
    """
    cache = RecordingCache()

    def decode(raw: RawMedia) -> Sequence[Clip]:
        return decode_media(raw, media, windows, cache=cache)

    return decode


def decode_media(raw: RawMedia, media: MediaConfig, windows: WindowConfig, *, cache: RecordingCache) -> list[Clip]:
    """Decode one raw segment; see :func:`make_decoder`."""
    if raw.modality is Modality.IMAGE:
        data = _picture_bytes(raw)
        return [Clip(decode_picture(data, media.picture), hashlib.sha256(data).hexdigest())]
    if raw.modality is Modality.SPEECH:
        return [Clip(decode_sound(raw, media.speech, cache=cache), _sound_sha256(raw, media.speech, cache))]
    if raw.modality is Modality.MUSIC:
        keep_s = windows.window_s * windows.max_windows
        wave = decode_sound(raw, media.music, cache=cache, keep_s=keep_s)
        sha256 = _sound_sha256(raw, media.music, cache)
        return [Clip(piece, sha256) for piece in cut_windows(wave, windows, media.music.sample_rate_hz)]
    raise SampleError("media_unexpected", f"expected a picture or a sound, found {raw.modality}")


def cut_windows(wave: Wave, windows: WindowConfig, sample_rate_hz: int) -> list[Wave]:
    """Consecutive windows from the start; at least one, whatever the length.

    Args:
        wave: (samples,) at ``sample_rate_hz``.
    """
    size = round(windows.window_s * sample_rate_hz)
    shortest = round(windows.min_s * sample_rate_hz)
    pieces = [wave[start : start + size] for start in range(0, len(wave), size)][: windows.max_windows]
    return pieces[:1] + [piece for piece in pieces[1:] if len(piece) >= shortest]


def _picture_bytes(raw: RawMedia) -> bytes:
    if raw.path is None:
        return raw.data
    try:
        return raw.path.read_bytes()
    except OSError as error:
        raise SampleError("media_missing", f"{raw.path.name}: {type(error).__name__}") from error


def _sound_sha256(raw: RawMedia, config: SoundConfig, cache: RecordingCache) -> str:
    """Of the bytes; a cut of a recording adds its times, so that no two segments share one."""
    if raw.path is None:
        return hashlib.sha256(raw.data).hexdigest()
    recording = cache.open(raw.path, channel=config.channel)
    return hashlib.sha256(f"{recording.sha256} {raw.begin_s} {raw.end_s}".encode()).hexdigest()
