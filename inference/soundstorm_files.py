"""A published SoundStorm checkpoint: found, held to its sizes and its keys, loaded.

Reads: ``speechtokenizer_soundstorm_mls.pt`` (AnyGPT's layout), the standalone repository's files (its own layout; a
trainer's nest the weights under ``model``), or an export of ours, each as a torch pickle or ``.safetensors``.

Sizes come from the shapes, which tell all but how the attention is cut into heads. That, and the rotary base, come from a
JSON beside the checkpoint (``config.json``) or named; without one, heads have 128 dimensions as published. What the JSON
says and the shapes contradict is an error: two files that do not belong together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from configs.load import validate
from pipeline.tokenizers.weights import State, check_keys, flat_state, read_state, require_file
from shards.errors import ConfigError, TokenizerError
from train.soundstorm import SoundStorm, SoundStormConfig
from train.soundstorm_keys import Layout, Shape, config_from_shapes, from_published, layout_of, published_keys

PUBLISHED_AS = "speechtokenizer_soundstorm_mls.pt of fnlp/AnyGPT-speech-modules"
CONFIG_NAME = "config.json"
_NESTED_UNDER = ("model",)
_OTHER_NAMES = {"dim_head": "head_dim", "num_semantic_token_ids": "num_semantic"}
_NOT_IN_SHAPES = frozenset({"rotary_theta"})


def load_network(checkpoint: Path, config: Path | None = None) -> SoundStorm:
    """The network with the weights of a published file, on the CPU, in float32, for sampling.

    Args:
        config: JSON of sizes; None: ``config.json`` beside the checkpoint, if there is one.

    Raises:
        TokenizerError: a file that is missing, cut or of another layout, or sizes that contradict it; names the key.
    """
    path = require_file(checkpoint, option="soundstorm", purpose=PUBLISHED_AS)
    state = flat_state(read_state(path), path, nested_under=_NESTED_UNDER)
    layout = layout_of(state)
    sizes = network_config(state, layout, path, config)
    expected = {key: entry.published_shape for key, entry in published_keys(sizes, layout).items()}
    check_keys(expected, state, where=str(path))
    with torch.device("meta"):
        network = SoundStorm(sizes)
    network.load_state_dict(from_published(state, sizes, layout), strict=True, assign=True)
    return network.float().eval().requires_grad_(False)


def network_config(state: State, layout: Layout, path: Path, config: Path | None = None) -> SoundStormConfig:
    """The sizes of a checkpoint: those its shapes tell, and what a JSON says of the rest.

    Raises:
        TokenizerError: see :func:`load_network`.
    """
    source = config if config is not None else path.with_name(CONFIG_NAME)
    said = read_sizes(source) if config is not None or source.is_file() else {}
    shapes: dict[str, Shape] = {key: tuple(tensor.shape) for key, tensor in state.items()}
    try:
        told = config_from_shapes(shapes, layout, said)
    except KeyError as error:
        expected = published_keys(_config(said, source), layout)
        check_keys({key: entry.published_shape for key, entry in expected.items()}, state, where=str(path))
        raise TokenizerError(
            f"{path}: expected a tensor {error}, found none; is it a SoundStorm checkpoint?"
        ) from error
    except ValueError as error:
        raise TokenizerError(
            f"{path}: {error}; give the file's own sizes ('heads' and 'dim_head') in a {CONFIG_NAME} beside it, or name one"
        ) from error
    wrong = [
        f"{_shown(key)} = {said[key]}, the tensors have {told[key]}"
        for key in sorted(said)
        if key not in _NOT_IN_SHAPES and said[key] != told[key]
    ]
    if wrong:
        raise TokenizerError(f"{source}: expected the sizes of {path}, found {'; '.join(wrong)}; name the right config")
    return _config(told | {key: said[key] for key in _NOT_IN_SHAPES if key in said}, source)


def read_sizes(path: Path) -> dict[str, Any]:
    """The sizes that a JSON gives, under the names of ``SoundStormConfig``; whatever else it says is not ours.

    Raises:
        TokenizerError: missing, no JSON object, or a mask that is not the code after the last.
    """
    try:
        data: Any = json.loads(require_file(path, option="config", purpose="sizes of SoundStorm").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise TokenizerError(f"{path}: expected a JSON object of sizes, found none: {error}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: expected a JSON object of sizes, found a {type(data).__name__}")
    table = cast(dict[str, Any], data)
    known = SoundStormConfig.model_fields.keys() - {"initializer_range"}
    sizes = {name: value for key, value in table.items() if (name := _OTHER_NAMES.get(key, key)) in known}
    mask_id, last = table.get("mask_id"), sizes.get("codebook_size", SoundStormConfig().codebook_size)
    if mask_id not in (None, last):
        raise TokenizerError(f"{path}: expected 'mask_id' = {last}, the code after the last, found {mask_id!r}")
    valid = _config(sizes, path)
    return {name: getattr(valid, name) for name in sizes}


def _shown(name: str) -> str:
    """A size under every name that a JSON may give it."""
    return " or ".join(repr(one) for one in (*(other for other, own in _OTHER_NAMES.items() if own == name), name))


def _config(sizes: dict[str, Any], source: Path) -> SoundStormConfig:
    try:
        return validate(sizes, SoundStormConfig, where=str(source))
    except ConfigError as error:
        raise TokenizerError(f"{error}; is it the config of a SoundStorm?") from error
