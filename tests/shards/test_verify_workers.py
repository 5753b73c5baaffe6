"""Verification in several processes, and the command around it: same words for any number, deaths, Ctrl-C, parts."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import cli
from shards.errors import DatasetError
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.modality import Modality
from shards.packed import sidecar_path
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.storage import open_path
from shards.verify import look_at_all, sampled, verify_dataset
from shards.worker_pool import WorkerDied, map_in_processes
from shards.writer import commit_bytes, commit_table
from tests.fixtures.deadly_tasks import die_once, find_or_die, refuse, square_or_die
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; from shards.cli import verify; sys.exit(verify(sys.argv[1:]))"


def test_results_are_in_the_order_of_the_tasks_and_a_death_takes_its_own_task_only() -> None:
    done: list[int] = []
    results = list(map_in_processes(square_or_die, [3, -1, 5, 7, 8], workers=2, on_done=done.append))
    assert results == [9, WorkerDied(-9), 25, 49, 64]
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert str(results[1]) == "the process was killed by SIGKILL"
    assert multiprocessing.active_children() == []


def test_what_died_once_is_tried_again(tmp_path: Path) -> None:
    assert list(map_in_processes(die_once, [tmp_path / "a"], workers=1)) == ["a"]


def test_an_error_of_ours_is_raised_and_no_process_is_left() -> None:
    with pytest.raises(DatasetError, match="task 1 is refused"):
        list(map_in_processes(refuse, [1], workers=1))
    assert multiprocessing.active_children() == []


def test_a_shard_that_kills_its_process_is_a_fault_that_names_it() -> None:
    entries = [ShardEntry(name, 0, 10, "") for name in "abc"]
    seen: list[int] = []
    found = list(look_at_all(find_or_die, entries, workers=2, progress=seen.append))
    assert [str(fault) for shard in found for fault in shard.faults] == [
        "a: looked at",
        "b: cannot be looked at: the process ended with exit code 7, twice",
        "c: looked at",
    ]
    assert seen == [10, 10, 10]


def test_any_number_of_workers_says_the_same(packed_folder: Path) -> None:
    for number, at in ((0, 20_000), (1, 300)):
        path = packed_folder / f"shard-{number:05d}.arrow"
        damaged = bytearray(path.read_bytes())
        damaged[at] ^= 1
        path.write_bytes(damaged)
    sidecar_path(packed_folder / "shard-00001.arrow").unlink()
    alone = verify_dataset(packed_folder, workers=1)
    assert [fault.path for fault in alone.faults] == ["shard-00000.arrow", "shard-00001.arrow"]
    assert verify_dataset(packed_folder, workers=2) == alone


def test_a_killed_worker_changes_nothing(packed_folder: Path) -> None:
    killed: list[int] = []

    def kill_one(num_bytes: int) -> None:
        others = [process for process in multiprocessing.active_children() if process.pid not in killed]
        if not killed and others and others[0].pid:
            killed.append(others[0].pid)
            others[0].kill()

    manifest = read_manifest(packed_folder)
    first, second = manifest.shards
    many = replace(manifest, shards=(first, *[second] * 20))
    write_manifest(packed_folder, many)
    assert verify_dataset(packed_folder, workers=2, progress=kill_one) == verify_dataset(packed_folder)
    assert killed


def test_a_part_is_spread_evenly_and_called_a_part(packed_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [ShardEntry(str(number), 0, 0, "") for number in range(101)]
    assert [entry.path for entry in sampled(entries, 5)] == ["0", "25", "50", "75", "100"]
    assert sampled(entries, None) == sampled(entries, 1000) == entries
    # The shard that is not looked at may be damaged; the sums of all shards are nobody's to compare.
    (packed_folder / "shard-00001.arrow").write_bytes(b"")
    assert cli.verify([str(packed_folder), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "no fault in 1 of 2 shards; the others were NOT looked at" in printed
    assert "whole" not in printed
    assert cli.verify([str(packed_folder), "--limit", "0"]) == 2
    assert "expected at least 1 shard" in capsys.readouterr().err


def test_json_is_one_object_for_each_dataset(packed_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = packed_folder.parent / "empty"
    empty.mkdir()
    arguments = [str(packed_folder), str(empty), "--json"]
    assert cli.verify(arguments) == 1
    sound, missing = map(json.loads, capsys.readouterr().out.splitlines())
    assert (sound["kind"], sound["rows"], sound["faults"], sound["whole"]) == ("packed", 320, [], True)
    assert sound["tokens"] == read_manifest(packed_folder).tokens
    assert missing["dataset"] == str(empty)
    assert missing["whole"] is False
    assert "found none" in missing["error"]
    path = packed_folder / "shard-00000.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[20_000] ^= 4
    path.write_bytes(damaged)
    assert cli.verify([str(packed_folder), "--json", "--workers", "1"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert (fault["path"], fault["rows"]) == ("shard-00000.arrow", [[96, 111]])


def test_no_worker_at_all_is_refused(packed_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.verify([str(packed_folder), "--workers", "0"]) == 2
    assert "--workers: expected at least 1, found 0" in capsys.readouterr().err


def test_a_progress_bar_is_for_terminals(packed_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as reader:
        process = subprocess.run(
            [sys.executable, "-c", COMMAND, str(packed_folder)], cwd=ROOT, stderr=terminal, check=True
        )
        shown = reader.read(4096).decode()
    os.close(terminal)
    assert "packed:   0%|" in shown
    assert "B/s" in shown
    assert process.returncode == 0
    assert cli.verify([str(packed_folder)]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_samples_in_a_bucket_are_looked_at_by_several_processes(tmp_path: Path) -> None:
    pytest.importorskip("moto.server")
    picture = Segment("image", Modality.IMAGE, codes=np.zeros((32, 1), np.uint16))
    with s3_server() as url, pointed_at(url):
        make_bucket("bucket")
        folder = open_path("s3://bucket/data set")
        entries: list[ShardEntry] = []
        for name in "ab":
            path = folder / f"{name}.parquet"
            samples = [TokenizedSample(name, "c", "train", (picture,), Provenance("f"))]
            sha256 = commit_table(path, samples_to_table(samples))
            entries.append(ShardEntry(path.name, 1, path.stat().st_size, sha256))
        write_manifest(folder, Manifest("samples", "c", "f", tuple(entries), 1))
        commit_bytes(folder / "b.parquet", (folder / "a.parquet").read_bytes())
        found = verify_dataset(folder, workers=2)
    (fault,) = found.faults
    assert fault.path == "b.parquet"
    assert found.tokens == {"image": 32}


@pytest.mark.parametrize("pause_s", [0.0, 0.6])
def test_ctrl_c_ends_with_130_and_no_traceback(packed_folder: Path, pause_s: float) -> None:
    manifest = read_manifest(packed_folder)
    write_manifest(packed_folder, replace(manifest, shards=tuple(manifest.shards) * 10_000))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(packed_folder), "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_for_children(process.pid, 3)
    time.sleep(pause_s)
    # As a terminal does: to the command and its workers at once.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in errors
    assert errors.startswith("interrupted")


def _wait_for_children(pid: int, count: int) -> None:
    """Two workers, and the process with which Python keeps track of semaphores."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs /proc to see when the workers are there")
    end = time.monotonic() + 30
    while len(_read(path)) < count and time.monotonic() < end:
        time.sleep(0.01)


def _read(path: Path) -> Sequence[str]:
    return path.read_text(encoding="ascii").split()
