"""A sample that hangs or crashes its decoder ends its worker, and is rejected by a later one. Processes really die."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.load import load_config
from pipeline.samples import RawSample
from shards.ledger import read_entries
from shards.records import Provenance
from tests.tokenize_jobs.test_tokenize_job import jpeg, write_codec, write_config, write_corpus
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.watchdog import CAREFUL_FROM, DEATHS, EXIT_CODE, Watchdog, remove_note

UNIT = """
import ctypes, hashlib, os, signal, sys, time
from pathlib import Path
import tokenize_jobs.stages as stages
from configs.load import load_config
from tokenize_jobs.job import prepare_job
from tokenize_jobs.plan import TokenizeConfig

config, sha256, kind = sys.argv[1:]
decoder = stages.make_decoder


def strange(*arguments):
    inner = decoder(*arguments)

    def decode(media):
        if hashlib.sha256(media.data).hexdigest() == sha256:
            if kind == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if kind == "hang":
                time.sleep(600)
            if kind == "hang with the lock":
                ctypes.PyDLL(None).sleep(600)
        return inner(media)

    return decode


stages.make_decoder = strange
job = prepare_job(load_config(Path(config), TokenizeConfig, ["cluster.sample_timeout_s=1"]))
row = job.units.to_table(job.todo[:1], task=0).to_pylist()[0]
for _ in range(9):
    # Importing once and forking for every worker, which begins as a new one would.
    worker = os.fork()
    if not worker:
        print(stages.EncodeRow([job.task])(stages.decode_row(row, [job.task]))["error"], flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    print(status, flush=True)
    if not status:
        break
"""


@pytest.mark.parametrize(
    ("kind", "reason", "deaths", "exit_code"),
    [
        ("hang", "decode_timeout", 1, EXIT_CODE),
        ("hang with the lock", "decode_crash", CAREFUL_FROM - 1 + DEATHS, 1),
        ("crash", "decode_crash", CAREFUL_FROM - 1 + DEATHS, -signal.SIGSEGV),
    ],
)
def test_the_sample_is_rejected_after_so_many_workers_and_the_others_are_written(
    tmp_path: Path, kind: str, reason: str, deaths: int, exit_code: int
):
    root, codec = write_corpus(tmp_path / "root"), write_codec(tmp_path / "codec.safetensors")
    path = write_config(tmp_path, root, codec, unit_items=4)
    output = load_config(path, TokenizeConfig).output
    command = [sys.executable, "-c", UNIT, str(path), hashlib.sha256(jpeg(2)).hexdigest(), kind]
    ended = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert ended.stdout.split() == [*[str(exit_code)] * deaths, "b''", "0"], ended.stderr
    assert not list((output / "ledger").glob("note-*.json"))
    (entry,) = read_entries(output)
    assert (entry.written, dict(entry.rejected)) == (3, {reason: 1})
    left_out = pq.read_table(output / "rejects" / "unit-000000.parquet").to_pylist()
    assert [(row["sample_id"], row["reason"]) for row in left_out] == [("laion2b/00000/000000002", reason)]


def samples(count: int) -> list[RawSample]:
    return [RawSample(f"s/{n}", "s", "train", (), Provenance("a.tar", str(n), n)) for n in range(count)]


def begin_and_die(output: Path, at: int) -> None:
    """A worker that is gone while it decodes one of the samples."""
    watchdog = Watchdog(output, 7, timeout_s=60)
    watchdog.__enter__()
    items = watchdog.watch(samples(5))
    for _ in range(at + 1):
        next(items)
    watchdog._stop.set()


def outcomes(output: Path) -> list[str]:
    with Watchdog(output, 7, timeout_s=60) as watchdog:
        return [type(item).__name__ for item in watchdog.watch(samples(5))]


def test_machines_lost_at_other_samples_reject_none(tmp_path: Path):
    for at in (3, 3, 2, 4, 0, 1, 3):
        begin_and_die(tmp_path, at)
    assert outcomes(tmp_path) == ["RawSample"] * 5
    begin_and_die(tmp_path, 3)
    assert outcomes(tmp_path) == ["RawSample", "RawSample", "RawSample", "Reject", "RawSample"]


def test_a_unit_that_ends_well_says_nothing_of_its_last_sample_and_is_forgotten_when_it_is_committed(tmp_path: Path):
    for _ in range(CAREFUL_FROM + 1):
        assert outcomes(tmp_path) == ["RawSample"] * 5
    (path,) = (tmp_path / "ledger").glob("note-*.json")
    note = json.loads(path.read_text(encoding="utf-8"))
    assert note == {"begun": CAREFUL_FROM + 1, "in_hand": "", "deaths": {}, "hanging": []}
    remove_note(tmp_path, 7)
    assert not path.exists()
    remove_note(tmp_path, 7)
