"""A training run whose shares change, and whose plan is changed ahead of it while it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import FingerprintMismatch
from train.config import TrainConfig
from train.plan import describe, make_plan
from train.trainer import train

Make = Callable[..., TrainConfig]
START = "[shares]\nimage = 0.5\nspeech = 0.5\n"
LATER = "[[phases]]\nfirst_step = {}\nshares = {{ image = 0.5, music = 0.5 }}\n"


@pytest.fixture
def mixture(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "phased.toml"
    path.write_text(START, encoding="utf-8")
    return path


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def datasets_by_step(config: TrainConfig) -> list[set[str]]:
    text = (config.output / "metrics.jsonl").read_text(encoding="utf-8")
    return [set(json.loads(line)["loss_by_dataset"]) for line in text.splitlines()]


def test_a_run_reads_what_each_of_its_phases_says(make_config: Make, mixture: Path):
    mixture.write_text(START + LATER.format(4), encoding="utf-8")
    config = make_config(mixture=mixture)
    assert run(config) == 6
    assert datasets_by_step(config) == [{"image", "speech"}] * 3 + [{"image", "music"}] * 3
    assert "music" in describe(make_plan(config, where="test.toml"))


def test_a_plan_may_change_ahead_of_a_run_and_not_behind_it(make_config: Make, mixture: Path):
    """The run stops after step 3; a phase from step 5 on is a new plan, one from step 3 on another past."""
    config = make_config(mixture=mixture, log={"every": 2, "tensorboard": False})
    assert run(config, limit=3) == 3
    mixture.write_text(START + LATER.format(3), encoding="utf-8")
    with pytest.raises(FingerprintMismatch, match="another dataset music, mixture"):
        run(config)
    mixture.write_text(START + LATER.format(5), encoding="utf-8")
    assert run(config) == 6
    assert datasets_by_step(config) == [{"image", "speech"}] * 2 + [{"image", "music"}]
