"""EnCodec (Défossez et al. 2022, arXiv:2210.13438) as transformers builds it, from every layout its weights come in.

* A Hugging Face folder: ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``, with the older names of weight
  norm (``weight_g``, ``weight_v``) or the newer ones.
* audiocraft's ``compression_state_dict.bin``: tensors under ``best_state``, sizes under ``xp.cfg``.
* A flat state dict of the ``encodec`` package, ``encodec_24khz-d7cc33bc.th``, which carries no config.

Padding is **reflect** in all of them, whatever ``xp.cfg`` says: AnyGPT read music with transformers' model, and audiocraft's
``constant`` changes 10 to 42 % of the codes of a wave (tokenizers sheet 10).

transformers computes paddings with float32 tensors, wrong beyond 2^24 samples (8 min 44 s at 32 kHz) and read back from
the device layer by layer. :func:`use_integer_padding` replaces that arithmetic; the codecs' own walk
(:mod:`pipeline.tokenizers.ragged`) has none of it.

Letters: B clips, C channels, T the longest length.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn
from torch.nn.utils import parametrize
from transformers import EncodecConfig, EncodecModel
from transformers.models.encodec.modeling_encodec import (
    EncodecConv1d,
    EncodecConvTranspose1d,
    EncodecLSTM,
    EncodecResnetBlock,
)

from pipeline.tokenizers.ragged import conv_ragged, conv_transpose_ragged, lstm_ragged, walk_ragged
from pipeline.tokenizers.sound_codec import SoundNetwork
from pipeline.tokenizers.weights import State, flat_state, load_strictly, read_state
from shards.errors import TokenizerError
from shards.modality import MediaRate

Sizes = Mapping[str, Any]
"""Fields of :class:`transformers.EncodecConfig`."""

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_CODE_FIELDS = (
    *("upsampling_ratios", "num_filters", "num_residual_layers", "kernel_size", "last_kernel_size", "compress"),
    *("residual_kernel_size", "dilation_growth_rate", "use_causal_conv", "pad_mode", "num_lstm_layers"),
    *("use_conv_shortcut", "hidden_size", "codebook_size"),
)
"""Fields that decide a code; the rest is about decoding or not read."""
_RENAMES = (
    (re.compile(r"^(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.(?:conv\.conv|convtr\.convtr)\."), ".conv."),
    (re.compile(r"^quantizer\.vq\.layers\."), "quantizer.layers."),
    (re.compile(r"\._codebook\."), ".codebook."),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)


@dataclass(frozen=True, slots=True)
class EncodecWeights:
    """A loaded model on the CPU in float32, weight norm not folded yet.

    Attributes:
        source: the file its tensors came from.
    """

    model: EncodecModel
    source: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a code besides the weights."""
        return {name: getattr(self.model.config, name) for name in _CODE_FIELDS}

    def state(self, levels: int) -> State:
        """The tensors that decide a code of the first ``levels`` levels."""
        codebooks = {f"quantizer.layers.{level}.codebook.embed" for level in range(levels)}
        tensors = self.model.state_dict()
        return {key: one for key, one in tensors.items() if key.startswith("encoder.") or key in codebooks}


def read_encodec(path: Path, *, published: Sizes) -> EncodecWeights:
    """Read a folder or a file of any of the three layouts.

    Args:
        published: sizes of a file that says none itself; widths are told by its shapes.

    Raises:
        TokenizerError: files that are missing, cut or of another layout; naming keys.
    """
    if path.is_dir():
        source = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
        if source is None or not (path / "config.json").is_file():
            raise TokenizerError(
                f"{path}: expected config.json and {' or '.join(_FOLDER_FILES)}, found "
                f"{', '.join(sorted(one.name for one in path.iterdir())[:8]) or 'an empty folder'}"
            )
        sizes = _folder_sizes(path / "config.json")
        state = flat_state(read_state(source), source)
        return _build(sizes, state, source)
    data = read_state(path)
    if isinstance(data, Mapping) and "best_state" in data:
        _refuse_empty_export(data, path)
        return _build(_audiocraft_sizes(data.get("xp.cfg"), path), flat_state(data["best_state"], path), path)
    state = flat_state(data, path)
    return _build({**published, **_told_by_shapes(state, path)}, state, path)


def check_rate(weights: EncodecWeights, rate: MediaRate) -> None:
    """Hold a model to a line of Table 1.

    Raises:
        TokenizerError: another sample rate, frame length, codebook size, fewer levels, or not mono.
    """
    config = weights.model.config
    hop = math.prod(config.upsampling_ratios)
    expected = (rate.sample_rate_hz, rate.samples_per_frame, rate.codebook_size, 1)
    found = (config.sampling_rate, hop, config.codebook_size, config.audio_channels)
    if found != expected or config.num_quantizers < rate.levels_at_rest:
        raise TokenizerError(
            f"{weights.source}: expected sampling_rate, samples a frame, codebook_size, channels = {expected} and at least "
            f"{rate.levels_at_rest} levels, found {found} and {config.num_quantizers}; it is another EnCodec than the one "
            "this codec is for"
        )
    if config.normalize or config.chunk_length_s is not None or config.norm_type != "weight_norm":
        raise TokenizerError(
            f"{weights.source}: expected an EnCodec without normalize and chunk_length_s and with weight_norm, found "
            f"{config.normalize}, {config.chunk_length_s}, {config.norm_type}: the 48 kHz model is of that kind, and its "
            "codes have no place in this vocabulary"
        )


def to_network(weights: EncodecWeights, rate: MediaRate, dtype: torch.dtype) -> SoundNetwork:
    """Fold the weight norms and take the model apart; the model is changed.

    Raises:
        TokenizerError: a codebook that training never filled.
    """
    fold_weight_norm(weights.model)
    use_integer_padding(weights.model)
    encoder = list(cast(Iterable[nn.Module], weights.model.encoder.to(dtype).layers))
    at = next((number for number, layer in enumerate(encoder) if isinstance(layer, EncodecLSTM)), len(encoder))
    return SoundNetwork(
        front=encoder[:at],
        lstm=encoder[at : at + 1],
        back=encoder[at + 1 :],
        decoder=list(cast(Iterable[nn.Module], weights.model.decoder.layers)),
        codebooks=_codebooks(weights, rate.levels_at_rest),
        walk=walk,
    )


def walk(
    layers: Iterable[nn.Module], x_BCT: torch.Tensor, lengths_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`pipeline.tokenizers.ragged.walk_ragged` over transformers' layers."""
    return walk_ragged(layers, x_BCT, lengths_B, _step)


def fold_weight_norm(model: nn.Module) -> None:
    """Multiply weight norms into the weights, in place; they are recomputed on every call otherwise."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def use_integer_padding(model: nn.Module) -> None:
    """Replace the padding arithmetic of transformers' layers, instance by instance, by whole numbers.

    Same outputs; right beyond 2^24 samples, and nothing is read back from a GPU.
    """
    for layer in model.modules():
        if not isinstance(layer, EncodecConv1d):
            continue
        conv = cast(nn.Conv1d, layer.conv)
        stride, kernel_size = conv.stride[0], (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        for name, value in (("stride", stride), ("kernel_size", kernel_size), ("padding_total", kernel_size - stride)):
            delattr(layer, name)  # a buffer
            setattr(layer, name, value)
        extra = functools.partial(_extra_padding, stride=stride)
        cast(Any, layer)._get_extra_padding_for_conv1d = extra


def rename_keys(state: Mapping[str, torch.Tensor]) -> State:
    """Keys of any published layout to transformers' own."""
    renamed: State = {}
    for key, tensor in state.items():
        for pattern, replacement in _RENAMES:
            key = pattern.sub(replacement, key)
        renamed[key] = tensor
    return renamed


def _extra_padding(hidden_states: torch.Tensor, *, stride: int) -> int:
    """Samples that are missing to a whole last stride."""
    return -hidden_states.shape[-1] % stride


def _step(
    layer: nn.Module, x: torch.Tensor, lengths: torch.Tensor, elu: nn.ELU | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(layer, EncodecConv1d):
        conv = cast(nn.Conv1d, layer.conv)
        return conv_ragged(
            x,
            lengths,
            conv,
            kernel_size=conv.kernel_size[0],
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            pad_mode=layer.pad_mode,
            causal=layer.causal,
            elu=elu,
        )
    if isinstance(layer, EncodecConvTranspose1d):
        transpose = cast(nn.ConvTranspose1d, layer.conv)
        return conv_transpose_ragged(
            x,
            lengths,
            transpose,
            kernel_size=transpose.kernel_size[0],
            stride=transpose.stride[0],
            causal=layer.causal,
            trim_right_ratio=layer.trim_right_ratio,
            elu=elu,
        )
    x = x if elu is None else elu(x)
    if isinstance(layer, EncodecResnetBlock):
        # A block neither stretches nor shortens; its branches see the same clips.
        inner, _ = walk(cast(Iterable[nn.Module], layer.block), x, lengths)
        return inner.add_(walk([layer.shortcut], x, lengths)[0]), lengths
    if isinstance(layer, EncodecLSTM):
        return lstm_ragged(x, lengths, layer.lstm), lengths
    return layer(x), lengths


def _build(sizes: Sizes, state: Mapping[str, torch.Tensor], source: Path) -> EncodecWeights:
    try:
        config = EncodecConfig(**sizes)
        with torch.device("meta"):
            model = EncodecModel(config)
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{source}: expected sizes of an EnCodec, found {error}") from error
    load_strictly(model, rename_keys(state), where=str(source))
    return EncodecWeights(model.eval().float().requires_grad_(False), source)


def _folder_sizes(path: Path) -> dict[str, Any]:
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(sizes, dict) or sizes.get("model_type") != "encodec":
        found = sizes.get("model_type") if isinstance(sizes, dict) else type(sizes).__name__
        raise TokenizerError(f"{path}: expected model_type 'encodec', found {found!r}; another model's folder?")
    return {key: value for key, value in sizes.items() if key not in ("architectures", "torch_dtype", "dtype")}


def _audiocraft_sizes(text: Any, path: Path) -> dict[str, Any]:
    """``xp.cfg`` in transformers' words; its pad_mode is not taken over (see the module's docstring)."""
    try:
        cfg = yaml.safe_load(text)
        seanet, rvq, sample_rate = cfg["seanet"], cfg["rvq"], int(cfg["sample_rate"])
        frame_rate = -(-sample_rate // math.prod(seanet["ratios"]))
        return {
            "sampling_rate": sample_rate,
            "audio_channels": int(cfg["channels"]),
            "normalize": bool(cfg["encodec"].get("renormalize", False)),
            "use_causal_conv": bool(cfg["encodec"]["causal"]),
            "hidden_size": seanet["dimension"],
            "codebook_dim": seanet["dimension"],
            "num_filters": seanet["n_filters"],
            "num_residual_layers": seanet["n_residual_layers"],
            "upsampling_ratios": list(seanet["ratios"]),
            "norm_type": seanet["norm"],
            "kernel_size": seanet["kernel_size"],
            "last_kernel_size": seanet["last_kernel_size"],
            "residual_kernel_size": seanet["residual_kernel_size"],
            "dilation_growth_rate": seanet["dilation_base"],
            "use_conv_shortcut": not seanet["true_skip"],
            "compress": seanet["compress"],
            "num_lstm_layers": seanet["lstm"],
            "pad_mode": "reflect",
            "codebook_size": rvq["bins"],
            # kbit/s, which transformers takes the number of levels from.
            "target_bandwidths": [rvq["n_q"] * frame_rate * math.ceil(math.log2(rvq["bins"])) / 1000],
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokenizerError(
            f"{path}: expected audiocraft's config under 'xp.cfg', found none that can be read ({error!r}); "
            "export the model again, or take the Hugging Face folder"
        ) from error


def _refuse_empty_export(data: Mapping[str, Any], path: Path) -> None:
    """Audiocraft may export the name of a pretrained model in place of weights."""
    best = data["best_state"]
    if "pretrained" in data or not isinstance(best, Mapping) or "pretrained" in best:
        raise TokenizerError(
            f"{path}: expected weights under 'best_state', found the name of a pretrained model; take the file or folder "
            "of that model instead"
        )


def _told_by_shapes(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Widths and number of levels of a state dict without a config."""
    renamed = rename_keys(state)
    first, codebook = "encoder.layers.0.conv.bias", "quantizer.layers.0.codebook.embed"
    if first not in renamed or codebook not in renamed:
        raise TokenizerError(
            f"{path}: expected a state dict of EnCodec, found {len(state)} tensors without {first} and {codebook}"
        )
    width = int(renamed[codebook].shape[-1])
    return {"num_filters": int(renamed[first].shape[0]), "hidden_size": width, "codebook_dim": width}


def _codebooks(weights: EncodecWeights, levels: int) -> torch.Tensor:
    """(levels, K, D) float32."""
    books = [cast(Any, layer).codebook.embed for layer in list(weights.model.quantizer.layers)[:levels]]
    for level, embed in enumerate(books, start=1):
        if not bool(embed.any()) or not bool(embed.isfinite().all()):
            raise TokenizerError(
                f"{weights.source}: expected trained codebooks, found level {level} with {int(embed.count_nonzero())} of "
                f"{embed.numel()} values that are not zero; is it a checkpoint from before training?"
            )
    return torch.stack(books)
