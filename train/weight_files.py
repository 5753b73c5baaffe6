"""Weights as folders hold them, read one tensor at a time and written in pieces of a bounded size.

Reads: ``model.safetensors`` or ``pytorch_model.bin``, or shards of either with their index, as Hugging Face folders have
them (LLaMA-2 publishes safetensors, AnyGPT ``pytorch_model-0000k-of-0000n.bin``).
Writes: safetensors, above :data:`MAX_SHARD_BYTES` in shards with an index.

A 7B is 27 GB in float32. Nothing here holds more than the tensors of one shard, and files are mapped, not read whole:
a process that loads 13.5 GB of bfloat16 needs that and one tensor.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shards.errors import CheckpointError

MAX_SHARD_BYTES = 5_000_000_000
_STEMS = (("model", "safetensors"), ("pytorch_model", "bin"))


class WeightFiles(Mapping[str, torch.Tensor]):
    """Tensor by name, from the files of a folder; each is read when it is asked for, in the dtype it is stored in."""

    def __init__(self, folder: Path) -> None:
        """Find the files and the names in them.

        Raises:
            CheckpointError: no weights there, a shard of the index is missing, or a file does not open.
        """
        self.folder = folder
        self._open: tuple[Path, Any] | None = None
        self._files = self._find()
        self._places = {name: place for place, name in enumerate(self._files)}

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._files[name]
        if self._open is None or self._open[0] != path:
            self._open = (path, _open(path))
        opened = self._open[1]
        return opened[name] if isinstance(opened, dict) else opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Names, file after file, so that each file is opened once."""
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def place(self, name: str) -> int:
        """Where a name stands in the order of the files; behind all others if it is not there."""
        return self._places.get(name, len(self._places))

    def _find(self) -> dict[str, Path]:
        for stem, suffix in _STEMS:
            index = self.folder / f"{stem}.{suffix}.index.json"
            if index.is_file():
                return self._from_index(index)
            single = self.folder / f"{stem}.{suffix}"
            if single.is_file():
                self._open = (single, opened := _open(single))
                return dict.fromkeys(opened.keys(), single)
        names = [f"{stem}.{suffix}" for stem, suffix in _STEMS]
        raise CheckpointError(
            f"{self.folder}: expected weights ({' or '.join(names)}, or shards with an index), found none; "
            "give the folder of a model that was downloaded whole"
        )

    def _from_index(self, index: Path) -> dict[str, Path]:
        try:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{index}: expected a weight_map, found {error!r}; copy the file again") from error
        if missing := sorted(name for name in set(places.values()) if not (self.folder / name).is_file()):
            raise CheckpointError(
                f"{index}: expected {len(set(places.values()))} shards, found {missing[0]} missing "
                f"({len(missing)} in all); copy the folder again"
            )
        return {name: self.folder / file for name, file in sorted(places.items(), key=lambda item: item[::-1])}


def _open(path: Path) -> Any:
    """Something with tensors by name that stay on disk until they are used."""
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, framework="pt")
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            # Files from before torch 1.6 are no archives and cannot be mapped; one shard of them is read whole.
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path}: expected weights, found a file that does not open: {error}") from error


def write_weights(
    tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, *, max_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Write tensors in the order they come; above ``max_bytes`` in several files, with transformers' index.

    Holds one file's tensors at a time; a tensor larger than ``max_bytes`` gets a file of its own.

    Returns:
        The weight files written.
    """
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total = 0

    def flush() -> None:
        save_file(pending, folder / _part_name(len(shards)), metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    return _name_shards(shards, folder, total)


def _name_shards(shards: list[list[str]], folder: Path, total: int) -> list[Path]:
    """How many there are is known at the end only, and is part of every name."""
    single = len(shards) == 1
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    paths = [folder / name for name in (["model.safetensors"] if single else names)]
    for number, path in enumerate(paths):
        (folder / _part_name(number)).rename(path)
    if not single:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {tensor: path.name for names, path in zip(shards, paths, strict=True) for tensor in names},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return paths


def _part_name(number: int) -> str:
    return f"part-{number:05d}.safetensors"
