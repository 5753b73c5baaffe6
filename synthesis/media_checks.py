"""Whether what came back is what was asked for, with a named reason where it is not; and its bytes on disk.

A picture has more than one colour. A sound is finite, audible, and as long as its request makes plausible: music as long
as was asked (what is longer is cut, what is a little shorter gets silence at its end), speech some tenths of a second a
word.
Bytes from elsewhere are read by the corpora's own readers (:mod:`pipeline.pictures`, :mod:`pipeline.sounds`), which
are bounded and believe no header; their reasons (``image_unreadable``, ``sound_truncated``, ...) pass through.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.sample_corpora.encoders import jpeg_bytes, mp3_bytes, wav_bytes
from shards.errors import SampleError
from shards.modality import Modality
from synthesis.media import Made, MediaRequest

SIZE_PX = 224
JPEG_QUALITY = 95
MOST_MADE_S = 120.0
"""A sound that is longer is nobody's answer."""

_ONE_COLOUR_SHARE = 0.995  # of the pixels that are within a few shades of the median
_ONE_COLOUR_SHADES = 6
_SILENT_PEAK = 10 ** (-40 / 20)
_SILENT_RMS = 10 ** (-60 / 20)
_MOST_SILENCE = 0.9
_FRAME_S = 0.02
# espeak at its slowest needs 0.7 s for a long word, a person at their fastest 0.12 s.
_WORD_S = (0.08, 2.0)
_LEAST_SPEECH_S, _SPARE_SPEECH_S = 0.1, 3.0
_MUSIC_TOLERANCE = 0.9


def read_made(modality: Modality, data: bytes) -> Made:
    """Decode what somebody else encoded: a picture as (224, 224, 3), a sound as mono at its modality's rate.

    Raises:
        SampleError: with the reason of the reader.
    """
    if modality is Modality.IMAGE:
        from pipeline.pictures import decode_picture

        return decode_picture(data)
    # Imports torch, which takes seconds that the offline plugs need not spend.
    from pipeline.sounds import SoundConfig, decode_sound

    rate = _rate_hz(modality)
    config = SoundConfig(sample_rate_hz=rate, channel="mean", min_s=0.0, max_s=MOST_MADE_S)
    return decode_sound(data, config)


def resample(sound: npt.NDArray[Any], rate_hz: int, modality: Modality) -> npt.NDArray[np.float32]:
    """A sound of (samples,) or (samples, channels) at ``rate_hz`` as mono at its modality's rate."""
    from pipeline.sounds import SoundConfig, to_mono

    channels = np.asarray(sound, np.float32).reshape(len(sound), -1)
    return to_mono(channels, rate_hz, SoundConfig(sample_rate_hz=_rate_hz(modality), channel="mean"))


def check_made(request: MediaRequest, made: Made) -> Made:
    """The medium as it is to be written.

    Raises:
        SampleError: ``picture_one_colour``, ``sound_not_finite``, ``sound_silent``, ``music_too_short``,
            ``speech_too_short``, ``speech_too_long``; ``picture_misshaped``, ``sound_misshaped`` for a plug's mistake.
    """
    if request.modality is Modality.IMAGE:
        return _checked_picture(made)
    sound = _checked_sound(made, request.modality)
    if request.modality is Modality.MUSIC:
        return _checked_music(request, sound)
    return _checked_speech(request, sound)


def encode_made(modality: Modality, made: Made) -> bytes:
    """JPEG, MP3 or WAV; equal media give equal bytes."""
    if modality is Modality.IMAGE:
        return jpeg_bytes(Image.fromarray(made.astype(np.uint8)), JPEG_QUALITY)
    encode = mp3_bytes if modality is Modality.MUSIC else wav_bytes
    return encode(np.asarray(made, np.float32), _rate_hz(modality))


def seconds(modality: Modality, made: Made) -> float:
    """Length of a sound; 0 of a picture."""
    return 0.0 if modality is Modality.IMAGE else len(made) / _rate_hz(modality)


def _checked_picture(picture: Made) -> Made:
    if picture.shape != (SIZE_PX, SIZE_PX, 3) or picture.dtype != np.uint8:
        raise SampleError(
            "picture_misshaped", f"expected (224, 224, 3) of uint8, found {picture.shape} of {picture.dtype}"
        )
    middle = np.median(picture.reshape(-1, 3), axis=0)
    near = (np.abs(picture - middle) <= _ONE_COLOUR_SHADES).all(axis=-1).mean()
    if near > _ONE_COLOUR_SHARE:
        raise SampleError("picture_one_colour", f"expected something to see, found {near:.1%} of one colour")
    return picture


def _checked_sound(sound: Made, modality: Modality) -> npt.NDArray[np.float32]:
    if sound.ndim != 1 or not len(sound):
        raise SampleError("sound_misshaped", f"expected samples of one channel, found an array of shape {sound.shape}")
    if not np.isfinite(sound).all():
        raise SampleError("sound_not_finite", "expected finite samples, found NaN or infinity")
    sound = sound.astype(np.float32)
    frame = round(_FRAME_S * _rate_hz(modality))
    peaks = np.maximum.reduceat(np.abs(sound), np.arange(0, len(sound), frame))
    rms = float(np.sqrt(np.mean(np.square(sound))))
    silence = float((peaks < _SILENT_PEAK * max(1e-9, float(peaks.max()))).mean())
    if float(peaks.max()) < _SILENT_PEAK or rms < _SILENT_RMS or silence > _MOST_SILENCE:
        raise SampleError(
            "sound_silent", f"expected to hear something, found peak {peaks.max():.4f}, {silence:.0%} silent"
        )
    return np.clip(sound, -1.0, 1.0)


def _checked_music(request: MediaRequest, sound: npt.NDArray[np.float32]) -> Made:
    wanted = round(request.duration_s * _rate_hz(Modality.MUSIC))
    if len(sound) < _MUSIC_TOLERANCE * wanted:
        found = len(sound) / _rate_hz(Modality.MUSIC)
        raise SampleError("music_too_short", f"expected {request.duration_s:g} s, found {found:.2f} s")
    return np.pad(sound[:wanted], (0, max(0, wanted - len(sound))))


def _checked_speech(request: MediaRequest, sound: npt.NDArray[np.float32]) -> Made:
    found, words = len(sound) / _rate_hz(Modality.SPEECH), len(request.text.split())
    least = max(_LEAST_SPEECH_S, _WORD_S[0] * words)
    most = _SPARE_SPEECH_S + _WORD_S[1] * words
    if found < least:
        raise SampleError("speech_too_short", f"expected at least {least:.2f} s for {words} words, found {found:.2f} s")
    if found > most:
        raise SampleError("speech_too_long", f"expected at most {most:.2f} s for {words} words, found {found:.2f} s")
    return sound


def _rate_hz(modality: Modality) -> int:
    rate = modality.rate.sample_rate_hz
    assert rate, f"{modality} is no sound"
    return rate
