"""Checkpoints are whole or not there, and belong to one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import CheckpointError, FingerprintMismatch
from train.checkpoint import (
    OptimizerState,
    RunState,
    check_same_run,
    newest_checkpoint,
    publish_folder,
    read_optimizer_state,
    read_run_state,
    save_checkpoint,
)

FINGERPRINTS = {"vocabulary": "v", "mixture": "m"}


def state_at(step: int) -> OptimizerState:
    rng = np.random.default_rng(step)
    master, first, second = (
        {"a.weight": rng.random((4, 3), np.float32), "b": rng.random(5, np.float32)} for _ in "123"
    )
    return OptimizerState(step, master, first, second)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, state_at(step), RunState(step, FINGERPRINTS, {"losses": [[0.1]]}), keep=keep)


def test_what_is_saved_is_read_back(tmp_path: Path):
    path = save(tmp_path, 7)
    assert newest_checkpoint(tmp_path) == path
    assert (tmp_path / "latest").read_text(encoding="utf-8").strip() == path.name
    assert read_run_state(path) == RunState(7, FINGERPRINTS, {"losses": [[0.1]]})
    found, expected = read_optimizer_state(path), state_at(7)
    assert found.step == 7
    for name in ("master", "exp_avg", "exp_avg_sq"):
        left, right = getattr(found, name), getattr(expected, name)
        assert set(left) == set(right) and all((left[key] == right[key]).all() for key in right)


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000015", "step-00000020"]


def test_a_checkpoint_cut_anywhere_is_passed_over_for_the_one_before(tmp_path: Path):
    """Every file of it, missing, empty, or short by a byte."""
    before, torn = save(tmp_path, 5), save(tmp_path, 10)
    for path in sorted(torn.iterdir()):
        data = path.read_bytes()
        for left in (b"", data[: len(data) // 2], data[:-2]):
            path.write_bytes(left)
            assert newest_checkpoint(tmp_path) == before, f"{path.name} cut to {len(left)} bytes"
        path.unlink()
        assert newest_checkpoint(tmp_path) == before, f"{path.name} missing"
        path.write_bytes(data)
    assert newest_checkpoint(tmp_path) == torn
    (torn / "master.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="found a torn one"):
        read_optimizer_state(torn)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    """At every write call in turn: the run dies, and the checkpoint before it is still the newest."""
    before = save(tmp_path, 5)
    for number in range(4):

        def write(folder: Path, number: int = number) -> None:
            for name in range(number):
                (folder / f"{name}").write_bytes(b"x")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            publish_folder(tmp_path / "step-00000010", write)
        assert newest_checkpoint(tmp_path) == before
    save(tmp_path, 10)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_without_checkpoints_has_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path: Path):
    with pytest.raises(
        FingerprintMismatch, match="with another dataset image, vocabulary; give the run another output"
    ):
        check_same_run(tmp_path, FINGERPRINTS, {"vocabulary": "w", "mixture": "m", "dataset image": "i"})
    check_same_run(tmp_path, FINGERPRINTS, dict(FINGERPRINTS))


def test_a_checkpoint_of_a_later_format_is_not_guessed_at(tmp_path: Path):
    path = save(tmp_path, 5) / "state.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"format_version": 1', '"format_version": 9'), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, found 9"):
        newest_checkpoint(tmp_path)
