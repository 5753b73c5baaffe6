"""The files a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.metrics import Interval, RunLog, one_line, read_metrics, take_back_metrics


def interval(step: int) -> Interval:
    return Interval(
        step, 2.0 / step, {"text": 1.5, "image": 2.5}, {"laion": 2.0}, {"text": 3}, 1e-3, 0.5, 1e4, 0.0, 1.0
    )


def write(folder: Path, first: int, last: int, *, silent: bool = False) -> None:
    with RunLog(folder, steps=9, first_step=first, tensorboard=True, silent=silent) as log:
        for step in range(first, last + 1):
            log.advance()
            log.write(interval(step))
        log.sync()


def test_a_line_an_interval_in_both_files(tmp_path: Path):
    write(tmp_path, 1, 3)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss_by_modality/image")] == [1, 2, 3]
    assert events.Scalars("loss")[1].value == pytest.approx(1.0)
    logged = [json.loads(line) for line in (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in logged] == ["interval"] * 3


def test_a_resumed_run_takes_back_what_its_checkpoint_does_not_know(tmp_path: Path):
    """Killed at step 5 in the middle of a line, continued from step 3."""
    write(tmp_path, 1, 5)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    write(tmp_path, 4, 6)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_whole_file_is_not_touched(tmp_path: Path):
    write(tmp_path, 1, 3)
    path = tmp_path / "metrics.jsonl"
    before = path.stat().st_ino, path.read_bytes()
    take_back_metrics(path, last_step=3)
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_other_ranks_write_nothing(tmp_path: Path):
    write(tmp_path / "run", 1, 3, silent=True)
    assert not (tmp_path / "run").exists()


def test_the_line_for_people_names_every_modality():
    assert one_line(interval(2), 9) == (
        "step 2/9 loss 1.0000 (text 1.500 image 2.500) norm 0.50 lr 1.00e-03 10,000 tok/s"
    )
