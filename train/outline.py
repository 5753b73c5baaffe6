"""What a run is before its data and weights are there: the bill is asked for first.

A row's length comes from any packed dataset that is there, else from ``sequence_length``; the vocabulary's size from such
a dataset, else from the layout file ``vocabulary``, else from the folder a run starts from; the backbone's shape from that
folder, else from ``[model]`` as far as it is given, else it is LLaMA-2-7B's. Whatever stands in for something that is not
there is named, so that nobody takes a plan for a run that could start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.load import Config, load_config
from shards.errors import ConfigError, DatasetError
from shards.manifest import Manifest, read_manifest
from shards.reader import open_packed
from shards.storage import is_remote
from shards.vocabulary import lay_out
from train.config import SoundStormConfig, TrainConfig
from train.mix_config import PhasedMixtureConfig
from train.shape import LLAMA_2_7B, SHAPE_KEYS, Shape, check_expected_shape, padded, shape_of_folder, shape_of_model

_ROWS_LOOKED_AT = 64
"""Of each dataset, for the length of its documents."""


_PADDED_TO = 8
"""Documents of like length are computed together, padded to a multiple of this at least (:mod:`train.attention`)."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A run's arithmetic.

    Attributes:
        vocabulary: its name, for the reader.
        document_length: of the document that an id is in, on the mean; None when it is not known, or does not matter.
        missing: what is not there, and what was planned with instead.
    """

    config: TrainConfig
    shape: Shape | SoundStormConfig
    sequence_length: int
    vocabulary: str
    vocabulary_size: int
    document_length: float | None
    missing: tuple[str, ...]

    @property
    def tokens_per_step(self) -> int:
        """Slots of ids, padding included."""
        return self.config.batch_rows * self.sequence_length

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.config.steps * self.tokens_per_step


def outline_run(config: TrainConfig, *, where: str) -> Outline:
    """The arithmetic of a run, whether its data and weights are there or not.

    Raises:
        ConfigError: something is neither there nor said; or what is there is not what is said.
    """
    folders, missing = _folders(config)
    found = {name: read_manifest(folder) for name, folder in folders.items()}
    length = _length(config, found, where)
    name, size = _vocabulary(config, found, where)
    if config.objective == "soundstorm":
        return Outline(config, config.soundstorm, length, name, size, None, tuple(missing))
    shape, instead = _shape(config, size)
    shape = padded(shape, config.model.pad_vocabulary_to)
    return Outline(config, shape, length, name, size, _document_length(config, folders.values()), (*missing, *instead))


def _folders(config: TrainConfig) -> tuple[dict[str, Path], list[str]]:
    """Of the datasets that are there, and a line about the others."""
    mixture = load_config(config.mixture, PhasedMixtureConfig)
    every = {name: mixture.paths.get(name, config.data / name) for name in mixture.names}
    found = {name: folder for name, folder in every.items() if folder.is_dir()}
    absent = [name for name in every if name not in found]
    if not absent:
        return found, []
    which = "all datasets" if not found else ", ".join(absent)
    return found, [f"data: {which} of {config.mixture} ({config.data}); planned with the sizes that the config gives"]


def _length(config: TrainConfig, found: dict[str, Manifest], where: str) -> int:
    lengths = {int(manifest.extra["sequence_length"]) for manifest in found.values()}
    lengths |= {config.sequence_length} if config.sequence_length else set()
    if len(lengths) == 1:
        return lengths.pop()
    if lengths:
        raise ConfigError(
            f"{where}: key 'sequence_length': expected rows of one length, found {sorted(lengths)} in the config and the "
            "data; correct the key, or pack the data again"
        )
    raise ConfigError(
        f"{where}: key 'sequence_length': expected the length of a row, as there is no data, found none; add the key, or "
        f"pack the data into {config.data}"
    )


def _vocabulary(config: TrainConfig, found: dict[str, Manifest], where: str) -> tuple[str, int]:
    for manifest in found.values():
        if manifest.vocabulary is not None:
            return manifest.vocabulary.name, manifest.vocabulary.size
    if config.vocabulary is not None:
        layout = load_config(config.vocabulary, _Layout)
        if layout.text_size is not None:
            size = lay_out(layout.name, text_size=layout.text_size, markers=layout.markers, media=layout.media).size
            return layout.name, size
    folder = _folder_config(config.init.folder)
    if folder is not None:
        return str(config.init.folder), int(folder["vocab_size"])
    raise ConfigError(
        f"{where}: key 'vocabulary': expected a layout file with text_size, as there is no data yet, found "
        f"{config.vocabulary or 'none'}; add the key, or pack the data into {config.data}"
    )


class _Layout(Config):
    """What a vocabulary file (:mod:`pipeline.vocabularies`, which checks it) says about the number of ids."""

    name: str
    text_size: int | None = None
    markers: tuple[str, ...]
    media: tuple[dict[str, Any], ...]
    dtype: str | None = None


def _shape(config: TrainConfig, vocabulary_size: int) -> tuple[Shape, list[str]]:
    """The backbone's shape, and a line about a folder that is not there."""
    model, folder = config.model, config.init.folder
    if folder is None:
        return shape_of_model(model, vocabulary_size), []
    found = _folder_config(folder)
    if found is not None:
        check_expected_shape(model, found, folder / "config.json")
        return shape_of_folder(found, vocabulary_size), []
    if model.model_fields_set & set(SHAPE_KEYS):
        return shape_of_model(model, vocabulary_size), [f"init.from: {folder}; planned with the shape in [model]"]
    sizes = {name: getattr(LLAMA_2_7B, name) for name in Shape.__slots__ if name != "vocabulary_size"}
    return Shape(vocabulary_size, **sizes), [f"init.from: {folder}; planned with the shape of LLaMA-2-7B"]


def _folder_config(folder: Path | None) -> dict[str, Any] | None:
    path = folder / "config.json" if folder is not None else None
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _document_length(config: TrainConfig, folders: Iterable[Path]) -> float | None:
    """Of the document that an id is in, on the mean over the first rows of datasets on this machine."""
    if config.attention == "row":
        return None
    lengths: list[npt.NDArray[np.int64]] = []
    for folder in folders:
        if is_remote(folder):
            continue
        # A damaged file is told by the preflight and by whoever trains on it; a plan can do without.
        with suppress(DatasetError):
            dataset = open_packed(folder, verify="off")
            for row in range(min(dataset.num_rows, _ROWS_LOOKED_AT)):
                lengths.append(np.diff(dataset.document_starts(row), append=dataset.sequence_length).astype(np.int64))
    every = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    padded = -(-every // _PADDED_TO) * _PADDED_TO
    return float((padded**2).sum() / every.sum()) if every.size else None
