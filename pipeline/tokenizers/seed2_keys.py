"""SEED-2's published weight files: their sizes, told by their own tensors, and their keys by our modules' names.

Key maps: tokenizers sheet 1.3, proven there on random weights. Two files make the model: ``seed_quantizer.pt``, which
holds everything but the ViT (beside keys that nothing uses), and a ViT: LAVIS's ``eva_vit_g.pth``, of whose blocks the
last is not used (the feature is the penultimate layer's), or the vision part of a Hugging Face BLIP-2 model, whose
depth leaves it out already. Needed keys are taken strictly, under their published names, so that an error names what a
user finds in the file. What belongs to a part we use and is not known is an error as well; the rest is listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import Blip2VisionConfig

from pipeline.tokenizers.weights import State, check_keys, flat_state, read_state
from shards.errors import TokenizerError

_PUBLISHED_WIDTH, _PUBLISHED_DEPTH = 1408, 39


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """Of a ViT; the defaults are the published EVA-CLIP ViT-g/14 (tokenizers sheet 1.2)."""

    width: int = _PUBLISHED_WIDTH
    depth: int = _PUBLISHED_DEPTH
    mlp: int = 6144
    patch: int = 14
    image_size: int = 224


@dataclass(frozen=True, slots=True)
class QuantizerSizes:
    """Of ``seed_quantizer.pt``; the defaults are the published file's."""

    vision_width: int = _PUBLISHED_WIDTH
    queries: int = 32
    width: int = 768
    depth: int = 12
    cross_every: int = 2
    mlp: int = 3072
    codebook_size: int = 8192
    code_width: int = 32
    image_depth: int = 4
    image_mlp: int = 3072
    image_down: tuple[int, int, int] = (256, 128, 32)
    embed_width: int = 1024


@dataclass(frozen=True, slots=True)
class Unshaped:
    """What no tensor's shape tells: heads and epsilons, published unless a config says otherwise."""

    vision_heads: int = 16
    vision_eps: float = 1e-6
    ln_vision_eps: float = 1e-5
    qformer_heads: int = 12
    qformer_eps: float = 1e-12
    image_heads: int = 12
    image_eps: float = 1e-6
    vision_depth: int | None = None
    """Blocks that are used; None: 39 of the published width, else one less than an ``eva_vit_g.pth`` holds."""


@dataclass(frozen=True, slots=True)
class VisionWeights:
    """A ViT by the keys of ``Blip2VisionModel``, without its ``post_layernorm``; float32.

    Attributes:
        ignored: published keys that are not used.
    """

    sizes: VisionSizes
    state: State
    ignored: tuple[str, ...]


# ---- what the files are called ---------------------------------------------------------------------------------------

_VIT = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_VIT_BLOCK = {
    "norm1.weight": "layer_norm1.weight",
    "norm1.bias": "layer_norm1.bias",
    "attn.q_bias": "self_attn.qkv.bias",
    "attn.v_bias": "self_attn.qkv.bias",
    "attn.qkv.weight": "self_attn.qkv.weight",
    "attn.proj.weight": "self_attn.projection.weight",
    "attn.proj.bias": "self_attn.projection.bias",
    "norm2.weight": "layer_norm2.weight",
    "norm2.bias": "layer_norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
_IMAGE_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "self_attn.in_proj",
    "attn.proj": "self_attn.out_proj",
    "norm2": "norm2",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_QFORMER_LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
_CROSS = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
_IMAGE_LAYER = re.compile(r"blocks_image\.(\d+)\.")
_VIT_PARTS = re.compile(r"(cls_token|pos_embed)$|patch_embed\.|blocks\.(\d+)\.")
# Of these parts every key must be known. The Q-Former's text side (``intermediate``, ``output``) is not among them.
_QUANTIZER_PARTS = re.compile(
    r"(query_tokens|pos_embed_image)$|(ln_vision|quantize|encode_task_layer|decode_task_layer|blocks_image|image_down"
    r"|distill_image_proj|Qformer\.bert\.embeddings\.LayerNorm)\.|Qformer\.bert\.encoder\.layer\.\d+\."
    r"(attention|crossattention|intermediate_query|output_query)\."
)


def vision_keys(depth: int) -> dict[str, str]:
    """Keys of ``eva_vit_g.pth`` to those of ``Blip2VisionModel``; a q and a v bias share one of the latter."""
    blocks = {
        f"blocks.{n}.{theirs}": f"encoder.layers.{n}.{ours}"
        for n in range(depth)
        for theirs, ours in _VIT_BLOCK.items()
    }
    return _VIT | blocks


def encoder_keys(sizes: QuantizerSizes) -> dict[str, str]:
    """Keys of ``seed_quantizer.pt`` to those of ``Seed2Encoder``, which has the ViT's ``ln_vision`` too."""
    keys = {
        "query_tokens": "query_tokens",
        "quantize.embedding.weight": "codebook.weight",
        **_both("ln_vision", "vision.post_layernorm"),
        **_both("encode_task_layer.0", "encode_task_layer.0"),
        **_both("encode_task_layer.2", "encode_task_layer.2"),
        **_both("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm"),
    }
    for n in range(sizes.depth):
        theirs, ours = f"Qformer.bert.encoder.layer.{n}", f"qformer.encoder.layer.{n}"
        for attention in ("attention", "crossattention") if n % sizes.cross_every == 0 else ("attention",):
            for part in ("query", "key", "value"):
                keys |= _both(f"{theirs}.{attention}.self.{part}", f"{ours}.{attention}.attention.{part}")
            for part in ("output.dense", "output.LayerNorm"):
                keys |= _both(f"{theirs}.{attention}.{part}", f"{ours}.{attention}.{part}")
        for part in ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"):
            keys |= _both(f"{theirs}.{part}", f"{ours}.{part}")
    return keys


def decoder_keys(sizes: QuantizerSizes) -> dict[str, str]:
    """Keys of ``seed_quantizer.pt`` to those of ``Seed2Decoder``."""
    keys = {
        "quantize.embedding.weight": "codebook.weight",
        "pos_embed_image": "position_embedding",
        **{f"image_down.{n}.weight": f"image_down.{n}.weight" for n in (0, 2, 4)},
        **_both("decode_task_layer.0", "decode_task_layer.0"),
        **_both("decode_task_layer.2", "decode_task_layer.2"),
        **_both("distill_image_proj", "projection"),
    }
    for n in range(sizes.image_depth):
        for theirs, ours in _IMAGE_BLOCK.items():
            # ``in_proj`` is a bare parameter of the library's attention: in_proj_weight, not in_proj.weight.
            joint = "_" if ours.endswith("in_proj") else "."
            for kind in ("weight", "bias"):
                keys[f"blocks_image.{n}.{theirs}.{kind}"] = f"blocks.{n}.{ours}{joint}{kind}"
    return keys


def published_state(module: nn.Module, keys: Mapping[str, str], prefix: str = "") -> State:
    """The other way round: a module's weights under the published keys, for checkpoints with random weights."""
    own = module.state_dict()
    state = {theirs: own[prefix + ours] for theirs, ours in keys.items()}
    for key in list(state):
        if key.endswith((".q_bias", ".v_bias")):
            state[key] = state[key].chunk(3)[0 if key.endswith(".q_bias") else 2].clone()
    return state


# ---- seed_quantizer.pt -----------------------------------------------------------------------------------------------


def quantizer_sizes(state: State, *, where: str) -> QuantizerSizes:
    """Sizes of a ``seed_quantizer.pt``, each told by one tensor.

    Raises:
        TokenizerError: that tensor is missing.
    """

    def shape(key: str, ndim: int = 2) -> tuple[int, ...]:
        return _shape(state, key, ndim, where)

    _, queries, width = shape("query_tokens", 3)
    crossed = sorted({int(match[1]) for key in state if (match := _CROSS.match(key))})
    depth = _count(state, _QFORMER_LAYER)
    codebook_size, code_width = shape("quantize.embedding.weight")
    return QuantizerSizes(
        vision_width=shape("ln_vision.weight", 1)[0],
        queries=queries,
        width=width,
        depth=depth,
        cross_every=crossed[1] if len(crossed) > 1 else max(1, depth),
        mlp=shape("Qformer.bert.encoder.layer.0.intermediate_query.dense.weight")[0],
        codebook_size=codebook_size,
        code_width=code_width,
        image_depth=_count(state, _IMAGE_LAYER),
        image_mlp=shape("blocks_image.0.mlp.fc1.weight")[0],
        image_down=(shape("image_down.0.weight")[0], shape("image_down.2.weight")[0], shape("image_down.4.weight")[0]),
        embed_width=shape("distill_image_proj.weight")[0],
    )


def split_quantizer(
    state: State, encoder: nn.Module, decoder: nn.Module, sizes: QuantizerSizes, *, where: str
) -> tuple[State, State, tuple[str, ...]]:
    """The encoder's weights (but its ViT), the decoder's, and the published keys nothing uses.

    Raises:
        TokenizerError: a needed key is missing, misshaped, or not known; it is named as published.
    """
    tables = ((encoder, encoder_keys(sizes)), (decoder, decoder_keys(sizes)))
    expected: dict[str, tuple[int, ...]] = {}
    for module, keys in tables:
        own = module.state_dict()
        expected |= {theirs: tuple(own[ours].shape) for theirs, ours in keys.items()}
    _check_needed(expected, state, _QUANTIZER_PARTS, where)
    parts = [{ours: state[theirs].float() for theirs, ours in keys.items()} for _, keys in tables]
    return parts[0], parts[1], tuple(sorted(set(state) - set(expected)))


# ---- the ViT ---------------------------------------------------------------------------------------------------------


def read_vision(path: Path, *, unshaped: Unshaped) -> VisionWeights:
    """A ViT of either source: ``eva_vit_g.pth``, or a BLIP-2 folder or weight file with ``vision_model.*``.

    Raises:
        TokenizerError: a key is missing, misshaped or not known, or heads and depth are not what the config says.
    """
    if path.is_dir():
        return _from_hf(_read_hf_folder(path), path, unshaped, _hf_config(path))
    state = flat_state(read_state(path), path, nested_under=("model", "module", "state_dict"))
    if any(key.endswith("embeddings.patch_embedding.weight") for key in state):
        return _from_hf(state, path, unshaped, None)
    return _from_eva(state, path, unshaped)


def _from_eva(state: State, path: Path, unshaped: Unshaped) -> VisionWeights:
    where = str(path)
    blocks = _count(state, _BLOCK)
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, where)
    published = _PUBLISHED_DEPTH if width == _PUBLISHED_WIDTH else blocks - 1
    depth = unshaped.vision_depth or published
    mlp = _shape(state, "blocks.0.mlp.fc1.weight", 2, where)[0]
    image_size = patch * isqrt(_shape(state, "pos_embed", 3, where)[1] - 1)
    sizes = VisionSizes(width, depth, mlp, patch, image_size)
    keys = vision_keys(depth)
    shapes = _vision_shapes(sizes)
    expected = {
        theirs: (width,) if theirs.endswith(("q_bias", "v_bias")) else shapes[ours] for theirs, ours in keys.items()
    }
    needed = {key: tensor for key, tensor in state.items() if not _of_later_block(key, depth)}
    _check_needed(expected, needed, _VIT_PARTS, where)
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
    width, _, patch, _ = _shape(used, mark, 4, where)
    depth = _count(used, re.compile(r"encoder\.layers\.(\d+)\."))
    image_size = patch * isqrt(_shape(used, "embeddings.position_embedding", 3, where)[1] - 1)
    mlp = _shape(used, "encoder.layers.0.mlp.fc1.weight", 2, where)[0]
    if config is not None:
        depth = config.num_hidden_layers
        if config.num_attention_heads != unshaped.vision_heads:
            raise TokenizerError(
                f"{where}/config.json: expected {unshaped.vision_heads} heads in the ViT, found "
                f"{config.num_attention_heads}; options.config must name the sizes of another model"
            )
    wanted = unshaped.vision_depth or (_PUBLISHED_DEPTH if width == _PUBLISHED_WIDTH else depth)
    if depth != wanted:
        raise TokenizerError(f"{where}: expected a ViT of {wanted} layers, found {depth}; another layer's features")
    sizes = VisionSizes(width, depth, mlp, patch, image_size)
    check_keys(_vision_shapes(sizes), used, where=where)
    ignored = tuple(sorted(key for key in state if key.removeprefix(prefix) not in used or not key.startswith(prefix)))
    return VisionWeights(sizes, {key: tensor.float() for key, tensor in used.items()}, ignored)


def _read_hf_folder(folder: Path) -> State:
    """What the vision part needs of a folder's files, and nothing else: such a folder is often 15 GB."""
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / name).is_file():
            weight_map = cast(dict[str, str], json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"])
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
            with safe_open(folder / name, framework="pt") as file:
                state |= {key: file.get_tensor(key) for key in file.keys() if _is_vision(key)}  # noqa: SIM118
        else:
            state |= flat_state(read_state(folder / name), folder / name)
    return {key: tensor for key, tensor in state.items() if _is_vision(key)}


def _hf_config(folder: Path) -> Blip2VisionConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise TokenizerError(f"{folder}: expected a config.json beside the weights of a BLIP-2 model, found none")
    data = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    vision = cast(dict[str, Any], data.get("vision_config", data))
    # A config names only what differs from the class's defaults; other keys than these do not matter here.
    named = ("num_hidden_layers", "num_attention_heads")
    return Blip2VisionConfig(**{key: vision[key] for key in named if key in vision})


def _is_vision(key: str) -> bool:
    return "vision_model." in key or key.startswith(("embeddings.", "encoder.layers.", "post_layernorm."))


# ---- shared ----------------------------------------------------------------------------------------------------------


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def _vision_shapes(sizes: VisionSizes) -> dict[str, tuple[int, ...]]:
    """By the library's keys, its ``post_layernorm`` left out."""
    width, mlp = sizes.width, sizes.mlp
    block = {
        "layer_norm1.weight": (width,),
        "layer_norm1.bias": (width,),
        "self_attn.qkv.weight": (3 * width, width),
        "self_attn.qkv.bias": (3 * width,),
        "self_attn.projection.weight": (width, width),
        "self_attn.projection.bias": (width,),
        "layer_norm2.weight": (width,),
        "layer_norm2.bias": (width,),
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp),
        "mlp.fc2.bias": (width,),
    }
    positions = (sizes.image_size // sizes.patch) ** 2 + 1
    embeddings = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, positions, width),
        "embeddings.patch_embedding.weight": (width, 3, sizes.patch, sizes.patch),
        "embeddings.patch_embedding.bias": (width,),
    }
    return embeddings | {f"encoder.layers.{n}.{key}": shape for n in range(sizes.depth) for key, shape in block.items()}


def _check_needed(expected: Mapping[str, tuple[int, ...]], state: State, parts: re.Pattern[str], where: str) -> None:
    """Strict about the parts that are used: what is missing there, misshaped, or not known."""
    check_keys(
        expected, {key: tensor for key, tensor in state.items() if key in expected or parts.match(key)}, where=where
    )


def _of_later_block(key: str, depth: int) -> bool:
    match = _BLOCK.match(key)
    return match is not None and int(match[1]) >= depth


def _count(state: State, pattern: re.Pattern[str]) -> int:
    return 1 + max((int(match[1]) for key in state if (match := pattern.match(key))), default=-1)


def _shape(state: State, key: str, ndim: int, where: str) -> tuple[int, ...]:
    if key not in state:
        raise TokenizerError(f"{where}: expected a tensor {key}, found none among {len(state)}; is it the right file?")
    shape = tuple(state[key].shape)
    if len(shape) != ndim:
        raise TokenizerError(f"{where}: expected {key} with {ndim} axes, found the shape {shape}")
    return shape
