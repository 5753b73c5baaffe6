"""Published weight files: reading them, holding them to a module's keys, and their fingerprint.

A weight file is read with ``weights_only`` (a pickle may not run code) and memory-mapped where its format allows. Keys
are taken strictly: one that is missing, left over or of another shape is an error that names it, because a module that
keeps a random tensor answers without complaint, and a dataset made with it is noise.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from configs.load import Config
from shards.errors import ConfigError, TokenizerError

State = dict[str, torch.Tensor]

Precision = Literal["fp32", "tf32", "fp16"]
"""Of an encoder. There is no bf16: it changes 7 to 26 % of the codes (tokenizers sheet 1.5, 5.2).

``tf32`` is float32 with the matrix units' shorter mantissa, and the same as ``fp32`` where there are none.
"""

_SHOWN = 5
_BLOCK = 1 << 22


class CodecOptions(Config):
    """What every codec of published weights can be told; a codec adds its files."""

    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``. Not part of the fingerprint."""
    precision: Precision = "fp32"
    """Of the encoder; quantisation is always float32. Part of the fingerprint."""
    compile: bool = False
    """Compile the parts that pay (tokenizers sheet 6); worth its minute of start-up on a GPU only."""
    batch_items: int = Field(default=64, ge=1)
    """At most so many media in one forward pass."""


def choose_device(name: str) -> torch.device:
    """The device an option names.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: expected auto, cpu, cuda or cuda:N; {error}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r}: expected a GPU, found {torch.cuda.device_count()} on this machine; use auto or cpu"
        )
    return device


def require_file(path: Path | None, *, option: str, purpose: str) -> Path:
    """The file itself.

    Args:
        option: the key that names it, e.g. ``options.quantizer``.
        purpose: what it is and where people get it.

    Raises:
        ConfigError: none is named.
        TokenizerError: there is none at the path.
    """
    if path is None:
        raise ConfigError(f"{option}: expected the path of {purpose}, found nothing; see docs/published-weights.md")
    if not path.exists():
        raise TokenizerError(
            f"{option} = {path}: expected {purpose}, found nothing there; see docs/published-weights.md, and "
            "anygpt-doctor says what else is missing"
        )
    return path


def read_state(path: Path) -> Any:
    """What a weight file holds: a flat state dict, or whatever a trainer nested it in.

    Reads ``.safetensors``, and torch pickles under any other name.

    Raises:
        TokenizerError: not readable, or a pickle that wants to run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _load_pickle(path)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise TokenizerError(
            f"{path}: expected a weight file, found {_size(path)} bytes that cannot be read as one "
            f"({(str(error) or type(error).__name__).splitlines()[0][:200]}); was the download cut, or is it a pointer file?"
        ) from error


def flat_state(data: Any, path: Path, *, nested_under: tuple[str, ...] = ()) -> State:
    """The tensors by key, taken out from under a trainer's key if they are there.

    Args:
        data: what :func:`read_state` gave.
        nested_under: keys that trainers put the model under.

    Raises:
        TokenizerError: no state dict.
    """
    for key in nested_under:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = cast(Mapping[str, Any], data)[key]
            break
    if not isinstance(data, Mapping) or not data or not all(isinstance(one, torch.Tensor) for one in data.values()):
        found = sorted(map(str, data))[:_SHOWN] if isinstance(data, Mapping) else type(data).__name__
        raise TokenizerError(f"{path}: expected tensors by key, found {found}")
    return {str(key): tensor for key, tensor in cast(Mapping[str, torch.Tensor], data).items()}


def load_strictly(module: nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Load a state dict that must have exactly the module's keys and shapes; values are widened to the module's dtype.

    Args:
        where: the file, for messages.

    Raises:
        TokenizerError: naming what is missing, left over or misshaped.
    """
    own = module.state_dict()
    check_keys({key: tuple(tensor.shape) for key, tensor in own.items()}, state, where=where)
    module.load_state_dict(dict(state), strict=True, assign=any(tensor.is_meta for tensor in own.values()))


def check_keys(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Hold a state dict to the keys and shapes that are expected; see :func:`load_strictly`."""
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in sorted(expected.items())
        if key in state and tuple(state[key].shape) != shape
    ]
    faults = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{' ...' if len(keys) > _SHOWN else ''}"
        for what, keys in (("missing", missing), ("not known", extra), ("of another shape", misshaped))
        if keys
    ]
    if faults:
        raise TokenizerError(
            f"{where}: expected {len(expected)} tensors of the published layout, found {len(state)}; {'; '.join(faults)}. "
            "Is it the right file, and does its config belong to it?"
        )


def state_fingerprint(name: str, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over a codec's name, the choices that change a code, and its weights by key.

    The same weights under another layout or in another file have the same fingerprint if they are given by the same
    keys, so take it of the loaded module's own state.
    """
    digest = hashlib.sha256(json.dumps({"name": name, "facts": dict(facts)}, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"\0{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Files of before torch 1.6 cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
