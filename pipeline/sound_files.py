"""Sound files: encoded bytes to samples at the file's own rate, by one of two readers.

``soundfile`` (libsndfile) is always there and reads wav, flac, mp3, ogg, opus; ``pyav`` (FFmpeg, the extra ``av``) also
m4a, aac and webm. The two give other samples for the same file (tokenizers sheet 8: opus at 16 kHz or at 48 kHz, mp3
with or without its first silence), and other samples are other codes: a corpus has one reader, and it is part of its
fingerprint.

What a header claims about the length is not believed: samples are counted as they come, up to a limit. Fewer than a
header promised are a cut file. Of an mp3 of varying bit rate without such a header, libsndfile guesses the length and
reads no further; ``pyav`` reads it to its end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from shards.errors import ConfigError, SampleError

Channels = npt.NDArray[np.float32]
"""(samples, channels)."""
Reader = Literal["soundfile", "pyav"]

# Samples of all channels a read.
_BLOCK = 1 << 16
# Memory for as much as a header claims, but no more than this before it comes.
_MOST_CLAIMED = 1 << 22
# Containers that say how long they are, so that a cut file shows; elsewhere FFmpeg's lengths are guesses.
_EXACT_LENGTHS = {"mp4", "m4a", "mov", "matroska", "webm", "flac"}
_LENGTH_TOLERANCE_S = 0.5
# FFmpeg keeps the planes of further channels elsewhere, and PyAV 18 reads past the end of those it knows.
_MOST_CHANNELS = 8


def check_reader(reader: Reader) -> None:
    """See that a reader can be had.

    Raises:
        ConfigError: its extra is not installed.
    """
    if reader == "pyav":
        _import_av()


def read_channels(data: bytes, *, reader: Reader, channel: str, limit_s: float | None) -> tuple[Channels, int]:
    """Decode a file, or its beginning.

    Args:
        channel: ``first`` keeps the first channel only, anything else all of them.
        limit_s: seconds after which decoding stops.

    Returns:
        (samples, channels) float32, and the sample rate.

    Raises:
        SampleError: ``media_empty``, ``sound_unreadable``, ``sound_truncated``.
        ConfigError: the reader is not installed.
    """
    if not data:
        raise SampleError("media_empty", "expected a sound, found no bytes")
    read = _read_soundfile if reader == "soundfile" else _read_pyav
    return read(data, first=channel == "first", limit_s=limit_s)


class _OneWay(soundfile.SoundFile):
    """A file that is read from its start to its end.

    Otherwise soundfile seeks to where it is after every read, and an mp3 loses frames by that: a frame needs bits of
    those before it, which a seek throws away (at 44.1 kHz, 1.5 % of the samples of blocks of 65,536).
    """

    def seekable(self) -> bool:
        """No."""
        return False


class _Samples:
    """Channels side by side, with more room made as samples come."""

    def __init__(self, width: int, *, claimed: int) -> None:
        self._planar = np.empty((width, max(1, min(claimed, _MOST_CLAIMED // width))), np.float32)
        self.count = 0

    def append(self, block: Channels) -> None:
        """``block`` is (channels, samples)."""
        needed = self.count + block.shape[1]
        if needed > self._planar.shape[1]:
            wider = np.empty((len(self._planar), max(2 * self._planar.shape[1], needed)), np.float32)
            wider[:, : self.count] = self._planar[:, : self.count]
            self._planar = wider
        self._planar[:, self.count : needed] = block
        self.count = needed

    def channels(self) -> Channels:
        """What was appended, as a view."""
        return self._planar[:, : self.count].T


def _read_soundfile(data: bytes, *, first: bool, limit_s: float | None) -> tuple[Channels, int]:
    try:
        with _OneWay(io.BytesIO(data)) as file:
            rate, width = int(file.samplerate), int(file.channels)
            limit = None if limit_s is None else round(limit_s * rate)
            kept = 1 if first else width
            claimed = int(file.frames) if limit is None else min(int(file.frames), limit)
            samples = _Samples(kept, claimed=claimed)
            block = np.empty((max(1, _BLOCK // width), width), np.float32)
            while limit is None or samples.count < limit:
                read = _read_block(file, block, samples.count, limit)
                if not len(read):
                    _check_count(file, data, samples.count)
                    break
                samples.append(read.T[:kept])
    except soundfile.LibsndfileError as error:
        raise SampleError("sound_unreadable", f"{_found(data)}: {error.error_string}{_advice(data)}") from error
    return samples.channels(), rate


def _read_block(file: soundfile.SoundFile, block: Channels, done: int, limit: int | None) -> Channels:
    room = len(block) if limit is None else min(len(block), limit - done)
    try:
        return np.asarray(file.read(room, out=block[:room]), np.float32)
    except soundfile.LibsndfileError as error:
        raise SampleError("sound_truncated", f"expected a whole sound, found damage after {done} samples") from error


def _check_count(file: soundfile.SoundFile, data: bytes, found: int) -> None:
    """A flac says how many samples it has, and an mp3 with such a header; elsewhere libsndfile counts or guesses."""
    if file.format == "FLAC":
        least = int(file.frames)
    elif file.format == "MP3" and (b"Xing" in data or b"Info" in data):
        least = int(file.frames) - round(_LENGTH_TOLERANCE_S * int(file.samplerate))
    else:
        return
    if found < least:
        raise SampleError("sound_truncated", f"expected {int(file.frames)} samples, found {found}")


def _read_pyav(data: bytes, *, first: bool, limit_s: float | None) -> tuple[Channels, int]:
    av = _import_av()
    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
            stream = next(iter(container.streams.audio), None)
            # Without a decoder a stream has no codec context, and damaged ones have no rate or no channels.
            if stream is None or not (stream.codec_context and stream.rate and stream.channels):
                raise SampleError("sound_unreadable", f"{_found(data)} without a sound in it that can be decoded")
            if stream.channels > _MOST_CHANNELS:
                raise SampleError(
                    "sound_unreadable", f"expected at most {_MOST_CHANNELS} channels, found {stream.channels}"
                )
            rate = int(stream.rate)
            limit = None if limit_s is None else round(limit_s * rate)
            samples = _Samples(1 if first else int(stream.channels), claimed=0)
            for block in _pyav_blocks(av, container, stream):
                samples.append(block[:1] if first else block)
                if limit is not None and samples.count >= limit:
                    return samples.channels()[:limit], rate
            _check_length(container, stream, samples.count / rate)
    except (av.error.FFmpegError, ValueError, ZeroDivisionError) as error:
        raise SampleError("sound_unreadable", f"{_found(data)}: {error}") from error
    return samples.channels(), rate


def _pyav_blocks(av: Any, container: Any, stream: Any) -> Iterator[Channels]:
    """(channels, samples) float32 of every frame, at the rate and width of the first."""
    rate, width = int(stream.rate), int(stream.channels)
    to_planar = av.AudioResampler(format="fltp")
    done = 0
    try:
        for frame in container.decode(stream):
            if (frame.sample_rate, len(frame.layout.channels)) != (rate, width):
                raise SampleError("sound_unreadable", f"expected {rate} Hz throughout, found another form within it")
            for planar in [frame] if frame.format.name == "fltp" else to_planar.resample(frame):
                block = planar.to_ndarray()
                done += block.shape[1]
                yield block
    except av.error.FFmpegError as error:
        raise SampleError("sound_truncated", f"expected a whole sound, found damage after {done} samples") from error


def _check_length(container: Any, stream: Any, found_s: float) -> None:
    if not _EXACT_LENGTHS & set(container.format.name.split(",")):
        return
    if stream.duration is not None:
        claimed_s = float(stream.duration * stream.time_base)
    else:
        claimed_s = (container.duration or 0) / 1e6
    if found_s < claimed_s - _LENGTH_TOLERANCE_S:
        raise SampleError("sound_truncated", f"expected {claimed_s:.2f} s of sound, found {found_s:.2f} s")


def _import_av() -> Any:
    try:
        return import_module("av")
    except ImportError as error:
        raise ConfigError(
            'reader = "pyav": expected the library PyAV, found none; install it with: pip install anygpt-data[av]'
        ) from error


def _found(data: bytes) -> str:
    return f"expected a sound, found {len(data)} bytes"


def _advice(data: bytes) -> str:
    """What to do about a file that only the other reader knows; told by its bytes."""
    is_aac = data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xF6 == 0xF0
    kind = "m4a" if data[4:8] == b"ftyp" else "webm" if data[:4] == b"\x1a\x45\xdf\xa3" else "aac" if is_aac else ""
    if not kind:
        return ""
    return (
        f'; this is {kind}, which soundfile cannot read: set reader = "pyav" for this kind of sound under [media] '
        "(pip install anygpt-data[av]), for the whole corpus"
    )
