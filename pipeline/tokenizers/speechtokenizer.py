"""SpeechTokenizer (Zhang et al. 2023, arXiv:2308.16692): speech at 50 frames a second, 8 levels of 1,024 codes.

Level 1 is what the language model reads; all 8 are kept at rest. The network is the ``speechtokenizer`` package's. It takes
``config.json`` and a checkpoint as published: flat (``SpeechTokenizer.pt``, AnyGPT's ``ckpt.dev``) or nested by the trainer
under ``generator``, with ELU or with Snake (AnyGPT's own). What the package does not do is done here:

* any number of clips of any lengths in batches, each with the codes it has alone (``sound_codec``, ``seanet``);
* weight norm folded once, half precision for the encoder if asked for, never for the codebooks;
* a checkpoint whose codebooks were never filled is refused: the package would give zeros for every sound.

The package's ``encode(st=1)`` quantises the sound, not what level 1 leaves over, and is never used.

Letters: Q levels, K codes of a level, D latent width.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from speechtokenizer import SpeechTokenizer
from speechtokenizer.modules.seanet import Snake1d
from torch import nn

from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.precision import encoder_dtype
from pipeline.tokenizers.seanet import fold_weight_norm, split_at_lstm, walk
from pipeline.tokenizers.sound_codec import SoundCodec, SoundCodecOptions, SoundNetwork
from pipeline.tokenizers.weights import (
    CodecOptions,
    Precision,
    flat_state,
    load_strictly,
    read_state,
    require_file,
    state_fingerprint,
)
from shards.errors import TokenizerError
from shards.modality import Modality

MODALITY = Modality.SPEECH
CODE_VERSION = 1
_NAME = "speechtokenizer"
_RATE = MODALITY.rate
_NESTED_UNDER = ("generator",)
_BOTH_WAYS = "encode and decode"
_PUBLISHED_AS = "ckpt.dev of fnlp/AnyGPT-speech-modules (or SpeechTokenizer.pt of fnlp/SpeechTokenizer)"


class Options(SoundCodecOptions):
    """Files and batches of SpeechTokenizer."""

    config: Path
    """``config.json`` beside the checkpoint."""
    checkpoint: Path
    """``SpeechTokenizer.pt``, ``ckpt.dev``, or a trainer's ``SpeechTokenizerTrainer_*``."""


class NetworkConfig(BaseModel):
    """The fields of a published ``config.json`` that the network is built from; its training fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_filters: int = Field(ge=1)
    strides: list[int] = Field(min_length=1)
    dimension: int = Field(ge=1)
    semantic_dimension: int = Field(ge=1)
    bidirectional: bool
    dilation_base: int = Field(ge=1)
    residual_kernel_size: int = Field(ge=1)
    n_residual_layers: int = Field(ge=0)
    lstm_layers: int = Field(ge=0)
    activation: Literal["ELU", "Snake"]
    codebook_size: int
    n_q: int
    sample_rate: int


def weight_files(options: CodecOptions) -> list[WeightFile]:
    """``config.json`` and the checkpoint."""
    assert isinstance(options, Options)
    return [
        WeightFile("config", options.config, _BOTH_WAYS, "config.json of fnlp/AnyGPT-speech-modules"),
        WeightFile("checkpoint", options.checkpoint, _BOTH_WAYS, _PUBLISHED_AS),
    ]


def load(options: CodecOptions) -> SoundCodec:
    """The codec, from the files that the options name.

    Raises:
        ConfigError: no such device.
        TokenizerError: a file that is missing, cut or of another layout, a network that breaks Table 1, or codebooks that
            were never filled.
    """
    assert isinstance(options, Options)
    model, network = load_model(options.config, options.checkpoint)
    facts = {"code_version": CODE_VERSION, "precision": options.precision, "network": network.model_dump()}
    state = {key: tensor for key, tensor in model.state_dict().items() if _decides_codes(key)}
    fingerprint = state_fingerprint(_NAME, facts, state)
    return SoundCodec(_NAME, MODALITY, to_network(model, options.precision), options, fingerprint=fingerprint)


def load_detokenizer(options: CodecOptions) -> SoundCodec:
    """The same object as :func:`load`: a codec goes both ways."""
    return load(options)


def load_model(config: Path, checkpoint: Path) -> tuple[nn.Module, NetworkConfig]:
    """The package's network with the weights of a checkpoint, on the CPU, in float32.

    Raises:
        TokenizerError: see :func:`load`.
    """
    network = read_network_config(require_file(config, option="options.config", purpose=f"config.json of {_NAME}"))
    path = require_file(checkpoint, option="options.checkpoint", purpose=_PUBLISHED_AS)
    state = flat_state(read_state(path), path, nested_under=_NESTED_UNDER)
    model = empty_model(network)
    load_strictly(model, state, where=str(path))
    _check_codebooks(model, path)
    return model.eval().float().requires_grad_(False), network


def empty_model(network: NetworkConfig) -> nn.Module:
    """The package's network without values (on ``meta``)."""
    with torch.device("meta"), warnings.catch_warnings():
        # The package's weight norm is of the older kind, as are the published keys.
        warnings.simplefilter("ignore", FutureWarning)
        return SpeechTokenizer(network.model_dump())


def read_network_config(path: Path) -> NetworkConfig:
    """Read a published ``config.json``.

    Raises:
        TokenizerError: no JSON, a field that is missing or of another kind, or codes that break Table 1.
    """
    try:
        network = NetworkConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise TokenizerError(f"{path}: expected the config.json of a SpeechTokenizer, found {faults}") from error
    expected = (_RATE.sample_rate_hz, _RATE.samples_per_frame, _RATE.levels_at_rest, _RATE.codebook_size)
    found = (network.sample_rate, math.prod(network.strides), network.n_q, network.codebook_size)
    if found != expected:
        raise TokenizerError(
            f"{path}: expected sample_rate, product of strides, n_q, codebook_size = {expected}, the speech of the paper's "
            f"Table 1, found {found}; choose the checkpoint that AnyGPT uses"
        )
    return network


def to_network(model: nn.Module, precision: Precision) -> SoundNetwork:
    """Fold the weight norms and take a model of :func:`load_model` apart; the model is changed."""
    encoder, decoder = (fold_weight_norm(getattr(model, name)) for name in ("encoder", "decoder"))
    front, lstm, back = split_at_lstm(list(cast(Any, _in_dtype(encoder, encoder_dtype(precision))).model))
    return SoundNetwork(front, lstm, back, list(cast(Any, decoder).model), _codebooks(model), walk)


def _decides_codes(key: str) -> bool:
    return key.startswith("encoder.") or key.endswith("._codebook.embed")


def _codebook_states(model: nn.Module) -> list[nn.Module]:
    return [layer._codebook for layer in cast(Any, model).quantizer.vq.layers]


def _codebooks(model: nn.Module) -> torch.Tensor:
    """(Q, K, D) float32."""
    return torch.stack([cast(torch.Tensor, one.embed) for one in _codebook_states(model)])


def _check_codebooks(model: nn.Module, path: Path) -> None:
    """Refuse codebooks that training never filled: the package would answer with zeros, or fit them on what it is given."""
    for level, codebook in enumerate(_codebook_states(model), start=1):
        inited, embed = cast(torch.Tensor, codebook.inited), cast(torch.Tensor, codebook.embed)
        if not bool((inited == 1).all()) or not bool(embed.any()) or not bool(embed.isfinite().all()):
            raise TokenizerError(
                f"{path}: expected trained codebooks, found level {level} with inited = {inited.flatten().tolist()} and "
                f"{int(embed.count_nonzero())} of {embed.numel()} values that are not zero; is it a checkpoint from before "
                "training?"
            )


def _in_dtype(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All but the factors of Snake, whose reciprocals half precision cannot hold."""
    for layer in encoder.modules():
        if not isinstance(layer, Snake1d):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return encoder
