"""The language model: transformers' LLaMA, made anew or taken from a folder, with our loss on top.

Documents of a row are kept apart by :mod:`train.attention`, not by transformers' own detection of packed rows, which
silently does nothing when there is a mask, or the cache that its config turns on by default.

A folder's weights go straight into place, tensor by tensor and in the dtype of the run: the network is laid out without
memory first, so a process needs the bytes of its weights and those of one tensor, not two or three copies in float32.
At ZeRO-3 every process does the same in host memory (13.8 GB for a 7B in bfloat16) before DeepSpeed cuts it into parts;
transformers' own way around that goes with its own loader, which would grow the vocabulary after the cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shards.errors import CheckpointError
from shards.vocabulary import Vocabulary
from train.acceleration import accelerate
from train.attention import NAME as ATTENTION
from train.collate import MicroBatch
from train.config import ModelConfig, TrainConfig
from train.embedding_growth import grow_rows, pad_rows
from train.loss import HeadLoss
from train.plan import Plan, Shape
from train.processes import Processes
from train.tokenizer_export import tokenizer_source
from train.weight_files import WeightFiles

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "causal."
"""Of the backbone's parameter names, in front of transformers'."""


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
    """The backbone a run starts from, on the CPU; equal plans give equal weights.

    Weights made anew are float32. Those of a folder have the dtype of the run, to which every engine rounds them.

    Raises:
        CheckpointError: a tensor is missing or has another shape than ``config.json`` says.
        FingerprintMismatch, DatasetError: the folder's tokenizer is another than the data's, or has other ids.
        ConfigError: adapters are asked for and cannot be had.
    """
    config = plan.config
    tokenizer_source(plan)  # refuses a wrong one now, and not when the model is exported after the last step
    causal = _new_causal(plan) if config.init.folder is None else _from_folder(config.init.folder, plan)
    causal.generation_config = GenerationConfig(**token_ids(plan.vocabulary))
    causal.config.use_cache = False
    causal.config._attn_implementation = ATTENTION
    causal.train()
    accelerate(causal, config.engine, Processes.from_environment().device)
    sizes = {"num_ids": plan.vocabulary.size, "head_chunk": config.engine.head_chunk}
    if config.lora is None:
        return Backbone(causal, **sizes)
    from train.lora import AdaptedBackbone, add_adapters  # peft is an extra

    assert config.init.folder is not None, "the config refuses adapters without a folder"
    rows = LlamaConfig.from_pretrained(config.init.folder, local_files_only=True).vocab_size
    add_adapters(causal, config.lora, grown=rows < plan.vocabulary.size, seed=config.seed)
    return AdaptedBackbone(causal, **sizes, dropout_seed=config.seed if config.lora.dropout else None)


def model_config(plan: Plan) -> LlamaConfig:
    """Transformers' config of the backbone while it trains; its vocabulary may be padded."""
    config = plan.config
    if config.init.folder is None:
        found = _new_config(config.model, plan)
    else:
        found = cast(LlamaConfig, LlamaConfig.from_pretrained(config.init.folder, local_files_only=True))
        # Rotary positions have no table to outgrow; the number only tells samplers how far the model was trained.
        found.max_position_embeddings = max(found.max_position_embeddings, plan.sequence_length)
        found.vocab_size = num_rows(plan)
    for name, value in token_ids(plan.vocabulary).items():
        setattr(found, name, value)
    return found


def num_rows(plan: Plan) -> int:
    """Rows of embedding and head: the vocabulary, or the folder's if it has more, padded."""
    assert isinstance(plan.shape, Shape), "an objective that is no language model builds its own network"
    multiple = plan.config.model.pad_vocabulary_to
    return -(-plan.shape.vocabulary_size // multiple) * multiple


def token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The special ids as transformers' configs name them."""
    return {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id}


def parameters_by_name(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that is trained, once; a shared one under its first name."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def parameter_names(plan: Plan) -> list[str]:
    """Transformers' names of the weights of the run's model, adapters not counted."""
    return [name for name, _ in _empty_causal(plan).named_parameters()]


def torch_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype of the run's weights."""
    return torch.bfloat16 if config.engine.dtype == "bf16" else torch.float32


def folder_tensor(files: WeightFiles, name: str, plan: Plan) -> torch.Tensor:
    """One tensor of the folder a run starts from, in the dtype of the run; embedding and head grown to all rows.

    Raises:
        CheckpointError: the folder lacks it.
    """
    if name not in files:
        raise CheckpointError(
            f"{files.folder}: expected the tensor {name!r}, found {len(files)} others; is it a LLaMA, and whole?"
        )
    # A copy: what comes from the file is a map of it, which the file's owner may change.
    tensor = files[name].to(torch_dtype(plan.config), copy=True)
    if name not in (EMBEDDING, HEAD):
        return tensor
    grown = grow_rows(
        tensor,
        max(len(tensor), plan.vocabulary.size),
        key=name,
        seed=plan.config.seed,
        how=plan.config.init.new_embeddings,
        std=model_config(plan).initializer_range,
    )
    return pad_rows(grown, num_rows(plan))


def _new_causal(plan: Plan) -> LlamaForCausalLM:
    config, rows = model_config(plan), num_rows(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.config.seed)
        causal = LlamaForCausalLM(config)
    if rows > config.vocab_size:  # afterwards, so that padding changes no other weight
        causal.model.embed_tokens.weight = nn.Parameter(pad_rows(causal.model.embed_tokens.weight.data, rows))
        tied = config.tie_word_embeddings
        head = causal.model.embed_tokens.weight if tied else nn.Parameter(pad_rows(causal.lm_head.weight.data, rows))
        causal.lm_head.weight = head
        config.vocab_size = rows
    return causal


def _new_config(model: ModelConfig, plan: Plan) -> LlamaConfig:
    assert isinstance(plan.shape, Shape), "an objective that is no language model builds its own network"
    return LlamaConfig(
        vocab_size=plan.vocabulary.size,
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


def _empty_causal(plan: Plan) -> LlamaForCausalLM:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(model_config(plan))


def _from_folder(folder: Path, plan: Plan) -> LlamaForCausalLM:
    causal, files = _empty_causal(plan), WeightFiles(folder)
    names = dict(causal.named_parameters())
    # In the order of the files, each of which is opened once; names that are missing come last, and are refused.
    for name in sorted(names, key=files.place):
        tensor = folder_tensor(files, name, plan)
        if tensor.shape != names[name].shape:
            raise CheckpointError(
                f"{folder}: expected {name} of shape {tuple(names[name].shape)}, as config.json says, found "
                f"{tuple(tensor.shape)}; weights and config are of different models"
            )
        owner, _, leaf = name.rpartition(".")
        setattr(causal.get_submodule(owner), leaf, nn.Parameter(tensor))
    if causal.config.tie_word_embeddings:
        causal.lm_head.weight = causal.model.embed_tokens.weight
    causal.model.rotary_emb = LlamaRotaryEmbedding(causal.config)  # its frequencies are in no file, and stay float32
    return causal
