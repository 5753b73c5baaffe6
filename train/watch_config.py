"""How a run is watched, as tables of its config: figures, validation, guards, profile."""

from __future__ import annotations

from typing import Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from configs.load import Config


class WandbConfig(Config):
    """A run of Weights & Biases; its own variables (``WANDB_MODE=offline``, ``WANDB_DIR``) hold."""

    project: str
    entity: str | None = None
    name: str | None = None
    """None: the last part of ``output``."""


class LogConfig(Config):
    """How often figures are written, and where to."""

    every: PositiveInt = 10
    tensorboard: bool = True
    wandb: WandbConfig | None = None
    """Send figures there, too; needs ``pip install wandb``."""

    directions: bool = True
    """Tell losses apart by direction (text to image, image to text, ...); reads the files beside the shards."""


class ValidationConfig(Config):
    """Losses on rows that are never trained on: those of ``NAME-validation`` beside each dataset of the mixture."""

    every: NonNegativeInt = 1000
    """Steps; and after the last one. 0: never."""

    rows: PositiveInt = 128
    """Of each dataset, drawn once; all where there are fewer."""

    allow_training: bool = False
    """Train on such a dataset, if the mixture has one, instead of refusing to."""


class GuardsConfig(Config):
    """When an update is left out (:mod:`train.guards`). One whose loss or gradient is not finite always is."""

    spike_factor: NonNegativeFloat = 10.0
    """Loss or gradient norm beyond this many times its running median is a spike, too; 0: nothing is."""

    window: PositiveInt = 128
    """Updates the running medians are over."""

    warm_up: PositiveInt = 32
    """Updates before anything is called a spike."""

    max_skips: PositiveInt = 5
    """In a row: then the run stops."""

    dump: bool = True
    """Write the batch to ``OUTPUT/dumps/step-N``, which ``anygpt-inspect`` opens."""

    @model_validator(mode="after")
    def _above_the_median(self) -> Self:
        if 0 < self.spike_factor <= 1:
            raise ValueError(f"expected a spike_factor above 1, or 0 for none, found {self.spike_factor}")
        return self


class ProfileConfig(Config):
    """Steps that torch's profiler looks at; results in ``OUTPUT/profile``."""

    start: PositiveInt
    steps: PositiveInt = 3
