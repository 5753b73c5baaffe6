"""What the report asks a trained model, as a config says it.

Apart from :mod:`evaluation.heldout`, which asks and so imports torch: a command reads its config first.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from configs.load import Config
from inference.sampling_config import SamplingConfig
from shards.modality import Modality


class TaskConfig(Config):
    """Where the held-out samples of one modality are, and how many of them to ask."""

    dataset: Path
    limit: int = Field(default=64, ge=1)


class HeldoutConfig(Config):
    """What the evaluation asks, and how answers are drawn."""

    image: TaskConfig | None = None
    speech: TaskConfig | None = None
    music: TaskConfig | None = None
    dialogues: TaskConfig | None = None
    sampling: dict[Modality, SamplingConfig] = Field(default_factory=dict[Modality, SamplingConfig])
    text_budget: int = Field(default=48, ge=1)
    """Most ids of a written answer."""
    seed: int = 0

    def tasks(self) -> list[TaskConfig]:
        """Those that it names."""
        return [task for task in (self.image, self.speech, self.music, self.dialogues) if task is not None]
