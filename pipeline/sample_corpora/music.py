"""The world of the music: one instrument plays one pattern in one key at one tempo, and the sentences that say so.

Additive synthesis at 32 kHz mono. Note lengths are whole codec frames (20 ms, 50 frames a second), so that equal notes
become equal codes. Eight (instrument, key, pattern) triples are held out at every tempo: 24 pieces that no
training item plays.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from pipeline.sample_corpora.pictures import with_article

SAMPLE_RATE_HZ = 32_000
FRAME_S = 0.02
INSTRUMENTS = ("flute", "organ", "bell", "guitar")
KEYS = ("C major", "D minor", "F major", "G major", "A minor", "E minor")
TEMPI = ("slow", "medium", "fast")
PATTERNS = ("rising scale", "falling scale", "arpeggio", "drone")

HELD_OUT_TRIPLES = (
    ("flute", "C major", "falling scale"),
    ("flute", "A minor", "arpeggio"),
    ("organ", "D minor", "rising scale"),
    ("organ", "E minor", "drone"),
    ("bell", "F major", "drone"),
    ("bell", "G major", "rising scale"),
    ("guitar", "G major", "falling scale"),
    ("guitar", "C major", "arpeggio"),
)
"""(instrument, key, pattern): each instrument and each pattern twice."""

NOTE_S = {"slow": 0.6, "medium": 0.3, "fast": 0.12}

TEMPLATES = (
    "{a_instrument} plays {a_pattern} in {key} at a {tempo} tempo",
    "{a_pattern} on the {instrument}, {tempo} tempo, in {key}",
    "a {tempo} piece in {key}: {a_instrument} playing {a_pattern}",
    "{tempo} instrumental music, {instrument} only, {a_pattern} in {key}",
    "the {instrument} plays {a_pattern}, the key is {key} and the tempo is {tempo}",
    "in {key}, at a {tempo} pace, {a_pattern} is heard on the {instrument}",
    "solo {instrument} in {key} with {a_pattern} at {tempo} speed",
    "this recording has {a_instrument} playing {a_pattern} in {key}, with a {tempo} beat",
)

_TONIC_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9}  # above C
_STEPS = {"major": (0, 2, 4, 5, 7, 9, 11, 12), "minor": (0, 2, 3, 5, 7, 8, 10, 12)}
_DEGREES = {  # indices into the eight steps of the scale
    "rising scale": (0, 1, 2, 3, 4, 5, 6, 7),
    "falling scale": (7, 6, 5, 4, 3, 2, 1, 0),
    "arpeggio": (0, 2, 4, 7, 4, 2),
    "drone": (0,),
}
_LOWEST_C_MIDI = {"flute": 72, "organ": 48, "bell": 72, "guitar": 48}


@dataclass(frozen=True, slots=True)
class MusicAttributes:
    """What a clip plays; a word outside the world is a ``ValueError``."""

    instrument: str
    key: str
    tempo: str
    pattern: str

    def __post_init__(self) -> None:
        for word, known in (
            (self.instrument, INSTRUMENTS),
            (self.key, KEYS),
            (self.tempo, TEMPI),
            (self.pattern, PATTERNS),
        ):
            if word not in known:
                raise ValueError(f"expected one of {', '.join(known)}, found {word!r}")

    @property
    def held_out(self) -> bool:
        """Whether (instrument, key, pattern) is kept apart for evaluation."""
        return (self.instrument, self.key, self.pattern) in HELD_OUT_TRIPLES

    def as_dict(self) -> dict[str, str]:
        """The four words by attribute, as :func:`parse_caption` gives them."""
        return {"instrument": self.instrument, "key": self.key, "tempo": self.tempo, "pattern": self.pattern}


@functools.cache
def all_attributes(*, held_out: bool | None = None) -> tuple[MusicAttributes, ...]:
    """Every piece in a fixed order; all 288, or only those that are (not) held out."""
    everything = (MusicAttributes(*words) for words in product(INSTRUMENTS, KEYS, TEMPI, PATTERNS))
    return tuple(one for one in everything if held_out is None or one.held_out == held_out)


def render_music(
    attributes: MusicAttributes, *, duration_s: float = 3.0, gain_db: float = 0.0
) -> npt.NDArray[np.float32]:
    """The clip: (duration_s * 32,000,) float32, peak about 0.6 at 0 dB; the last note is cut where the clip ends."""
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    note_samples = round(NOTE_S[attributes.tempo] * SAMPLE_RATE_HZ)
    tonic, mode = attributes.key.split()
    lowest = _LOWEST_C_MIDI[attributes.instrument] + _TONIC_SEMITONES[tonic]
    degrees = _DEGREES[attributes.pattern]
    clip = np.zeros(num_samples, dtype=np.float32)
    for nth, start in enumerate(range(0, num_samples, note_samples)):
        midi = lowest + _STEPS[mode][degrees[nth % len(degrees)]]
        note = _note(attributes.instrument, midi, note_samples)[: num_samples - start]
        clip[start : start + len(note)] = note
    return clip * np.float32(10 ** (gain_db / 20))


def describe(attributes: MusicAttributes, template_index: int) -> str:
    """The caption by template ``template_index`` of ``TEMPLATES``: each attribute once, no full stop."""
    return TEMPLATES[template_index].format(
        **attributes.as_dict(),
        a_instrument=with_article(attributes.instrument),
        a_pattern=with_article(attributes.pattern),
    )


def parse_caption(text: str) -> dict[str, str]:
    """The attributes a text names, by attribute; one that is named in two ways is left out."""
    found: dict[str, str] = {}
    for attribute, values in (("instrument", INSTRUMENTS), ("key", KEYS), ("tempo", TEMPI), ("pattern", PATTERNS)):
        named = [value for value in values if re.search(rf"\b{value}\b", text, flags=re.IGNORECASE)]
        if len(named) == 1:
            found[attribute] = named[0]
    return found


@functools.lru_cache(maxsize=512)
def _note(instrument: str, midi: int, num_samples: int) -> npt.NDArray[np.float32]:
    """One note, peak 0.6, silent at both ends, so that notes can be joined without a click."""
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    tone = _TIMBRES[instrument](440.0 * 2 ** ((midi - 69) / 12), time_s)
    attack_s, release_s = _EDGES_S[instrument]
    tone *= np.minimum(1.0, time_s / attack_s) * np.minimum(1.0, (time_s[-1] - time_s) / release_s)
    return (0.6 * tone / np.abs(tone).max()).astype(np.float32)


def _flute(frequency_hz: float, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Almost a pure tone, with a little vibrato."""
    phase = 2 * np.pi * frequency_hz * time_s + 0.15 * np.sin(2 * np.pi * 5 * time_s)
    return np.sin(phase) + 0.12 * np.sin(2 * phase) + 0.05 * np.sin(3 * phase)


def _organ(frequency_hz: float, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Drawbars: a full, steady tone."""
    drawbars = {1: 1.0, 2: 0.8, 3: 0.6, 4: 0.5, 6: 0.35, 8: 0.3}
    return _partials(drawbars, {}, frequency_hz, time_s)


def _bell(frequency_hz: float, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Partials that are no multiples of the fundamental and die away."""
    partials = {0.5: 0.4, 1.0: 1.0, 1.19: 0.5, 2.0: 0.6, 2.74: 0.5, 3.76: 0.35, 5.1: 0.2}
    return _partials(partials, {ratio: 3.0 + 2.0 * ratio for ratio in partials}, frequency_hz, time_s)


def _guitar(frequency_hz: float, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A plucked string: all harmonics, the higher ones gone sooner."""
    harmonics = {float(n): abs(np.sin(np.pi * n * 0.18)) / n for n in range(1, 13)}
    return _partials(harmonics, {n: 1.5 + 1.2 * n for n in harmonics}, frequency_hz, time_s)


def _partials(
    amplitudes: dict[float, float] | dict[int, float],
    decay_per_s: dict[float, float],
    frequency_hz: float,
    time_s: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    tone = np.zeros_like(time_s)
    for ratio, amplitude in amplitudes.items():
        decay = np.exp(-decay_per_s.get(float(ratio), 0.0) * time_s)
        tone += amplitude * decay * np.sin(2 * np.pi * ratio * frequency_hz * time_s)
    return tone


_TIMBRES = {"flute": _flute, "organ": _organ, "bell": _bell, "guitar": _guitar}
_EDGES_S = {"flute": (0.04, 0.03), "organ": (0.015, 0.015), "bell": (0.003, 0.02), "guitar": (0.004, 0.02)}
