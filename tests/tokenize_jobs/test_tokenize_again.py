"""Doing some units again: what was rejected, exactly these; and what stops a unit without stopping anything else."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shards.writer as writer
import tokenize_jobs.stages as stages
from configs.load import load_config
from pipeline.samples import RawSample
from shards.errors import DatasetError
from shards.ledger import read_entries
from tests.tokenize_jobs.test_tokenize_job import (
    BROKEN,
    UNCAPTIONED,
    tree,
    write_codec,
    write_config,
    write_corpus,
)
from tokenize_jobs.cli import tokenize
from tokenize_jobs.dataset_report import TIMED_NAMES
from tokenize_jobs.job import Choice, Job, prepare_job
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.stages import EncodeRow, decode_row


@pytest.fixture
def config(tmp_path: Path) -> TokenizeConfig:
    root, codec = write_corpus(tmp_path / "root"), write_codec(tmp_path / "codec.safetensors")
    return load_config(write_config(tmp_path, root, codec), TokenizeConfig)


def do(job: Job) -> list[dict[str, Any]]:
    """The two stages of every unit that is to be done, one after another, here."""
    encode = EncodeRow([job.task])
    rows = job.units.to_table(job.todo, task=0, again=job.again).to_pylist()
    return [encode(decode_row(row, [job.task])) for row in rows]


def test_retrying_gives_the_files_of_a_run_that_never_failed(
    config: TokenizeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Every third picture could not be read the first time, say, because a disk was away."""
    undisturbed = config.model_copy(update={"output": tmp_path / "undisturbed"})
    do(prepare_job(undisturbed))
    decoder = stages.make_decoder
    calls = iter(range(10_000))

    def flaky(*arguments: Any) -> Callable[[Any], Any]:
        inner = decoder(*arguments)

        def decode(media: Any) -> Any:
            if next(calls) % 3 == 0:
                raise stages.SampleError("image_unreadable", "the disk was away")
            return inner(media)

        return decode

    with monkeypatch.context() as broken:
        broken.setattr(stages, "make_decoder", flaky)
        do(prepare_job(config))
    before = tree(config.output)
    assert before != tree(undisturbed.output)
    job = prepare_job(config, choice=Choice(retry=True))
    assert 0 < len(job.todo) <= len(job.units)
    do(job)
    assert tree(config.output) == tree(undisturbed.output)


def test_retrying_decodes_the_rejected_inputs_and_no_others(config: TokenizeConfig, monkeypatch: pytest.MonkeyPatch):
    do(prepare_job(config))
    rejected = sum(sum(entry.rejected.values()) for entry in read_entries(config.output))
    assert rejected == BROKEN + UNCAPTIONED
    decoded: list[str] = []
    filter_raw = stages.filter_raw

    def seen(sample: RawSample, *arguments: Any) -> Any:
        decoded.append(sample.sample_id)
        return filter_raw(sample, *arguments)

    monkeypatch.setattr(stages, "filter_raw", seen)
    before = tree(config.output)
    do(prepare_job(config, choice=Choice(retry=True)))
    assert len(decoded) <= rejected
    assert tree(config.output) == before


def test_exactly_the_named_units_are_done_again(
    config: TokenizeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(tmp_path / f"{config.corpus}.toml")
    assert tokenize([path, "--only", "unit-000001", "unit-000003"]) == 0
    assert "4 of 6 units are left" in capsys.readouterr().out
    entries = [entry.unit for entry in read_entries(config.output)]
    assert entries == ["unit-000001", "unit-000003"]
    assert not (config.output / "manifest.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in (config.output / "shards").iterdir()}
    assert tokenize([path]) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    whole = tree(config.output, but=TIMED_NAMES)
    assert tokenize([path, "--only", "unit-000003"]) == 0
    assert tree(config.output, but=TIMED_NAMES) == whole
    touched = {file.stem for file, time in kept.items() if file.stat().st_mtime_ns != time}
    assert touched == {"unit-000003"}
    assert tokenize([path, "--only", "unit-000099"]) == 2
    assert "unit-000099: expected a unit of laion2b" in capsys.readouterr().err


def test_a_unit_that_was_committed_by_a_worker_that_was_lost_is_not_done_twice(config: TokenizeConfig):
    job = prepare_job(config)
    do(job)
    times = {file: file.stat().st_mtime_ns for file in config.output.rglob("*.parquet")}
    rows = do(job)  # Ray gives rows of a lost worker to another one
    assert [row["error"] for row in rows] == [b""] * len(job.units)
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.parametrize("number", range(1, 4))
def test_a_full_disk_is_one_message_commits_nothing_of_the_unit_and_the_run_goes_on_when_there_is_room(
    config: TokenizeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
):
    """The first, second or third file of a unit finds no room."""
    undisturbed = config.model_copy(update={"output": tmp_path / "undisturbed"})
    do(prepare_job(undisturbed))
    commits = iter(range(1, 10_000))
    rename = writer.commit_file

    def full(temporary: Path, path: Path) -> None:
        if next(commits) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(temporary, path)

    with monkeypatch.context() as disk:
        disk.setattr(writer, "commit_file", full)
        rows = do(prepare_job(config))
    errors = [stages.pickle.loads(row["error"]) for row in rows if row["error"]]
    assert errors and all(isinstance(error, DatasetError) for error in errors)
    assert "expected room for its files, found No space left on device" in str(errors[0])
    done = {entry.unit for entry in read_entries(config.output)}
    assert len(done) == len(rows) - len(errors)
    assert not list(config.output.rglob("*.tmp"))
    do(prepare_job(config))
    assert tree(config.output) == tree(undisturbed.output)


def test_a_disk_that_is_really_full(config: TokenizeConfig, tmp_path: Path):
    """A file system of 96 KiB, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes rights that this user lacks")
    try:
        there = config.model_copy(update={"output": small / "out"})
        (small / "ballast").write_bytes(bytes(64 << 10))
        errors = [row["error"] for row in do(prepare_job(there)) if row["error"]]
        assert errors and "No space left" in str(stages.pickle.loads(errors[0]))
        done = [entry.unit for entry in read_entries(there.output)]
        assert len(done) < len(prepare_job(there).units)
        assert not list(there.output.rglob("*.tmp"))
        (small / "ballast").unlink()
        job = prepare_job(there)
        assert len(job.todo) == len(job.units) - len(done)
        do(job)
        undisturbed = config.model_copy(update={"output": tmp_path / "undisturbed"})
        do(prepare_job(undisturbed))
        assert tree(there.output) == tree(undisturbed.output)
    finally:
        subprocess.run(["umount", str(small)], check=True)
