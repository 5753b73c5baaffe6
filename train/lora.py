"""Low-rank adapters for instruction tuning, with the library peft: train 40 million weights of a 7B instead of all.

Source: Hu et al. 2021, arXiv:2106.09685. AnyGPT trains all its weights (anygpt-compat, issue 28); this is for those who
lack the GPUs for that.

The folder's weights are frozen; only adapters (and embedding and head, with ``train_embeddings``) have gradients, so only
they are in the optimizer and in checkpoints. What is exported is the whole model, each weight plus its adapter's product,
or the adapter alone as peft writes one. Both come from the checkpoint and the folder, without peft and without a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

from shards.errors import ConfigError
from train.backbone import EMBEDDING, HEAD, PREFIX, Backbone, folder_tensor, parameter_names
from train.checkpoint import Tensors
from train.collate import MicroBatch
from train.config import LoraConfig
from train.plan import Plan
from train.weight_files import WeightFiles

_PEFT_PREFIX = "base_model.model."


class AdaptedBackbone(Backbone):
    """A backbone with adapters, whose dropout is a function of the seed and the rows, not of what was drawn before."""

    def __init__(self, causal: LlamaForCausalLM, *, num_ids: int, head_chunk: int, dropout_seed: int | None) -> None:
        """Take the seed of dropout, or None if there is none."""
        super().__init__(causal, num_ids=num_ids, head_chunk=head_chunk)
        self._dropout_seed = dropout_seed

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Backbone`."""
        if self._dropout_seed is None or not self.training:
            return super().forward(batch)
        device = batch.input_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed_of_rows(self._dropout_seed, batch.input_ids))
            return super().forward(batch)


def add_adapters(causal: LlamaForCausalLM, lora: LoraConfig, *, grown: bool, seed: int) -> None:
    """Freeze a model and put adapters on the linear layers that ``lora.targets`` names; they start as nothing.

    Args:
        grown: the vocabulary has rows that nobody trained.

    Raises:
        ConfigError: peft is not installed, a target names no layer, or rows nobody trained would be frozen.
    """
    peft = _import_peft()
    if grown and not lora.train_embeddings:
        raise ConfigError(
            "key 'lora.train_embeddings': expected true, as the vocabulary has more ids than the folder's embedding has "
            "rows, found false; the new rows would stay as they were drawn"
        )
    linear = {name.rpartition(".")[2] for name, module in causal.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(lora.targets) - (linear - {"lm_head"})):
        raise ConfigError(
            f"key 'lora.targets': expected some of {sorted(linear - {'lm_head'})}, found {unknown[0]!r}; rename it"
        )
    causal.requires_grad_(False)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, causal)
    if lora.train_embeddings:
        causal.model.embed_tokens.requires_grad_(True)
        causal.lm_head.requires_grad_(True)


def merged_weights(weights: Tensors, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Transformers' names and whole weights: the folder's, those that were trained, and those with an adapter added.

    Args:
        weights: of the adapters, by the backbone's parameter names, in float32.
    """
    lora, folder = plan.config.lora, plan.config.init.folder
    assert lora is not None and folder is not None, "only a run with adapters has them, and only on top of a folder"
    files = WeightFiles(folder)
    for name in sorted(parameter_names(plan), key=files.place):
        layer = f"{PREFIX}{name.removesuffix('.weight')}"
        if PREFIX + name in weights:
            yield name, torch.from_numpy(weights[PREFIX + name])
        elif f"{layer}.lora_A.default.weight" in weights:
            down, up = (torch.from_numpy(weights[f"{layer}.lora_{half}.default.weight"]) for half in "AB")
            base = folder_tensor(files, name, plan)
            yield name, base.float().addmm_(up, down, alpha=lora.alpha / lora.rank)
        else:
            yield name, folder_tensor(files, name, plan)


def export_adapter(weights: Tensors, plan: Plan, folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` for ``peft.PeftModel.from_pretrained``.

    Where the vocabulary grew, resize the base model to the rows of the adapter's embedding before loading it.
    """
    lora = plan.config.lora
    assert lora is not None
    tensors: dict[str, torch.Tensor] = {}
    for name in weights:
        plain = name.removeprefix(PREFIX)
        rows = plan.vocabulary.size if plain in (EMBEDDING, HEAD) else None
        tensors[_PEFT_PREFIX + plain.replace(".default.weight", ".weight")] = torch.from_numpy(weights[name])[:rows]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(plan.config.init.folder),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "modules_to_save": ["embed_tokens", "lm_head"] if lora.train_embeddings else None,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _import_peft() -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"[lora]: expected the library peft, found {error}; install it with `pip install 'anygpt-data[lora]'`, or "
            "remove the table to train all weights"
        ) from error
    return peft


def _seed_of_rows(seed: int, input_ids: torch.Tensor) -> int:
    rows = hashlib.sha256(input_ids.cpu().numpy().tobytes()).digest()
    return int.from_bytes(hashlib.sha256(str(seed).encode() + rows).digest()[:8], "big") >> 1
