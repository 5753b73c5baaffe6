"""SEED-2's files read into its modules: ``seed_quantizer.pt``, a ViT of either source, and a config where one is needed.

The modules are built on the meta device by the sizes their files tell, so nothing is allocated or drawn that is not
loaded; float16 values are widened to float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import Blip2VisionConfig

from pipeline.tokenizers.seed2_keys import (
    PUBLISHED_DEPTH,
    PUBLISHED_WIDTH,
    VIT_BLOCK_NUMBER,
    QuantizerSizes,
    Unshaped,
    VisionSizes,
    check_needed,
    count_numbered,
    quantizer_sizes,
    split_quantizer,
    told_size,
    vision_keys,
    vision_shapes,
)
from pipeline.tokenizers.seed2_network import Seed2Decoder, Seed2Encoder
from pipeline.tokenizers.weights import State, check_keys, flat_state, load_strictly, read_state
from shards.errors import ConfigError, TokenizerError

_VIT_PARTS = re.compile(r"(cls_token|pos_embed)$|patch_embed\.|blocks\.(\d+)\.")
_HF_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_NESTED = ("model", "module", "state_dict")


@dataclass(frozen=True, slots=True)
class VisionWeights:
    """A ViT by the keys of ``Blip2VisionModel``, without its ``post_layernorm``; float32.

    Attributes:
        ignored: published keys that are not used.
    """

    sizes: VisionSizes
    state: State
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seed2Weights:
    """Both halves on the CPU, float32, and what was left of the files.

    Attributes:
        encoder: None where no ViT was asked for.
        ignored_keys: of both files, as published.
    """

    encoder: Seed2Encoder | None
    decoder: Seed2Decoder
    sizes: QuantizerSizes
    unshaped: Unshaped
    ignored_keys: tuple[str, ...]


def read_weights(quantizer: Path, vit: Path | None, *, unshaped: Unshaped) -> Seed2Weights:
    """Read and check the files; every needed key of the quantizer's, whichever half is wanted.

    Raises:
        TokenizerError: naming the key that is missing, misshaped or not known.
    """
    state = flat_state(read_state(quantizer), quantizer, nested_under=_NESTED)
    where = str(quantizer)
    sizes = quantizer_sizes(state, where=where)
    vision = read_vision(vit, unshaped=unshaped) if vit else None
    if vision and vision.sizes.width != sizes.vision_width:
        raise TokenizerError(
            f"{vit}: expected a ViT {sizes.vision_width} wide, as {quantizer.name} wants it, found {vision.sizes.width}"
        )
    with torch.device("meta"):
        # Without a ViT, one of no layers stands in, so that the quantizer's own keys are checked all the same.
        stand_in = VisionSizes(width=sizes.vision_width, depth=0)
        encoder = _built(Seed2Encoder, vision.sizes if vision else stand_in, sizes, unshaped)
        decoder = _built(Seed2Decoder, sizes, unshaped)
    encoder_state, decoder_state, ignored = split_quantizer(state, encoder, decoder, sizes, where=where)
    load_strictly(decoder, decoder_state, where=where)
    decoder.eval().requires_grad_(False)
    if vision is None:
        return Seed2Weights(None, decoder, sizes, unshaped, ignored)
    load_strictly(encoder, encoder_state | {f"vision.{key}": one for key, one in vision.state.items()}, where=where)
    encoder.eval().requires_grad_(False)
    return Seed2Weights(encoder, decoder, sizes, unshaped, ignored + vision.ignored)


def read_unshaped(path: Path | None) -> Unshaped:
    """What no shape tells, from a JSON; the published values for what it does not name, or without one.

    Its keys: ``vision.heads``, ``vision.depth``, ``vision.layer_norm_eps``, ``ln_vision_eps``, ``qformer.heads``,
    ``qformer.layer_norm_eps``, ``image_blocks.heads``, ``image_blocks.layer_norm_eps``; others are not looked at.

    Raises:
        ConfigError: no such file, no JSON, or a value that is no number.
    """
    if path is None:
        return Unshaped()
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"options.config = {path}: expected a JSON of SEED-2's sizes, found: {error}") from error
    named = {
        "vision_heads": ("vision", "heads"),
        "vision_eps": ("vision", "layer_norm_eps"),
        "vision_depth": ("vision", "depth"),
        "ln_vision_eps": ("ln_vision_eps",),
        "qformer_heads": ("qformer", "heads"),
        "qformer_eps": ("qformer", "layer_norm_eps"),
        "image_heads": ("image_blocks", "heads"),
        "image_eps": ("image_blocks", "layer_norm_eps"),
    }
    assert set(named) == {field.name for field in fields(Unshaped)}
    values = {ours: value for ours, keys in named.items() if (value := _at(data, keys)) is not None}
    for ours, value in values.items():
        kinds = (int, float) if ours.endswith("eps") else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise ConfigError(
                f"options.config = {path}: {'.'.join(named[ours])}: expected a positive number, found {value!r}"
            )
    return Unshaped(**values)


def _at(data: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        data = cast(dict[str, Any], data).get(key) if isinstance(data, dict) else None
    return data


def read_vision(path: Path, *, unshaped: Unshaped) -> VisionWeights:
    """A ViT of either source: ``eva_vit_g.pth``, or a BLIP-2 folder or weight file with ``vision_model.*``.

    Raises:
        TokenizerError: a key is missing, misshaped or not known, or heads and depth are not what the config says.
    """
    if path.is_dir():
        return _from_hf(_read_hf_folder(path), path, unshaped, _hf_config(path))
    state = flat_state(read_state(path), path, nested_under=_NESTED)
    if any(key.endswith("embeddings.patch_embedding.weight") for key in state):
        return _from_hf(state, path, unshaped, None)
    return _from_eva(state, path, unshaped)


def _from_eva(state: State, path: Path, unshaped: Unshaped) -> VisionWeights:
    where = str(path)
    fc1, fc2 = "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"
    patch = "patch_embed.proj.weight"
    width = told_size(state, (patch, 0), ("cls_token", 2), ("pos_embed", 2), where=where)
    side = told_size(state, (patch, 2), (patch, 3), where=where)
    # Of the published width the depth is known; of another, the last block in the file is the one not used.
    published = PUBLISHED_DEPTH if width == PUBLISHED_WIDTH else count_numbered(state, VIT_BLOCK_NUMBER) - 1
    depth = unshaped.vision_depth or published
    mlp = told_size(state, (f"{fc1}.weight", 0), (f"{fc1}.bias", 0), (f"{fc2}.weight", 1), where=where)
    image_size = side * isqrt(told_size(state, ("pos_embed", 1), where=where) - 1)
    sizes = VisionSizes(width, depth, mlp, side, image_size)
    keys = vision_keys(depth)
    shapes = vision_shapes(sizes)
    expected = {
        theirs: (width,) if theirs.endswith(("q_bias", "v_bias")) else shapes[ours] for theirs, ours in keys.items()
    }
    needed = {key: tensor for key, tensor in state.items() if not _of_later_block(key, depth)}
    check_needed(expected, needed, _VIT_PARTS, where)
    renamed = {ours: state[theirs].float() for theirs, ours in keys.items() if not ours.endswith("qkv.bias")}
    for n in range(depth):
        q, v = (state[f"blocks.{n}.attn.{name}_bias"].float() for name in "qv")
        renamed[f"encoder.layers.{n}.self_attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return VisionWeights(sizes, renamed, tuple(sorted(set(state) - set(expected))))


def _from_hf(state: State, path: Path, unshaped: Unshaped, config: Blip2VisionConfig | None) -> VisionWeights:
    where = str(path)
    mark = "embeddings.patch_embedding.weight"
    prefix = next((key.removesuffix(mark) for key in state if key.endswith(mark)), None)
    if prefix is None:
        raise TokenizerError(f"{where}: expected the vision part of a BLIP-2 model ({mark}), found {len(state)} others")
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    used = {key: tensor for key, tensor in own.items() if key.startswith(("embeddings.", "encoder."))}
    positions, fc1 = "embeddings.position_embedding", "encoder.layers.0.mlp.fc1"
    width = told_size(used, (mark, 0), ("embeddings.class_embedding", 2), (positions, 2), where=where)
    patch = told_size(used, (mark, 2), (mark, 3), where=where)
    depth = count_numbered(used, _HF_LAYER)
    image_size = patch * isqrt(told_size(used, (positions, 1), where=where) - 1)
    mlp = told_size(used, (f"{fc1}.weight", 0), (f"{fc1}.bias", 0), where=where)
    if config is not None:
        depth = config.num_hidden_layers
        if config.num_attention_heads != unshaped.vision_heads:
            raise TokenizerError(
                f"{where}/config.json: expected {unshaped.vision_heads} heads in the ViT, found "
                f"{config.num_attention_heads}; options.config must name the sizes of another model"
            )
    wanted = unshaped.vision_depth or (PUBLISHED_DEPTH if width == PUBLISHED_WIDTH else depth)
    if depth != wanted:
        raise TokenizerError(f"{where}: expected a ViT of {wanted} layers, found {depth}; another layer's features")
    sizes = VisionSizes(width, depth, mlp, patch, image_size)
    check_keys(vision_shapes(sizes), used, where=where)
    ignored = tuple(sorted(key for key in state if key.removeprefix(prefix) not in used or not key.startswith(prefix)))
    return VisionWeights(sizes, {key: tensor.float() for key, tensor in used.items()}, ignored)


def _read_hf_folder(folder: Path) -> State:
    """What the vision part needs of a folder's files, and nothing else: such a folder is often 15 GB."""
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / name).is_file():
            weight_map = cast(dict[str, str], _read_json(folder / name).get("weight_map", {}))
            files = {file for key, file in weight_map.items() if _is_vision(key)}
            break
    else:
        files = {name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()}
        files = {"model.safetensors"} if "model.safetensors" in files else files
    if not files:
        raise TokenizerError(
            f"{folder}: expected model.safetensors, pytorch_model.bin or an index of shards with vision_model.*, "
            "found none; options.vit may also name eva_vit_g.pth itself"
        )
    state: State = {}
    for name in sorted(files):
        if not (folder / name).is_file():
            raise TokenizerError(f"{folder}: expected the shard {name} that its index names, found none")
        if name.endswith(".safetensors"):
            state |= _read_shard(folder / name)
        else:
            state |= flat_state(read_state(folder / name), folder / name)
    return {key: tensor for key, tensor in state.items() if _is_vision(key)}


def _read_shard(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if _is_vision(key)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TokenizerError(f"{path}: expected a safetensors file, found one that cannot be read: {error}") from error


def _hf_config(folder: Path) -> Blip2VisionConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise TokenizerError(f"{folder}: expected a config.json beside the weights of a BLIP-2 model, found none")
    data = _read_json(path)
    vision = cast(dict[str, Any], data.get("vision_config", data))
    # A config names only what differs from the class's defaults; other keys than these do not matter here.
    named = ("num_hidden_layers", "num_attention_heads")
    return Blip2VisionConfig(**{key: vision[key] for key in named if key in vision})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: expected a JSON object, found: {error}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return cast(dict[str, Any], data)


def _is_vision(key: str) -> bool:
    return "vision_model." in key or key.startswith(("embeddings.", "encoder.layers.", "post_layernorm."))


def _of_later_block(key: str, depth: int) -> bool:
    match = VIT_BLOCK_NUMBER.match(key)
    return match is not None and int(match[1]) >= depth


def _built(kind: Callable[..., Any], *args: object) -> Any:
    try:
        return kind(*args)
    except (ValueError, AssertionError) as error:
        raise TokenizerError(
            f"seed2: expected the number of heads to divide the widths of the files, found {error}; for another model than "
            "the published one options.config must name its heads"
        ) from error
