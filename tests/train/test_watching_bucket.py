"""A run over a bucket is watched as one over a disk: directions, validation and dumps need files beside the shards."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.storage import open_path
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server
from tests.train.conftest import write_toy_dataset
from train.config import TrainConfig
from train.guards import Guard, Judgement
from train.metrics import read_metrics
from train.plan import make_plan
from train.trainer import train

BUCKET = "watched"
TIMES = {"tokens_per_s", "data_wait", "seconds", "memory_gib"}


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = read_metrics(folder / "metrics.jsonl", kind=kind)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def test_all_that_is_told_of_a_run_over_a_disk_is_told_of_one_over_a_bucket(
    make_config: Callable[..., TrainConfig],
    data: Path,
    tmp_path: Path,
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
):
    """With a step that is refused, so that its rows are read again."""
    disk = tmp_path / "data"
    shutil.copytree(data, disk)
    shutil.move(write_toy_dataset(disk / "other", "music", vocabulary), disk / "image-validation")
    honest = Guard.judge

    def refuse_one(guard: Guard, loss: float, grad_norm: float) -> Judgement:
        return honest(guard, math.nan if round(grad_norm, 6) == refused else loss, grad_norm)

    with s3_server() as url, pointed_at(url):
        make_bucket(BUCKET)
        bucket = open_path(f"s3://{BUCKET}/data")
        for path in disk.rglob("*"):
            if path.is_file():
                commit_bytes(bucket / path.relative_to(disk).as_posix(), path.read_bytes())
        shared = {"windows": "all", "validation": {"every": 2, "rows": 3}, "cache_dir": tmp_path / "cache"}
        probe = make_config(data=disk, output=tmp_path / "probe", **shared)
        train(make_plan(probe, where="test.toml"), limit=3)
        refused = round(lines(probe.output, "train")[-1]["grad_norm"], 6)
        monkeypatch.setattr(Guard, "judge", refuse_one)
        here, there = (
            make_config(data=root, output=tmp_path / name, **shared)
            for root, name in ((disk, "here"), (bucket, "there"))
        )
        for config in (here, there):
            assert train(make_plan(config, where="test.toml")) == 6
    for kind in ("train", "validation"):
        assert lines(there.output, kind) == lines(here.output, kind)
    assert [line["skipped"] for line in lines(there.output, "train")] == [0, 0, 1, 0, 0, 0]
    assert len(lines(there.output, "train")[0]["loss_by_direction"]) > 3
    for name in ("shard-00000.arrow", "shard-00000.samples.parquet", "losses.npy", "step.json"):
        left, right = ((config.output / "dumps" / "step-3" / name).read_bytes() for config in (here, there))
        assert left == right, name
    assert json.loads((there.output / "dumps" / "step-3" / "step.json").read_text(encoding="utf-8"))["rows"][0][
        "samples"
    ]
