"""The language model: transformers' LLaMA, made anew or taken from a folder, with our loss on top.

Documents of a row are kept apart by :mod:`train.attention`, not by transformers' own detection of packed rows, which
silently does nothing when there is a mask, or the cache that its config turns on by default.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from shards.vocabulary import Vocabulary
from train.attention import NAME as ATTENTION
from train.checkpoint import Tensors
from train.collate import MicroBatch
from train.config import InitConfig, ModelConfig, TrainConfig
from train.loss import HeadLoss
from train.plan import VOCABULARY_NAME, Plan, Shape

_PREFIX = "causal."


class Backbone(nn.Module):
    """A causal language model that answers with its loss."""

    def __init__(self, causal: LlamaForCausalLM, *, num_ids: int, head_chunk: int) -> None:
        super().__init__()
        if causal.config.use_cache or causal.config._attn_implementation != ATTENTION:
            raise ValueError(
                f"expected use_cache=False and {ATTENTION} attention, found {causal.config.use_cache} and "
                f"{causal.config._attn_implementation}; documents of a row would see each other"
            )
        self.causal = causal
        self.head_loss = HeadLoss(causal.lm_head.weight, num_ids=num_ids, chunk=head_chunk)  # pyright: ignore[reportArgumentType]

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss of the targets, and the loss of each in the order of the rows."""
        hidden = self.causal.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, documents=batch.documents
        ).last_hidden_state
        return self.head_loss(hidden, batch.labels)


def build_backbone(plan: Plan) -> Backbone:
    """The backbone a run starts from, in float32 on the CPU; equal plans give equal weights."""
    config = plan.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.init.folder is None:
            causal = LlamaForCausalLM(_new_config(config.model, plan))
        else:
            causal = _from_folder(config.init.folder, config.init, plan)
    _bind_vocabulary(causal, plan.vocabulary)
    causal.config.use_cache = False
    causal.config._attn_implementation = ATTENTION
    if config.engine.activation_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    causal.train()
    return Backbone(causal, num_ids=plan.vocabulary.size, head_chunk=config.engine.head_chunk)


def export(backbone: Backbone, weights: Tensors, plan: Plan, folder: Path) -> None:
    """Write a folder that ``AutoModelForCausalLM`` loads: config, weights, generation config; and the vocabulary.

    Args:
        weights: by the backbone's parameter names, in float32; written in the dtype of the run.
    """
    dtype = torch_dtype(plan.config)
    state = {name.removeprefix(_PREFIX): torch.from_numpy(array).to(dtype) for name, array in weights.items()}
    # By hand: save_pretrained writes the dtype of the module, which is not that of the run while nothing is loaded.
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(backbone.causal.config)
    config.use_cache, config.dtype, config.architectures = True, dtype, [type(backbone.causal).__name__]
    config.save_pretrained(folder)
    backbone.causal.generation_config.save_pretrained(folder)
    text = json.dumps(plan.vocabulary.to_json(), indent=1, ensure_ascii=False) + "\n"
    (folder / VOCABULARY_NAME).write_text(text, encoding="utf-8")


def parameters_by_name(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once; a shared one under its first name."""
    return dict(backbone.named_parameters())


def torch_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype of the run's weights."""
    return torch.bfloat16 if config.engine.dtype == "bf16" else torch.float32


def _new_config(model: ModelConfig, plan: Plan) -> LlamaConfig:
    assert isinstance(plan.shape, Shape), "an objective that is no language model builds its own network"
    return LlamaConfig(
        vocab_size=plan.shape.vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=plan.shape.num_key_value_heads,
        max_position_embeddings=model.max_position_embeddings or plan.sequence_length,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        initializer_range=model.initializer_range,
        tie_word_embeddings=model.tie_embeddings,
    )


def _from_folder(folder: Path, init: InitConfig, plan: Plan) -> LlamaForCausalLM:
    causal = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if causal.config.vocab_size < plan.vocabulary.size:
        causal.resize_token_embeddings(plan.vocabulary.size, mean_resizing=init.new_embeddings == "mean")
    # Rotary positions have no table to outgrow; the number only tells samplers how far the model was trained.
    causal.config.max_position_embeddings = max(causal.config.max_position_embeddings, plan.sequence_length)
    return causal


def _bind_vocabulary(causal: LlamaForCausalLM, vocabulary: Vocabulary) -> None:
    ids = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    for name, value in ids.items():
        setattr(causal.config, name, value)
    causal.generation_config = GenerationConfig(**ids)
