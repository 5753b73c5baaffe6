"""Table 1 is law: what kinds of segments there are, and how many codes each has. It is written down here and nowhere else.

Source: AnyGPT (arXiv 2402.12226) Table 1: a picture is 32 codes of 8,192; speech 50 frames a second of 1,024, of which the
language model reads the first of 8 levels; music 50 frames a second of 4 levels of 2,048. The paper has no fourth medium,
but the released vocabulary has room for one, 4 x 1,024 ids under ``audio``: that is EnCodec at 24 kHz and 3 kbit/s.

A new modality is one line in :class:`Modality`, a tokenizer file, a vocabulary block and a template file. A line with a
sample rate is a sound, and everything that holds for sounds follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


@dataclass(frozen=True, slots=True)
class MediaRate:
    """How many codes a medium has, and of what size.

    Attributes:
        codebook_size: codes of a level are below it.
        levels_at_rest: levels that are stored.
        levels_read: levels the language model reads, the first ones; the rest is for a vocoder.
        sample_rate_hz, samples_per_frame: of a sound; 0 for pictures.
        num_frames: of any picture; 0 for sounds.
    """

    codebook_size: int
    levels_at_rest: int = 1
    levels_read: int = 1
    sample_rate_hz: int = 0
    samples_per_frame: int = 0
    num_frames: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether the number of frames follows the length."""
        return self.sample_rate_hz > 0

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second; 0 for pictures."""
        return self.sample_rate_hz / self.samples_per_frame if self.is_sound else 0.0

    def frames_for(self, num_samples: int) -> int:
        """Exact number of frames of a sound (every started one counts), or of any picture."""
        return -(-num_samples // self.samples_per_frame) if self.is_sound else self.num_frames


class Modality(StrEnum):
    """What a segment is made of, and, unless that is text, its rate."""

    _value_: str
    _rate: MediaRate | None

    def __new__(cls, value: str, rate: MediaRate | None = None) -> Self:
        """A member is equal to its string; the rate comes along."""
        member = str.__new__(cls, value)
        member._value_ = value
        member._rate = rate
        return member

    TEXT = "text"
    IMAGE = "image", MediaRate(8192, num_frames=32)
    SPEECH = "speech", MediaRate(1024, levels_at_rest=8, sample_rate_hz=16_000, samples_per_frame=320)
    MUSIC = "music", MediaRate(2048, levels_at_rest=4, levels_read=4, sample_rate_hz=32_000, samples_per_frame=640)
    AUDIO = "audio", MediaRate(1024, levels_at_rest=4, levels_read=4, sample_rate_hz=24_000, samples_per_frame=320)

    @property
    def rate(self) -> MediaRate:
        """Its line of Table 1.

        Raises:
            ValueError: for text, which has none.
        """
        if self._rate is None:
            raise ValueError(f"{self}: expected a medium, found text, which has no rate")
        return self._rate

    @property
    def is_sound(self) -> bool:
        """Whether it is heard, and so has a sample rate."""
        return self._rate is not None and self._rate.is_sound


MEDIA = tuple(modality for modality in Modality if modality is not Modality.TEXT)
"""Everything but text."""
SOUNDS = tuple(modality for modality in MEDIA if modality.is_sound)
"""Media with a sample rate."""
