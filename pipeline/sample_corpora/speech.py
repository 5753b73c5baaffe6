"""Spoken sentences: espeak-ng, from the wheel ``espeakng-loader`` (no system package), through its C interface.

espeak keeps the phase of its oscillators and of its noise from one sentence to the next, through ``espeak_Terminate``
too, so the same words never sound the same twice. The library is therefore loaded afresh for each sentence (6 ms):
:func:`synthesize` is a pure function of words and voice, and files do not depend on the order or number of processes.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import espeakng_loader
import numpy as np
import numpy.typing as npt

from shards.errors import AnyGPTError

SAMPLE_RATE_HZ = 16_000
PEAK = 0.6
PADDING_S = 0.04
"""Silence kept before the first and after the last sound."""

_SILENCE = 0.02  # of the peak
_ESPEAK_RATE_HZ = 22_050
# Constants of speak_lib.h.
_OUTPUT_SYNCHRONOUS, _CHARS_UTF8, _POSITION_CHARACTER = 2, 1, 1
# Without it, espeak ends the process when its data is missing.
_DO_NOT_EXIT = 0x8000
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
# espeak copies its data path into a buffer of 160 bytes and appends file names to it.
_LONGEST_DATA_PATH = 120
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SynthesisError(AnyGPTError):
    """espeak-ng could not be loaded, or refused a voice or a sentence."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: an espeak voice with its rate (words a minute) and pitch (0 to 100), and what corpora say of speakers."""

    name: str
    speaker_id: int
    espeak: str
    rate_wpm: int
    pitch: int
    gender: str
    accent: str


VOICES = (
    Voice("ada", 91001, "en-us+f3", 150, 60, "female", "United States English"),
    Voice("ben", 91002, "en-us+m3", 148, 40, "male", "United States English"),
    Voice("cleo", 91003, "en+f2", 148, 55, "female", "England English"),
    Voice("dan", 91004, "en-gb-scotland+m1", 145, 35, "male", "Scottish English"),
)


def voice_by_name(name: str) -> Voice:
    """The voice of that name.

    Raises:
        KeyError: no such voice.
    """
    return {voice.name: voice for voice in VOICES}[name]


def synthesize(words: str, voice: Voice, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> npt.NDArray[np.float32]:
    """The sentence as mono float32 (samples,), peak 0.6, at most 40 ms of silence at either end.

    Raises:
        SynthesisError: no library, an unknown espeak voice, or nothing but silence.
    """
    from scipy.signal import resample_poly  # seconds to import, which a finished command need not wait

    sound = _trim(_speak(words, voice))
    factor = gcd(sample_rate_hz, _ESPEAK_RATE_HZ)
    resampled = resample_poly(sound, sample_rate_hz // factor, _ESPEAK_RATE_HZ // factor)
    return (PEAK * resampled / np.abs(resampled).max()).astype(np.float32)


def _trim(sound: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    loud = np.flatnonzero(np.abs(sound) > _SILENCE * np.abs(sound).max())
    padding = round(PADDING_S * _ESPEAK_RATE_HZ)
    return sound[max(0, loud[0] - padding) : loud[-1] + padding]


def _speak(words: str, voice: Voice) -> npt.NDArray[np.float64]:
    blocks: list[npt.NDArray[np.int16]] = []

    @_CALLBACK
    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:  # pyright: ignore[reportPrivateUsage]
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    text = words.encode() + b"\0"
    with _short_data_path() as data_path, _fresh_library(data_path) as espeak:
        espeak.espeak_SetSynthCallback(collect)
        if espeak.espeak_SetVoiceByName(voice.espeak.encode()) != 0:
            raise SynthesisError(f"expected an espeak-ng voice, found {voice.espeak!r} (voice {voice.name}); change it")
        for parameter, value in ((_RATE, voice.rate_wpm), (_PITCH, voice.pitch), (_PITCH_RANGE, 50)):
            espeak.espeak_SetParameter(parameter, value, 0)
        espeak.espeak_Synth(text, len(text), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        espeak.espeak_Synchronize()
    sound = np.concatenate([*blocks, np.zeros(0, np.int16)]).astype(np.float64)
    if not np.any(sound):
        raise SynthesisError(f"expected sound for {words!r} by voice {voice.name}, found silence")
    return sound


@contextmanager
def _fresh_library(data_path: str) -> Generator[ctypes.CDLL]:
    library_path = str(espeakng_loader.get_library_path())
    espeak = ctypes.CDLL(library_path)
    try:
        rate_hz = espeak.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), _DO_NOT_EXIT)
        if rate_hz != _ESPEAK_RATE_HZ:
            raise SynthesisError(
                f"expected espeak-ng to start at {_ESPEAK_RATE_HZ} Hz, found {rate_hz}: {library_path}"
            )
        # A variant carries a little random flutter; its generator is seeded from the clock otherwise.
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
        yield espeak
        espeak.espeak_Terminate()
    finally:
        _ctypes.dlclose(espeak._handle)


@contextmanager
def _short_data_path() -> Generator[str]:
    data = Path(espeakng_loader.get_data_path())
    if len(os.fsencode(data)) <= _LONGEST_DATA_PATH:
        yield str(data)
        return
    with tempfile.TemporaryDirectory(prefix="es") as folder:
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(data, target_is_directory=True)
        yield str(link)
