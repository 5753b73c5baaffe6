"""SoundStorm as something to train: rows of codes in, the loss of the hidden ones out; and its export.

What is hidden was decided before (:mod:`train.masking`). The network sees every piece of speech by itself, padded with its
neighbours in length; of each it is asked for one level, on the hidden frames of it.

The export has the published layout of AnyGPT, ``soundstorm.safetensors`` with ``config.json`` beside it, so a network
trained here goes wherever a published one goes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from shards.vocabulary import MediaBlock
from train.checkpoint import Tensors
from train.collate import IGNORED, MicroBatch
from train.config import SoundStormConfig, TrainConfig
from train.soundstorm import SoundStorm
from train.soundstorm_keys import to_published
from train.speech_layout import SpeechGroup

MODEL_NAME, CONFIG_NAME = "soundstorm.safetensors", "config.json"
_PREFIX = "network."


class SoundStormLoss(nn.Module):
    """The network, answering with its loss."""

    def __init__(self, network: SoundStorm, block: MediaBlock) -> None:
        super().__init__()
        self.network = network
        offsets = block.first_id + block.codebook_size * torch.arange(block.levels)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss of the targets, and (targets,) the loss of each in the order of the rows."""
        assert batch.speech is not None, "the stream marks rows for this objective"
        labels = batch.labels.flatten()
        losses = torch.zeros(len(labels), dtype=torch.float32, device=labels.device)
        # A pass without any speech still needs a gradient, of zero.
        total = self.network.logits_bias.float().sum() * 0.0
        for group in batch.speech.groups:
            places, own = self._losses(batch.input_ids.flatten(), labels, batch.speech.is_hidden, group)
            losses[places] = own.detach()
            total = total + own.sum()
        return total, losses[labels != IGNORED]

    def _losses(
        self, ids: torch.Tensor, labels: torch.Tensor, is_hidden: torch.Tensor, group: SpeechGroup
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of a group's targets in the flattened rows, and their losses."""
        config, mask_BN, levels_B = self.network.config, group.mask, group.levels
        codes_BNL = ids[group.places] - self.get_buffer("offsets")
        if mask_BN is not None:
            codes_BNL = codes_BNL.masked_fill(~mask_BN[..., None], 0)
        above_BNQ = codes_BNL[..., 1:].masked_fill(is_hidden[group.places[..., 1:]], config.mask_id)
        hidden_BND = self.network.hidden(codes_BNL[..., 0], above_BNQ, mask_BN)
        logits_BNK = self.network.level_logits(hidden_BND, levels_B - 1)
        level_BN1 = levels_B[:, None, None].expand(-1, codes_BNL.shape[1], 1)
        places_BN = group.places.gather(2, level_BN1).squeeze(2)
        asked_BN = labels[places_BN] != IGNORED
        if mask_BN is not None:
            asked_BN = asked_BN & mask_BN
        targets = codes_BNL.gather(2, level_BN1).squeeze(2)[asked_BN]
        losses = F.cross_entropy(logits_BNK[asked_BN].float(), targets, reduction="none")
        return places_BN[asked_BN], losses


def build_soundstorm(config: TrainConfig, block: MediaBlock) -> SoundStormLoss:
    """A network made anew, in float32 on the CPU; equal configs give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SoundStormLoss(SoundStorm(config.soundstorm), block).train()


def level_groups(block: MediaBlock, vocabulary_size: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of levels, and the level of every id; what is no code counts as level 1, which is never a target."""
    index = np.zeros(vocabulary_size, np.int64)
    index[block.first_id : block.stop_id] = np.arange(block.num_codes) // block.codebook_size
    return [f"level{level}" for level in range(1, block.levels + 1)], index


def export_soundstorm(config: SoundStormConfig, weights: Tensors, folder: Path) -> None:
    """Write :data:`MODEL_NAME` and :data:`CONFIG_NAME`; float32."""
    state = {name.removeprefix(_PREFIX): torch.from_numpy(array.copy()) for name, array in weights.items()}
    published = {key: tensor.contiguous() for key, tensor in to_published(state, config).items()}
    save_file(published, folder / MODEL_NAME, metadata={"format": "pt"})
    sizes = {"model_type": "soundstorm", **config.model_dump(mode="json")}
    (folder / CONFIG_NAME).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
