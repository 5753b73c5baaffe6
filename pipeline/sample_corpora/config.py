"""What is rendered: the file behind ``anygpt-sample-corpora CONFIG``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from configs.load import Config
from pipeline.sample_corpora.speech import VOICES

Count = Annotated[int, Field(ge=0)]


class Split(StrEnum):
    """The side of an item: for training, or kept apart for evaluation."""

    TRAIN = "train"
    HELDOUT = "heldout"


class PicturesConfig(Config):
    """How much one picture differs from the next of the same attributes."""

    jitter_px: float = Field(default=2.0, ge=0, le=4)
    """Largest shift in either direction."""
    jitter_scale: float = Field(default=0.03, ge=0, le=0.05)
    """Largest change of size, as a fraction."""
    jitter_shade: int = Field(default=5, ge=0, le=12)
    """Largest change of a colour channel, of 255."""
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    samples_per_shard: int = Field(default=200, ge=1, le=10_000)
    """Pictures in one tar of the LAION layouts."""
    failed_share: float = Field(default=0.02, ge=0, lt=1)
    """Rows that, as in a real download, are listed in the Parquet file and have no picture."""


class SpeechConfig(Config):
    """Who speaks."""

    voices: tuple[str, ...] = tuple(voice.name for voice in VOICES)

    @field_validator("voices")
    @classmethod
    def _voices_exist(cls, voices: tuple[str, ...]) -> tuple[str, ...]:
        known = [voice.name for voice in VOICES]
        unknown = sorted(set(voices) - set(known))
        if unknown or not voices:
            raise ValueError(f"expected some of the voices {', '.join(known)}, not {', '.join(unknown) or 'none'}")
        return voices


class MusicConfig(Config):
    """How long a clip is; both are whole codec frames of 20 ms."""

    duration_s: float = Field(default=3.0, ge=0.5, le=30, multiple_of=0.02)
    musiccaps_duration_s: int = Field(default=3, ge=1, le=30)
    """Whole seconds, as start_s and end_s are; the real clips have 10."""
    jitter_gain_db: float = Field(default=1.0, ge=0, le=3)


class DialoguesConfig(Config):
    """What is said in the conversations."""

    spoken_share: float = Field(default=0.25, ge=0, le=1)
    """Dialogues whose first round is spoken."""


class TrainCounts(Config):
    """Items per training corpus: pictures, documents, sentences, clips, dialogues."""

    laion2b: Count = 500
    laion_coco: Count = 800
    laion_aesthetics: Count = 300
    journeydb: Count = 800
    mmc4_core_ff: Count = 200
    mls: Count = 350
    commonvoice: Count = 350
    gigaspeech: Count = 200
    youtube_music: Count = 240
    musiccaps: Count = 30
    anyinstruct: Count = 500


class HeldoutCounts(Config):
    """Items per corpus kept apart for evaluation; they show, say and play what no training item does."""

    laion_coco: Count = 96
    mls: Count = 40
    youtube_music: Count = 24
    anyinstruct: Count = 40


class SampleCorporaConfig(Config):
    """The embedded default corpora of the project."""

    output: Path
    seed: int = 0
    workers: int = Field(default=2, ge=1)
    """Processes; the files do not depend on it."""
    pictures: PicturesConfig = PicturesConfig()
    speech: SpeechConfig = SpeechConfig()
    music: MusicConfig = MusicConfig()
    dialogues: DialoguesConfig = DialoguesConfig()
    train: TrainCounts = TrainCounts()
    heldout: HeldoutCounts = HeldoutCounts()
