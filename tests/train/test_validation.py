"""Loss on rows that are kept apart: the same rows always, no trace in the training, summed exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError, FingerprintMismatch
from shards.manifest import read_manifest, write_manifest
from shards.reader import PackedDataset, open_packed
from shards.vocabulary import Vocabulary
from tests.train.conftest import toy_vocabulary, write_toy_dataset
from tests.train.process_groups import Case, Groups
from train.collate import HostBatch, micro_batches
from train.config import TrainConfig
from train.engine import Processes
from train.metrics import read_metrics
from train.plan import make_plan
from train.trainer import start, train
from train.validation import draw_rows, share_out

Make = Callable[..., TrainConfig]
TIMES = {"tokens_per_s", "data_wait", "seconds", "memory_gib"}


@pytest.fixture(scope="module")
def kept_apart(data: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy datasets, and rows kept apart of two of them."""
    root = tmp_path_factory.mktemp("kept-apart") / "data"
    shutil.copytree(data, root)
    for name, modality in (("image", "music"), ("music", "image")):
        folder = write_toy_dataset(root / "other", modality, vocabulary)
        shutil.move(folder, root / f"{name}-validation")
    return root


def config_of(make: Make, root: Path, **changes: Any) -> TrainConfig:
    return make(data=root, mixture=root / "mixture.toml", validation={"every": 2, "rows": 5}, **changes)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = read_metrics(folder / "metrics.jsonl", kind=kind)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def row_by_hand(dataset: PackedDataset, row: int) -> HostBatch:
    """One row as a batch: what is in a loss span and opens no document is a target, positions begin with documents."""
    ids = dataset.gather([row])
    starts = dataset.document_starts(row).tolist()
    is_target, positions = np.zeros(ids.shape, np.bool_), np.zeros(ids.shape, np.int32)
    for place in range(ids.shape[1]):
        spans = dataset.loss_spans(row).tolist()
        is_target[0, place] = place not in starts and any(start <= place < stop for start, stop in spans)
        positions[0, place] = place - max(start for start in starts if start <= place)
    return HostBatch(ids, is_target, positions, np.zeros(1, np.int64))


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_validation_leaves_no_trace_in_the_training(
    make_config: Make, data: Path, kept_apart: Path, tmp_path: Path, zero: int
):
    engine = {"kind": "deepspeed" if zero else "torch", "zero": zero or 2, "dtype": "fp32", "head_chunk": 50}
    watched = config_of(make_config, kept_apart, output=tmp_path / "watched", engine=engine)
    alone = make_config(output=tmp_path / "alone", engine=engine)
    assert run(watched) == run(alone) == 6
    assert lines(watched.output, "train") == lines(alone.output, "train")
    found = lines(watched.output, "validation")
    assert [line["step"] for line in found] == [2, 4, 6] and not lines(alone.output, "validation")
    assert all(set(line["loss_by_dataset"]) == {"image", "music"} for line in found)
    assert len({json.dumps(line["targets"]) for line in found}) == 1, "the same rows every time"
    assert found[-1]["loss"] != found[0]["loss"]


def test_losses_are_those_of_every_drawn_row_by_itself(make_config: Make, kept_apart: Path):
    config = config_of(make_config, kept_apart, engine={"kind": "torch", "dtype": "fp32", "micro_batch_rows": 4})
    trainer = start(make_plan(config, where="test.toml"))
    found = trainer.validation.measure(0)
    sums, counts = {"image": 0.0, "music": 0.0}, {"image": 0, "music": 0}
    for name in sums:
        dataset = open_packed(kept_apart / f"{name}-validation")
        rows = draw_rows(dataset, 5, key=f"{config.seed} {name}")
        assert len(set(rows)) == 5
        for row in rows:
            (micro,) = micro_batches(row_by_hand(dataset, row), 1, torch.device("cpu"))
            with torch.no_grad():
                loss, losses = trainer.network(micro)
            sums[name] += float(loss)
            counts[name] += len(losses)
    assert found.by_dataset == {name: pytest.approx(sums[name] / counts[name], abs=1e-5) for name in sums}
    assert found.loss == pytest.approx(sum(sums.values()) / sum(counts.values()), abs=1e-5)
    assert sum(found.targets.values()) == sum(counts.values())


def test_a_resumed_run_has_each_line_once(make_config: Make, kept_apart: Path, tmp_path: Path):
    straight = config_of(make_config, kept_apart, output=tmp_path / "straight")
    halting = config_of(make_config, kept_apart, output=tmp_path / "halting")
    run(straight)
    assert [run(halting, limit) for limit in (2, 5, None)] == [2, 5, 6]
    assert lines(halting.output, "validation") == lines(straight.output, "validation")


@pytest.fixture(scope="module")
def groups(repository: Path) -> Iterator[Groups]:
    with Groups(repository) as groups:
        yield groups


def test_two_processes_measure_skip_and_dump_what_one_does(
    groups: Groups, make_config: Make, kept_apart: Path, tmp_path: Path
):
    """Five rows of two datasets do not divide by two; a guard this tight refuses steps on its own."""
    shared: dict[str, Any] = {
        "steps": 8,
        "engine": {"kind": "deepspeed", "dtype": "fp32", "micro_batch_rows": 1, "head_chunk": 50},
        "guards": {"spike_factor": 1.02, "warm_up": 2, "max_skips": 9},
        "optimizer": {"lr": 3e-2},
    }
    one = config_of(make_config, kept_apart, output=tmp_path / "one", **shared)
    two = config_of(make_config, kept_apart, output=tmp_path / "two", **shared)
    run(one)
    groups.finish(Case(2, two.model_dump(mode="json", by_alias=True)))
    for kind in ("train", "validation"):
        left, right = lines(one.output, kind), lines(two.output, kind)
        assert len(left) == len(right) > 3
        for first, second in zip(left, right, strict=True):
            assert first["targets"] == second["targets"] and first.get("skipped") == second.get("skipped")
            for name in ("loss_by_dataset", "loss_by_modality", "loss_by_direction"):
                assert first.get(name) == pytest.approx(second.get(name), abs=1e-5)
    dumps = sorted(path.name for path in (one.output / "dumps").iterdir())
    assert dumps and dumps == sorted(path.name for path in (two.output / "dumps").iterdir())
    for name in dumps:
        left, right = (np.load(config.output / "dumps" / name / "losses.npy") for config in (one, two))
        assert left.any() and np.abs(left - right).max() < 1e-4
        rows = [(config.output / "dumps" / name / "shard-00000.arrow").read_bytes() for config in (one, two)]
        assert rows[0] == rows[1]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_every_row_counts_once_and_every_process_has_as_many(count: int, world_size: int, multiple: int):
    rows = [(0, row) for row in range(count)]
    parts = [
        share_out(rows, Processes(rank, world_size, 0, 1, torch.device("cpu")), multiple=multiple)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1 and len(parts[0]) % multiple == 0
    assert sorted(row for part in parts for row, counts in part if counts) == rows


def test_rows_are_drawn_by_their_key_alone_from_a_few_shards(data: Path, tmp_path: Path, vocabulary: Vocabulary):
    folder = tmp_path / "many"
    shutil.copytree(data / "image", folder)
    manifest = read_manifest(folder)
    (entry,) = manifest.shards
    fields = {name: getattr(manifest, name) for name in manifest.__slots__}
    write_manifest(folder, type(manifest)(**(fields | {"shards": (entry,) * 30})))
    dataset = open_packed(folder)
    rows = draw_rows(dataset, 50, key="0 image")
    assert rows == sorted(set(rows)) == draw_rows(dataset, 50, key="0 image") != draw_rows(dataset, 50, key="1 image")
    assert len({row // entry.num_rows for row in rows}) <= 8
    assert len({row // entry.num_rows for row in draw_rows(dataset, 400, key="x")}) == 17
    assert draw_rows(dataset, 10_000, key="x") == list(range(30 * entry.num_rows))


def test_rows_kept_apart_are_not_trained_on_unless_allowed(make_config: Make, kept_apart: Path, tmp_path: Path):
    mixture = tmp_path / "mixture.toml"
    mixture.write_text('[shares]\nimage = 0.5\n"music-validation" = 0.5\n', encoding="utf-8")
    config = make_config(data=kept_apart, mixture=mixture, steps=1)
    with pytest.raises(ConfigError, match=r"found music-validation, kept apart.*validation.allow_training"):
        run(config)
    assert run(make_config(data=kept_apart, mixture=mixture, steps=1, validation={"allow_training": True})) == 1


def test_rows_of_another_vocabulary_are_refused_and_none_are_read_when_nothing_is_measured(
    make_config: Make, data: Path, tmp_path: Path
):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    folder = write_toy_dataset(root / "other", "image", toy_vocabulary("other", text_size=41))
    shutil.move(folder, root / "image-validation")
    config = config_of(make_config, root, steps=1)
    with pytest.raises(FingerprintMismatch, match="image-validation is packed with vocabulary other"):
        run(config)
    assert run(config.model_copy(update={"validation": config.validation.model_copy(update={"every": 0})})) == 1
