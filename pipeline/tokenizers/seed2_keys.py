"""SEED-2's published weight files: their sizes, told by their own tensors, and their keys by our modules' names.

Key maps: tokenizers sheet 1.3, proven there on random weights. Two files make the model: ``seed_quantizer.pt``, which
holds everything but the ViT (beside keys that nothing uses), and a ViT: LAVIS's ``eva_vit_g.pth``, of whose blocks the
last is not used (the feature is the penultimate layer's), or the vision part of a Hugging Face BLIP-2 model, whose
depth leaves it out already. Needed keys are taken strictly, under their published names, so that an error names what a
user finds in the file. What belongs to a part we use and is not known is an error as well; the rest is listed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pipeline.tokenizers.weights import State, check_keys
from shards.errors import TokenizerError

PUBLISHED_WIDTH, PUBLISHED_DEPTH = 1408, 39


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """Of a ViT; the defaults are the published EVA-CLIP ViT-g/14 (tokenizers sheet 1.2)."""

    width: int = PUBLISHED_WIDTH
    depth: int = PUBLISHED_DEPTH
    mlp: int = 6144
    patch: int = 14
    image_size: int = 224


@dataclass(frozen=True, slots=True)
class QuantizerSizes:
    """Of ``seed_quantizer.pt``; the defaults are the published file's."""

    vision_width: int = PUBLISHED_WIDTH
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
VIT_BLOCK_NUMBER = re.compile(r"blocks\.(\d+)\.")
_QFORMER_LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
_CROSS = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
_IMAGE_LAYER = re.compile(r"blocks_image\.(\d+)\.")
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
    """Sizes of a ``seed_quantizer.pt``.

    Raises:
        TokenizerError: a tensor that tells one is missing.
    """

    def told(*tellers: tuple[str, int]) -> int:
        return told_size(state, *tellers, where=where)

    depth = count_numbered(state, _QFORMER_LAYER)
    crossed = sorted({int(match[1]) for key in state if (match := _CROSS.match(key))})
    layer, block = "Qformer.bert.encoder.layer.0", "blocks_image.0"
    inner, outer = f"{layer}.intermediate_query.dense", f"{layer}.output_query.dense"
    return QuantizerSizes(
        vision_width=told(
            ("ln_vision.weight", 0), ("ln_vision.bias", 0), (f"{layer}.crossattention.self.key.weight", 1)
        ),
        queries=told(("query_tokens", 1), ("pos_embed_image", 1)),
        width=told(("query_tokens", 2), ("pos_embed_image", 2), ("encode_task_layer.0.bias", 0)),
        depth=depth,
        cross_every=crossed[1] if len(crossed) > 1 else max(1, depth),
        mlp=told((f"{inner}.weight", 0), (f"{inner}.bias", 0), (f"{outer}.weight", 1)),
        codebook_size=told(("quantize.embedding.weight", 0)),
        code_width=told(
            ("quantize.embedding.weight", 1), ("encode_task_layer.2.bias", 0), ("decode_task_layer.0.bias", 0)
        ),
        image_depth=count_numbered(state, _IMAGE_LAYER),
        image_mlp=told((f"{block}.mlp.fc1.weight", 0), (f"{block}.mlp.fc1.bias", 0), (f"{block}.mlp.fc2.weight", 1)),
        image_down=(
            told(("image_down.0.weight", 0), ("image_down.2.weight", 1)),
            told(("image_down.2.weight", 0), ("image_down.4.weight", 1)),
            told(("image_down.4.weight", 0)),
        ),
        embed_width=told(("distill_image_proj.weight", 0), ("distill_image_proj.bias", 0)),
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
    check_needed(expected, state, _QUANTIZER_PARTS, where)
    parts = [{ours: state[theirs].float() for theirs, ours in keys.items()} for _, keys in tables]
    return parts[0], parts[1], tuple(sorted(set(state) - set(expected)))


# ---- shared ----------------------------------------------------------------------------------------------------------


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def vision_shapes(sizes: VisionSizes) -> dict[str, tuple[int, ...]]:
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


def check_needed(expected: Mapping[str, tuple[int, ...]], state: State, parts: re.Pattern[str], where: str) -> None:
    """Strict about the parts that are used: what is missing there, misshaped, or not known."""
    check_keys(
        expected, {key: tensor for key, tensor in state.items() if key in expected or parts.match(key)}, where=where
    )


def count_numbered(state: State, pattern: re.Pattern[str]) -> int:
    """One more than the largest number the pattern's group finds: a layer missing in between is found by its keys."""
    return 1 + max((int(match[1]) for key in state if (match := pattern.match(key))), default=-1)


def told_size(state: State, *tellers: tuple[str, int], where: str) -> int:
    """The size that most of some tensors' axes have, so that a single misshaped one is found out and not believed.

    Raises:
        TokenizerError: a tensor is missing, or has fewer axes.
    """
    sizes: list[int] = []
    for key, axis in tellers:
        if key not in state:
            raise TokenizerError(
                f"{where}: expected a tensor {key}, found none among {len(state)}; is it the right file?"
            )
        shape = tuple(state[key].shape)
        if len(shape) <= axis:
            raise TokenizerError(f"{where}: expected {key} with more than {axis} axes, found the shape {shape}")
        sizes.append(shape[axis])
    return Counter(sizes).most_common(1)[0][0]
