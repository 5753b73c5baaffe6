"""Who speaks: one voice and one speed for each side of a dialogue, chosen by a hash.

Source: the AnyInstruct dataset page: 39 timbres, and a sampled rate of speech. Offline, they are 13 timbres of espeak-ng
(five of women, eight of men) in three accents of English; the four voices of the sample corpora may be named as well, so
that a model fitted on those hears nobody new. An endpoint has names of its own, which the config lists.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.sample_corpora import speech
from pipeline.sample_corpora.draws import generator, pick

_ACCENTS = (
    ("american", "en-us", "United States English"),
    ("british", "en", "England English"),
    ("scottish", "en-gb-scotland", "Scottish English"),
)
_TIMBRES = (*(f"f{n}" for n in range(1, 6)), *(f"m{n}" for n in range(1, 9)))
_RATE_WPM = 150
_FIRST_SPEAKER_ID = 92_001
# Steps of a speed; finer ones cannot be heard.
_SPEED_STEP = 0.01


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice as the plug calls it, and how fast it speaks: 1 is its own pace."""

    voice: str
    speed: float


@functools.cache
def espeak_voices() -> Mapping[str, speech.Voice]:
    """Name -> voice: the 39 of this module, then those of the sample corpora."""
    voices = [
        speech.Voice(
            name=f"{accent}-{timbre}",
            speaker_id=_FIRST_SPEAKER_ID + nth * len(_TIMBRES) + place,
            espeak=f"{language}+{timbre}",
            rate_wpm=_RATE_WPM,
            pitch=55 if timbre.startswith("f") else 40,
            gender="female" if timbre.startswith("f") else "male",
            accent=spoken,
        )
        for nth, (accent, language, spoken) in enumerate(_ACCENTS)
        for place, timbre in enumerate(_TIMBRES)
    ]
    return {voice.name: voice for voice in (*voices, *speech.VOICES)}


def default_voices() -> tuple[str, ...]:
    """The names of the 39."""
    return tuple(list(espeak_voices())[: len(_ACCENTS) * len(_TIMBRES)])


def choose_speaker(
    voices: Sequence[str], *, slowest: float, fastest: float, seed: int, dialogue_id: str, role: str
) -> Speaker:
    """Who speaks for this side of this dialogue: every voice and every speed in between equally often."""
    rng = generator(seed, "speaker", dialogue_id, role)
    voice = pick(rng, voices)
    steps = round((fastest - slowest) / _SPEED_STEP)
    return Speaker(voice, round(slowest + _SPEED_STEP * int(rng.integers(steps + 1)), 2))
