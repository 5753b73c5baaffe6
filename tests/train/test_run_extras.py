"""What a run writes only if it is asked to: Weights & Biases, a profile."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import ConfigError
from train.config import TrainConfig
from train.plan import make_plan
from train.trainer import train

Make = Callable[..., TrainConfig]

WANDB = '''
"""Of wandb what a run uses; writes down what it is told."""

import json
import os
from pathlib import Path


class Run:
    def __init__(self, given):
        self.path = Path(given["dir"]) / "wandb.jsonl"
        self.write(init={**given, "config": sorted(given["config"])}, mode=os.environ.get("WANDB_MODE"))

    def write(self, **line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\\n")

    def define_metric(self, name, step_metric=None):
        self.write(define=[name, step_metric])

    def log(self, figures):
        self.write(log=figures)

    def finish(self, exit_code):
        self.write(finish=exit_code)


def init(**given):
    return Run(given)
'''


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def test_wandb_is_not_imported_unless_it_is_asked_for(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A package of that name that ends the process when it is imported changes nothing."""
    (tmp_path / "wandb.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "wandb" not in sys.modules, "neither by the imports of the trainer"
    assert run(make_config(steps=1)) == 1
    assert "wandb" not in sys.modules


def test_without_the_library_the_message_says_how_to_get_it(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log.wandb.*pip install wandb"):
        run(make_config(steps=1, log={"wandb": {"project": "p"}}))


def test_a_run_is_sent_there_and_continued_under_its_name(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "package"
    package.mkdir()
    (package / "wandb.py").write_text(WANDB, encoding="utf-8")
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    config = make_config(
        steps=3, log={"every": 1, "tensorboard": False, "wandb": {"project": "anygpt", "entity": "us"}}
    )
    assert [run(config, 2), run(config)] == [2, 3]
    monkeypatch.delitem(sys.modules, "wandb")
    lines = [json.loads(line) for line in (config.output / "wandb.jsonl").read_text(encoding="utf-8").splitlines()]
    begun = [line for line in lines if "init" in line]
    assert len(begun) == 2 and begun[0] == begun[1] and begun[0]["mode"] == "offline"
    wanted = {"project": "anygpt", "entity": "us", "name": "run", "resume": "allow"}
    assert wanted.items() <= begun[0]["init"].items() and "optimizer" in begun[0]["init"]["config"]
    assert len(begun[0]["init"]["id"]) == 16
    logged = [line["log"] for line in lines if "log" in line]
    assert [figures["step"] for figures in logged] == [1, 2, 3]
    assert {"loss", "lr", "loss_by_direction/text_to_image", "shares/music"} <= set(logged[0])
    assert [line["finish"] for line in lines if "finish" in line] == [0, 0]


def test_a_profile_is_of_the_steps_asked_for(make_config: Make):
    config = make_config(steps=6, profile={"start": 2, "steps": 2})
    assert run(config) == 6
    folder = config.output / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["steps-2-3.json.gz", "steps-2-3.txt"]
    events = json.loads(gzip.decompress((folder / "steps-2-3.json.gz").read_bytes()))["traceEvents"]
    updates = [event for event in events if event.get("name", "").startswith("Optimizer.step")]
    assert len(updates) == 2, "two steps, two updates"
    assert "aten::mm" in (folder / "steps-2-3.txt").read_text(encoding="utf-8")


def test_a_profile_that_a_run_ends_in_is_written_too(make_config: Make):
    config = make_config(steps=3, profile={"start": 3, "steps": 9})
    assert run(config) == 3
    assert (config.output / "profile" / "steps-3-3.txt").stat().st_size
