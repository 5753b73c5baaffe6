"""What makes a backbone's layers faster or smaller without changing what they compute: one call, before the engine.

The order matters: Liger replaces code that compiling would look at, and a layer that is computed twice is compiled as such.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from shards.errors import ConfigError
from train.attention import set_kernel
from train.attention_kernels import check_kernel, choose_kernel
from train.config import EngineConfig


def accelerate(
    causal: LlamaForCausalLM, engine: EngineConfig, device: torch.device, *, backend: str = "inductor"
) -> None:
    """Choose kernels, and have layers recomputed or compiled, as the config says.

    Args:
        device: where the network will compute.
        backend: of torch.compile; others than the default are for tests without a C++ compiler.

    Raises:
        ConfigError: the kernels asked for are not installed, or do not run on this device.
    """
    dtype = torch.bfloat16 if engine.dtype == "bf16" else torch.float32
    kernel = choose_kernel(engine.attention_kernel, device=device, dtype=dtype)
    if kernel != "buckets":
        head_size = causal.config.hidden_size // causal.config.num_attention_heads
        check_kernel(kernel, device=device, dtype=dtype, head_size=head_size)
    set_kernel(causal, kernel, cudnn=engine.cudnn_attention and device.type == "cuda")
    if engine.liger:
        _apply_liger(causal, device)
    _checkpoint(causal, float(engine.activation_checkpointing))
    if engine.compile:
        for layer in causal.model.layers:
            layer.compile(backend=backend)


def checkpointed_layers(num_layers: int, part: float) -> list[bool]:
    """Which layers are computed twice: this part of them, spread evenly."""
    return [int((number + 1) * part + 1e-9) > int(number * part + 1e-9) for number in range(num_layers)]


def _checkpoint(causal: LlamaForCausalLM, part: float) -> None:
    """What transformers' own switch does, which knows only all layers or none."""
    layers = list(causal.model.layers)
    for layer, chosen in zip(layers, checkpointed_layers(len(layers), part), strict=True):
        layer.gradient_checkpointing = chosen  # pyright: ignore[reportArgumentType]
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # pyright: ignore[reportArgumentType]


def _apply_liger(causal: nn.Module, device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError("engine.liger: expected a GPU for its Triton kernels, found none; leave it out")
    try:
        liger = import_module("liger_kernel.transformers")  # no dependency of ours: who wants it installs it
    except ImportError as error:
        raise ConfigError(
            "engine.liger: expected the package liger-kernel, found none; pip install liger-kernel, or leave it out"
        ) from error
    options: dict[str, Any] = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    liger.apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, model=causal, **options)
