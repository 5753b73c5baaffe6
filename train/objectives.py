"""What a run learns: the seam between the trainer, which knows steps and engines, and what a loss is.

``language_model`` predicts the next id of a row; ``soundstorm`` the hidden levels of speech. An objective builds its
network, says how rows are marked and how losses are told apart, and writes the finished model; stream, mixture, engine,
checkpoints and metrics are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from train.backbone import build_backbone
from train.checkpoint import Tensors
from train.collate import Attention
from train.masking import Masking
from train.model_export import export_model
from train.plan import Plan
from train.soundstorm_training import build_soundstorm, export_soundstorm, level_groups


@dataclass(frozen=True, slots=True)
class LossGroups:
    """What losses are told apart by.

    Attributes:
        index: (vocabulary,) group of each id, as a place in ``names``.
    """

    names: list[str]
    index: npt.NDArray[np.integer[Any]]


class Objective(Protocol):
    """What the trainer needs to know."""

    loss_groups: LossGroups
    attention: Attention
    masking: Masking | None

    def build(self) -> nn.Module:
        """The network a run starts from, in float32 on the CPU; its forward takes a ``MicroBatch``.

        Forward gives the summed loss of the targets, and the loss of each in the order of the rows.
        """
        ...

    def export(self, weights: Tensors, folder: Path) -> None:
        """Write the model others load, from its weights alone.

        Args:
            weights: by the network's parameter names, in float32.
        """
        ...


def open_objective(plan: Plan) -> Objective:
    """The objective that the run's config names."""
    return SpeechLevels(plan) if plan.config.objective == "soundstorm" else LanguageModel(plan)


class LanguageModel:
    """The next id; losses by modality."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.loss_groups = LossGroups(plan.vocabulary.modality_names(), plan.vocabulary.modality_index())
        self.attention: Attention = plan.config.attention
        self.masking: Masking | None = None

    def build(self) -> nn.Module:
        """See :class:`Objective`."""
        return build_backbone(self._plan)

    def export(self, weights: Tensors, folder: Path) -> None:
        """See :class:`Objective`."""
        export_model(weights, self._plan, folder)


class SpeechLevels:
    """SoundStorm's hidden levels; losses by level."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        block = plan.speech_block
        self.loss_groups = LossGroups(*level_groups(block, plan.vocabulary.size))
        # Documents are pieces of speech, which the network takes apart itself.
        self.attention: Attention = "row"
        self.masking: Masking | None = Masking(block, plan.config.seed)

    def build(self) -> nn.Module:
        """See :class:`Objective`."""
        return build_soundstorm(self._plan.config, self._plan.speech_block)

    def export(self, weights: Tensors, folder: Path) -> None:
        """See :class:`Objective`."""
        export_soundstorm(self._plan.config.soundstorm, weights, folder)
