"""The files a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.metrics import (
    Interval,
    RunLog,
    ValidationFigures,
    one_line,
    read_metrics,
    take_back_metrics,
    validation_line,
)


def interval(step: int, **other: Any) -> Interval:
    figures: dict[str, Any] = {
        "step": step,
        "loss": 2.0 / step,
        "by_modality": {"text": 1.5, "image": 2.5},
        "by_dataset": {"laion": 2.0},
        "by_direction": {"text_to_image": 2.5, "image_to_text": 1.5},
        "targets": {"text": 3},
        "shares": {"laion": 1.0},
        "shares_so_far": {"laion": 1.0},
        "lr": 1e-3,
        "grad_norm": 0.5,
        "skipped": 0,
        "tokens_per_s": 1e4,
        "mfu": None,
        "mfu_doc": None,
        "data_wait": 0.0,
        "memory_gib": {"host": 1.5},
        "seconds": 1.0,
    }
    return Interval(**(figures | other))


def validation(step: int) -> ValidationFigures:
    return ValidationFigures(
        step=step, loss=3.0, by_modality={"text": 3.0}, by_dataset={"laion": 3.0}, targets={"text": 7}, seconds=0.5
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
    assert one_line(interval(2, mfu=0.512, skipped=3), 9).endswith("10,000 tok/s mfu 51.2% skipped 3")
    assert "loss nan" in one_line(interval(2, loss=None, grad_norm=None), 9)
    assert validation_line(validation(4)) == "step 4 validation loss 3.0000 (laion 3.000)"


def test_losses_of_validation_are_lines_and_charts_of_their_own(tmp_path: Path):
    with RunLog(tmp_path, steps=9, first_step=1, tensorboard=True, silent=False) as log:
        for figures in (interval(1), validation(1), interval(2)):
            log.write(figures)
    path = tmp_path / "metrics.jsonl"
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    (line,) = read_metrics(path, kind="validation")
    assert (line["kind"], line["step"], line["loss"]) == ("validation", 1, 3.0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("validation/loss_by_dataset/laion")] == [3.0]
    assert len(events.Scalars("loss")) == 2
    take_back_metrics(path, last_step=0)
    assert not path.read_bytes()


def test_what_could_not_be_measured_is_null_and_no_chart(tmp_path: Path):
    with RunLog(tmp_path, steps=9, first_step=1, tensorboard=True, silent=False) as log:
        log.write(interval(1, loss=None, grad_norm=None))
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["loss"] is None and line["mfu"] is None
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "loss" not in events.Tags()["scalars"] and "loss_by_direction/text_to_image" in events.Tags()["scalars"]
