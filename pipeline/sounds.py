"""Sounds: encoded bytes or long recordings to mono float waves at a tokenizer's sample rate.

One reader a corpus (:mod:`pipeline.sound_files`), and one resampler, ``torchaudio.functional.resample`` with its
defaults: another of either moves more codes than half precision does (tokenizers sheet 5.1, 8). Order of steps as
upstream (anygpt-compat 2.2, 2.3): speech takes the first channel, then resamples; music resamples, then averages
channels. What a file is, its bytes say, never its name.

A cut of a recording is taken at the recording's own rate and resampled then, so that a segment never depends on what
surrounds it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from configs.load import Config
from pipeline.samples import RawMedia
from pipeline.sound_files import Channels, Reader, read_channels
from pipeline.tokenizers.base import Wave
from shards.errors import SampleError

if TYPE_CHECKING:
    import torchaudio.transforms

RESAMPLER = "torchaudio.functional.resample sinc_interp_hann width 6 rolloff 0.99"
SILENCE_PEAK = 10 ** (-60 / 20)
"""Amplitude below which a frame counts as silent: -60 dB of full scale."""
# The resampler looks a few samples ahead; what is decoded beyond a limit is this much, and cut off again.
_LOOKAHEAD_S = 0.25
# Ends of segments are rounded by those who write corpora.
_END_TOLERANCE_S = 0.1
_MIN_RATE_HZ = 4_000
_MAX_RESAMPLER_TABLE = 20_000_000


class SoundConfig(Config):
    """How a sound is read; part of the fingerprint of every dataset with sounds of this kind."""

    sample_rate_hz: int = Field(default=16_000, ge=1)
    channel: Literal["first", "mean"] = "first"
    """The first channel, taken before resampling; or the mean, taken after it."""
    min_s: float = Field(default=0.1, ge=0.0)
    """Shorter ones are rejected (``sound_too_short``)."""
    max_s: float = Field(default=90.0, gt=0.0)
    """Longer ones are rejected (``sound_too_long``), unless they are cut; 90 s of speech are a row of 4,500."""
    windowed: bool = False
    """Cut into windows, as the section ``windows`` says."""
    reader: Reader = "soundfile"
    """``pyav`` reads m4a, aac and webm as well, and needs the extra ``av``; see :mod:`pipeline.sound_files`."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded file at its own sample rate."""

    channels: Channels
    sample_rate_hz: int
    sha256: str


class RecordingCache:
    """The last recordings that were decoded, so that a long one is decoded once for all its segments."""

    def __init__(self, *, capacity: int = 1, max_s: float = 8 * 3600.0) -> None:
        self._capacity = capacity
        self._max_s = max_s
        self._kept: dict[tuple[Path, str, Reader], Recording | SampleError] = {}

    def open(self, path: Path, *, channel: str, reader: Reader = "soundfile") -> Recording:
        """A recording, decoded or remembered.

        Raises:
            SampleError: ``media_missing`` or as :func:`decode_sound`; remembered too, for a broken file has many segments.
        """
        key = (path, channel, reader)
        if key not in self._kept:
            while len(self._kept) >= self._capacity:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._read(path, channel, reader)
        found = self._kept[key]
        if isinstance(found, SampleError):
            raise SampleError(found.reason, str(found).removeprefix(f"{found.reason}: "))
        return found

    def _read(self, path: Path, channel: str, reader: Reader) -> Recording | SampleError:
        try:
            return _read_recording(path, channel=channel, reader=reader, max_s=self._max_s)
        except SampleError as error:
            return error


def decode_sound(
    media: RawMedia | bytes, config: SoundConfig, *, cache: RecordingCache | None = None, keep_s: float | None = None
) -> Wave:
    """Decode one sound, or a cut of a recording.

    Args:
        keep_s: decode no more than the first so many seconds; what is returned equals the beginning of the whole.

    Returns:
        (samples,) float32 mono at ``config.sample_rate_hz``.

    Raises:
        SampleError: ``sound_unreadable``, ``sound_truncated``, ``sound_empty``, ``sound_not_finite``, ``sound_silent``
            (not one sample above zero), ``sound_too_short``, ``sound_too_long``, ``segment_times_invalid``.
    """
    channels, rate = _channels(media, config, cache, keep_s)
    seconds = len(channels) / rate
    if not len(channels):
        raise SampleError("sound_empty", "expected a sound, found no samples")
    energy = sum(float(np.dot(one, one)) for one in channels.T)
    # A sum that is neither zero nor infinite vouches for every sample, at a fraction of the price of asking each.
    in_doubt = not 0.0 < energy < np.inf
    if in_doubt and not np.isfinite(channels).all():
        raise SampleError("sound_not_finite", "expected finite samples, found NaN or infinity")
    if seconds < config.min_s:
        raise SampleError("sound_too_short", f"expected at least {config.min_s} s, found {seconds:.3f} s")
    if keep_s is None and seconds > config.max_s:
        raise SampleError("sound_too_long", f"expected at most {config.max_s} s, found more")
    if in_doubt and not channels.any():
        raise SampleError("sound_silent", f"expected a sound, found {seconds:.1f} s of digital silence")
    wave = to_mono(channels, rate, config)
    return wave if keep_s is None else wave[: round(keep_s * config.sample_rate_hz)]


def to_mono(channels: Channels, rate: int, config: SoundConfig) -> Wave:
    """Resample and mix down, in the order the config asks for.

    Args:
        channels: (samples, channels) at ``rate``.

    Returns:
        (samples * sample_rate_hz / rate, rounded up,) float32.
    """
    kept = channels[:, :1] if config.channel == "first" else channels
    if rate == config.sample_rate_hz and kept.shape[1] == 1:
        return np.ascontiguousarray(kept[:, 0])
    # Seconds of imports, which sounds that are as they should be, and commands with nothing to do, need not wait for.
    import torch

    wave = torch.from_numpy(kept.T)
    if rate != config.sample_rate_hz:
        _check_rate(rate, config.sample_rate_hz)
        wave = _resampler(rate, config.sample_rate_hz)(wave)
    return wave.mean(dim=0).numpy() if len(wave) > 1 else np.ascontiguousarray(wave[0].numpy())


def silence_share(wave: Wave, sample_rate_hz: int, *, frame_s: float = 0.02) -> float:
    """Share of frames whose loudest sample is below -60 dB of full scale."""
    frame = max(1, round(frame_s * sample_rate_hz))
    peaks = np.maximum.reduceat(np.abs(wave), np.arange(0, len(wave), frame))
    return float((peaks < SILENCE_PEAK).mean())


def _channels(
    media: RawMedia | bytes, config: SoundConfig, cache: RecordingCache | None, keep_s: float | None
) -> tuple[Channels, int]:
    """The decoded samples, and their rate."""
    if isinstance(media, RawMedia) and media.path is not None:
        recording = (cache or RecordingCache()).open(media.path, channel=config.channel, reader=config.reader)
        return _cut(recording.channels, recording.sample_rate_hz, media, keep_s), recording.sample_rate_hz
    data = media if isinstance(media, bytes) else media.data
    is_cut = isinstance(media, RawMedia) and (media.begin_s is not None or media.end_s is not None)
    limit_s = None if is_cut else (keep_s if keep_s is not None else config.max_s) + _LOOKAHEAD_S
    channels, rate = read_channels(data, reader=config.reader, channel=config.channel, limit_s=limit_s)
    return (_cut(channels, rate, media, keep_s) if isinstance(media, RawMedia) and is_cut else channels), rate


def _cut(channels: Channels, rate: int, media: RawMedia, keep_s: float | None) -> Channels:
    length_s = len(channels) / rate
    begin_s = media.begin_s or 0.0
    end_s = length_s if media.end_s is None else media.end_s
    if not 0.0 <= begin_s < end_s:
        raise SampleError("segment_times_invalid", f"expected 0 <= begin < end, found {begin_s} s to {end_s} s")
    if end_s > length_s + _END_TOLERANCE_S:
        raise SampleError("sound_truncated", f"expected a recording of at least {end_s} s, found {length_s:.2f} s")
    if keep_s is not None:
        end_s = min(end_s, begin_s + keep_s + _LOOKAHEAD_S)
    return channels[round(begin_s * rate) : round(end_s * rate)]


def _read_recording(path: Path, *, channel: str, reader: Reader, max_s: float) -> Recording:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SampleError("media_missing", f"{path.name}: {type(error).__name__}") from error
    channels, rate = read_channels(data, reader=reader, channel=channel, limit_s=max_s)
    if len(channels) >= max_s * rate:
        raise SampleError("sound_too_long", f"{path.name}: expected a recording below {max_s:.0f} s, found more")
    return Recording(channels, rate, hashlib.sha256(data).hexdigest())


@functools.lru_cache(maxsize=32)
def _resampler(rate: int, target: int) -> torchaudio.transforms.Resample:
    """Torchaudio's own filter, kept: the function makes it anew for every sound. In float32, as the function has it."""
    import torch
    import torchaudio.transforms

    return torchaudio.transforms.Resample(rate, target, dtype=torch.float32)


def _check_rate(rate: int, target: int) -> None:
    """Refuse rates with next to no divisor in common with ours: the resampler's table would fill the memory."""
    divisor = gcd(rate, target)
    if rate < _MIN_RATE_HZ or (rate // divisor) * (target // divisor) > _MAX_RESAMPLER_TABLE:
        raise SampleError("sound_rate_unsupported", f"expected a usual sample rate, found {rate} Hz")
