"""Packed datasets of a toy language, and runs over them that take a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import Manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, Placement, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out
from train.config import TrainConfig
from train.plan import Plan, make_plan

MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 32, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 8, "levels": 4},
]
LENGTH = 64
ROWS = 24

Write = Callable[[Path, str, Vocabulary], Path]


def toy_vocabulary(name: str = "toy", text_size: int = 40) -> Vocabulary:
    return lay_out(name, text_size=text_size, markers=["[Human]", "<eos>"], media=MEDIA, text_fingerprint="t")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return toy_vocabulary()


@pytest.fixture(scope="session")
def write_dataset() -> Write:
    """Write ``root/<modality>``: documents ``<s> word word media </s>`` whose media follow from the words."""
    return write_toy_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """A folder with the packed datasets image, speech and music, and the mixture file ``mixture.toml``."""
    root = tmp_path_factory.mktemp("data")
    for modality in ("image", "speech", "music"):
        write_toy_dataset(root, modality, vocabulary)
    (root / "mixture.toml").write_text("[shares]\nimage = 0.5\nspeech = 0.25\nmusic = 0.25\n", encoding="utf-8")
    return root


@pytest.fixture
def make_config(data: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config of a small run; tables are given as dicts."""

    def make(**changes: object) -> TrainConfig:
        plain = {
            "output": tmp_path / "run",
            "data": data,
            "mixture": data / "mixture.toml",
            "steps": 6,
            "batch_rows": 4,
            "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48},
            "optimizer": {"lr": 1e-2, "weight_decay": 0.1},
            "engine": {"kind": "torch", "dtype": "fp32", "head_chunk": 50},
            "checkpoint": {"every": 3},
            "log": {"every": 1, "tensorboard": False},
        }
        if changes.get("init") and "model" not in changes:
            del plain["model"]  # the folder's
        return TrainConfig.model_validate(plain | changes)

    return make


@pytest.fixture
def plan(make_config: Callable[..., TrainConfig]) -> Plan:
    return make_plan(make_config(), where="test.toml")


def write_toy_dataset(root: Path, modality: str, vocabulary: Vocabulary) -> Path:
    rng = np.random.default_rng(len(modality))
    rows = [_row(rng, modality, vocabulary) for _ in range(ROWS)]
    folder = root / modality
    entry = write_packed_shard(folder / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=LENGTH)
    tokens = Counter[str]()
    for placement in (placement for row in rows for placement in row.placements):
        tokens[placement.direction] += placement.stop - placement.start
    extra = {"sequence_length": LENGTH, "tokens_by_direction": dict(tokens)}
    fingerprint = f"{modality:0<16}"
    write_manifest(
        folder, Manifest("packed", modality, fingerprint, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    )
    return folder


def _row(rng: np.random.Generator, modality: str, vocabulary: Vocabulary) -> PackedRow:
    ids: list[int] = []
    starts: list[int] = []
    spans: list[tuple[int, int]] = []
    placements: list[Placement] = []
    block = vocabulary.block(modality)
    while True:
        word, frames = int(rng.integers(3, 20)), int(rng.integers(2, 8))
        steps = np.arange(frames * block.levels).reshape(frames, block.levels)
        codes = ((steps + word) % block.codebook_size).astype(np.uint16)
        document = [1, word, word + 20, *vocabulary.media_token_ids(modality, codes).tolist(), 2]
        if len(ids) + len(document) > LENGTH:
            break
        starts.append(len(ids))
        direction = f"text_to_{modality}" if frames % 2 else f"{modality}_to_text"
        placements.append(
            Placement(f"{modality}/{word}-{frames}", modality, 0, direction, len(ids), len(ids) + len(document))
        )
        # Only what follows the first word counts, so that masks differ from "everything".
        spans.append((len(ids) + 2, len(ids) + len(document)))
        ids += document
    padded = np.full(LENGTH, vocabulary.pad_id)
    padded[: len(ids)] = ids
    return PackedRow(padded, len(ids), tuple(starts), tuple(spans), tuple(placements))
