"""What is measured of every decoded sound, in one pass over its samples.

Always, whether a rule asks or not: it costs a few hundred microseconds for a minute of sound, and who chooses a
threshold after the fact finds the numbers in ``quality``. Of several sounds in a sample the worst one counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.filters.view import View
from pipeline.sounds import SILENCE_PEAK
from pipeline.tokenization import SAMPLE_RATES_HZ
from pipeline.tokenizers.base import Wave
from shards.modality import Modality

FRAME_S = 0.02
FULL_SCALE = 0.99
"""Amplitude from which a sample counts as clipped: resampling and averaging move what was at full scale a little."""


def measure_sounds(view: View) -> dict[str, float]:
    """What rules ask of decoded sounds.

    Returns:
        Of speech: ``speech_s`` (longest), ``chars_per_s`` (of one speech with its transcript), ``speech_silence_share`` and
        ``longest_pause_s``. Of music and other sounds: ``silence_share``, ``head_silence_s`` and ``clipped_share``.
    """
    numbers: dict[str, float] = {}
    speech_s: list[float] = []
    for segment in view.media:
        if not segment.modality.is_sound:
            continue
        wave, rate = segment.clip.medium.astype(np.float32, copy=False), SAMPLE_RATES_HZ[segment.modality]
        if segment.modality is Modality.SPEECH:
            speech_s.append(len(wave) / rate)
            _keep_worst(numbers, _measure_speech(wave, rate).items())
        else:
            _keep_worst(numbers, _measure_played(wave, rate).items())
    if speech_s:
        numbers["speech_s"] = max(speech_s)
    if len(speech_s) == 1 and view.captions:
        numbers["chars_per_s"] = len(view.captions[0]) / speech_s[0]
    return numbers


def _measure_speech(wave: Wave, rate: int) -> dict[str, float]:
    silent = _frame_peaks(np.abs(wave), rate) < SILENCE_PEAK
    return {"speech_silence_share": float(silent.mean()), "longest_pause_s": _longest_run(silent) * FRAME_S}


def _measure_played(wave: Wave, rate: int) -> dict[str, float]:
    loudness = np.abs(wave)
    silent = _frame_peaks(loudness, rate) < SILENCE_PEAK
    head = len(silent) if silent.all() else int(silent.argmin())
    return {
        "silence_share": float(silent.mean()),
        "head_silence_s": min(head * FRAME_S, len(wave) / rate),
        "clipped_share": float(np.count_nonzero(loudness >= FULL_SCALE) / len(wave)),
    }


def _frame_peaks(loudness: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """The loudest sample of every frame of 20 ms, the last of which may be shorter."""
    frame = max(1, round(FRAME_S * rate))
    whole = len(loudness) // frame * frame
    peaks = loudness[:whole].reshape(-1, frame).max(axis=1)
    return peaks if whole == len(loudness) else np.append(peaks, loudness[whole:].max())


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """Length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _keep_worst(numbers: dict[str, float], found: Iterable[tuple[str, float]]) -> None:
    for name, value in found:
        numbers[name] = max(value, numbers.get(name, value))
