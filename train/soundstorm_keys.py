"""The two published layouts of a SoundStorm checkpoint, and ours.

Source: tokenizers sheet 4.1. AnyGPT's file and the standalone repository's hold the same tensors; only the convolution's
keys differ. Between these layouts and :mod:`train.soundstorm` tensors are renamed and reshaped, never changed, so a file
that is read and written again has the same numbers under the same keys.

    ours                            AnyGPT                       standalone
    blocks.N.convolution.norm       ...conv.net1.0               ...conv.net.0
    blocks.N.convolution.widen      ...conv.net1.2               ...conv.net.2
    blocks.N.convolution.depthwise  ...conv.ds_conv.conv         ...conv.net.4.conv
    blocks.N.convolution.gain       ...conv.net2.1.gamma         ...conv.net.6.gamma
    blocks.N.convolution.narrow     ...conv.net2.2               ...conv.net.7
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from train.soundstorm import SoundStormConfig

State = dict[str, torch.Tensor]
Shape = tuple[int, ...]


class Layout(StrEnum):
    """Who writes a file so."""

    ANYGPT = "anygpt"
    STANDALONE = "standalone"


@dataclass(frozen=True, slots=True)
class PublishedTensor:
    """Where a tensor of ours is in a published file.

    Attributes:
        key: ours.
        shape: ours.
        published_shape: of the same values there.
    """

    key: str
    shape: Shape
    published_shape: Shape


_CONVOLUTION = {
    Layout.ANYGPT: {
        "norm": "net1.0",
        "widen": "net1.2",
        "depthwise": "ds_conv.conv",
        "gain": "net2.1.gamma",
        "narrow": "net2.2",
    },
    Layout.STANDALONE: {
        "norm": "net.0",
        "widen": "net.2",
        "depthwise": "net.4.conv",
        "gain": "net.6.gamma",
        "narrow": "net.7",
    },
}
_LAYER = "net.conformer.layers"
_BLOCK_KEY = re.compile(rf"^{re.escape(_LAYER)}\.(\d+)\.")


def layout_of(keys: Iterable[str]) -> Layout:
    """The layout that a file's keys are of; AnyGPT's if nothing in them tells."""
    is_standalone = any(_BLOCK_KEY.match(key) and ".conv.net." in key for key in keys)
    return Layout.STANDALONE if is_standalone else Layout.ANYGPT


def published_keys(config: SoundStormConfig, layout: Layout) -> dict[str, PublishedTensor]:
    """Every key of a published file of this size and layout, and what it is here."""
    entries = {
        "semantic_token_emb.weight": _same("semantic_embedding.weight", config.num_semantic, config.dim),
        "net.code_embeds.weight": _same(
            "code_embedding.weight", config.num_quantizers * (config.codebook_size + 1), config.dim
        ),
        "net.heads.0.weight": _same("heads.weight", config.num_quantizers * config.dim, config.dim),
        "net.heads.0.bias": _same("heads.bias", config.num_quantizers * config.dim),
        "net.to_logits.0.weight": _same("logits_norm.weight", config.dim),
        "net.to_logits.0.bias": _same("logits_norm.bias", config.dim),
        "net.to_logits.2.weight": _same("logits_weight", config.num_quantizers, config.dim, config.codebook_size),
        "net.to_logits.2.bias": PublishedTensor(
            "logits_bias",
            (config.num_quantizers, config.codebook_size),
            (1, 1, config.num_quantizers, config.codebook_size),
        ),
    }
    for number in range(config.depth):
        entries |= _block_keys(config, layout, number)
    return entries


def from_published(state: Mapping[str, torch.Tensor], config: SoundStormConfig, layout: Layout) -> State:
    """Our state dict from a published one that has exactly the right keys and shapes.

    Raises:
        KeyError: a key is missing; whoever reads files checks them first and says it better.
    """
    entries = published_keys(config, layout)
    return {entry.key: state[key].reshape(entry.shape) for key, entry in entries.items()}


def to_published(state: Mapping[str, torch.Tensor], config: SoundStormConfig, layout: Layout = Layout.ANYGPT) -> State:
    """The published state dict of ours; AnyGPT's own code loads it strictly."""
    entries = published_keys(config, layout)
    return {key: state[entry.key].reshape(entry.published_shape) for key, entry in entries.items()}


def config_from_shapes(shapes: Mapping[str, Shape], layout: Layout, known: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that the shapes of a published file tell: all but ``heads``, whose product with ``head_dim`` they tell.

    Args:
        known: sizes given elsewhere; ``heads`` or ``head_dim`` of them decides the other, else the published head_dim.

    Raises:
        KeyError: a tensor that a size is read from is not there.
        ValueError: heads of that size do not fill the attention, or a tensor has another number of dimensions.
    """
    names = _CONVOLUTION[layout]
    block = f"{_LAYER}.0"
    levels, dim, codes = shapes["net.to_logits.2.weight"]
    inner = shapes[f"{block}.attn.fn.to_q.weight"][0]
    head_dim = inner // known["heads"] if "heads" in known else known.get("head_dim", SoundStormConfig().head_dim)
    if not head_dim or inner % head_dim or inner // head_dim != known.get("heads", inner // head_dim):
        raise ValueError(
            f"expected attention over heads of {head_dim or known['heads']} dimensions, found {inner} dimensions in all"
        )
    channels, _, kernel = shapes[f"{block}.conv.{names['depthwise']}.weight"]
    return {
        "dim": dim,
        "depth": len({match[1] for key in shapes if (match := _BLOCK_KEY.match(key))}),
        "heads": inner // head_dim,
        "head_dim": head_dim,
        "ff_mult": shapes[f"{block}.ff1.fn.fn.net.0.weight"][0] // dim,
        "conv_expansion": channels // dim,
        "conv_kernel": kernel,
        "num_quantizers": levels,
        "codebook_size": codes,
        "num_semantic": shapes["semantic_token_emb.weight"][0],
    }


def _block_keys(config: SoundStormConfig, layout: Layout, number: int) -> dict[str, PublishedTensor]:
    here, there, dim = f"blocks.{number}", f"{_LAYER}.{number}", config.dim
    inner, wide = config.heads * config.head_dim, config.ff_mult * dim
    entries: dict[str, PublishedTensor] = {}
    for our_name, name in (("feed_forward_1", "ff1"), ("feed_forward_2", "ff2")):
        entries |= _pair(f"{there}.{name}.fn.norm", f"{here}.{our_name}.norm", dim)
        entries |= _pair(f"{there}.{name}.fn.fn.net.0", f"{here}.{our_name}.up", wide, dim)
        entries |= _pair(f"{there}.{name}.fn.fn.net.3", f"{here}.{our_name}.down", dim, wide)
    entries |= _pair(f"{there}.attn.norm", f"{here}.attention.norm", dim)
    entries[f"{there}.attn.fn.to_q.weight"] = _same(f"{here}.attention.query.weight", inner, dim)
    entries[f"{there}.attn.fn.to_kv.weight"] = _same(f"{here}.attention.key_value.weight", 2 * inner, dim)
    entries |= _pair(f"{there}.attn.fn.to_out", f"{here}.attention.out", dim, inner)
    entries |= _pair(f"{there}.post_norm", f"{here}.norm", dim)
    return entries | _convolution_keys(config, _CONVOLUTION[layout], f"{here}.convolution", f"{there}.conv")


def _convolution_keys(
    config: SoundStormConfig, names: Mapping[str, str], here: str, there: str
) -> dict[str, PublishedTensor]:
    dim, channels = config.dim, config.conv_expansion * config.dim
    widen, narrow = f"{there}.{names['widen']}", f"{there}.{names['narrow']}"
    entries = _pair(f"{there}.{names['norm']}", f"{here}.norm", dim)
    entries |= _pair(f"{there}.{names['depthwise']}", f"{here}.depthwise", channels, 1, config.conv_kernel)
    # Convolutions of width 1 there, Linear layers here.
    entries[f"{widen}.weight"] = PublishedTensor(f"{here}.widen.weight", (2 * channels, dim), (2 * channels, dim, 1))
    entries[f"{widen}.bias"] = _same(f"{here}.widen.bias", 2 * channels)
    entries[f"{narrow}.weight"] = PublishedTensor(f"{here}.narrow.weight", (dim, channels), (dim, channels, 1))
    entries[f"{narrow}.bias"] = _same(f"{here}.narrow.bias", dim)
    entries[f"{there}.{names['gain']}"] = PublishedTensor(f"{here}.gain", (channels,), (1, channels, 1))
    return entries


def _pair(published: str, ours: str, *shape: int) -> dict[str, PublishedTensor]:
    """A weight and the bias that belongs to its first dimension."""
    return {
        f"{published}.weight": _same(f"{ours}.weight", *shape),
        f"{published}.bias": _same(f"{ours}.bias", shape[0]),
    }


def _same(key: str, *shape: int) -> PublishedTensor:
    return PublishedTensor(key, shape, shape)
