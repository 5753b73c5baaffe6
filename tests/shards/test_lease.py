"""One writer at a time in a folder of this machine and in one of a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import DatasetError
from shards.lease import LEASE_NAME, exclusive_writer
from shards.storage import list_files, open_path
from shards.writer import commit_bytes
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[Path]:
    with s3_server() as url, pointed_at(url):
        make_bucket("bucket")
        yield open_path("s3://bucket")


@pytest.fixture
def remote(bucket: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of a bucket, another one for every test."""
    return bucket / request.node.name.partition("[")[0]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "here" if request.param == "local" else request.getfixturevalue("remote")


def test_a_second_writer_is_refused_and_the_first_leaves_nothing_behind(folder: Path) -> None:
    with exclusive_writer(folder), pytest.raises(DatasetError, match="no other run"), exclusive_writer(folder):
        pass
    with exclusive_writer(folder):
        pass
    assert list_files(folder) == {}


def write_lease(folder: Path, **facts: object) -> None:
    holder = {"host": "elsewhere", "processes": "other boot", "pid": 1, "token": "t", "renewals": 0} | facts
    commit_bytes(folder / LEASE_NAME, json.dumps(holder).encode())


def test_a_lease_of_another_machine_is_taken_over_when_it_is_old_and_not_before(remote: Path) -> None:
    write_lease(remote)
    with pytest.raises(DatasetError, match="process 1 of elsewhere"), exclusive_writer(remote):
        pass
    time.sleep(1.1)  # the store's times have whole seconds
    with exclusive_writer(remote, stale_s=0.05):
        assert json.loads((remote / LEASE_NAME).read_text())["pid"] == os.getpid()
    assert list_files(remote) == {}


def test_a_lease_that_is_renewed_is_never_old(remote: Path) -> None:
    with exclusive_writer(remote, renew_s=0.2, stale_s=2.5):
        time.sleep(3.5)
        assert json.loads((remote / LEASE_NAME).read_text())["renewals"] >= 5
        with pytest.raises(DatasetError, match="no other run"), exclusive_writer(remote, stale_s=2.5):
            pass


def test_a_writer_that_lost_its_lease_notices_and_leaves_it_to_the_other(remote: Path) -> None:
    with exclusive_writer(remote, renew_s=0.1):
        write_lease(remote, token="theirs")
        time.sleep(0.5)
        assert json.loads((remote / LEASE_NAME).read_text())["token"] == "theirs"
    assert json.loads((remote / LEASE_NAME).read_text())["token"] == "theirs"


HOLDER = """
import sys, time
from shards.storage import open_path
from shards.lease import exclusive_writer
with exclusive_writer(open_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(folder: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(DatasetError, match="no other run"), exclusive_writer(folder):
        pass
    holder.kill()
    holder.wait()
    with exclusive_writer(folder):
        pass


def test_of_many_writers_that_start_at_once_one_gets_the_lease(remote: Path) -> None:
    code = HOLDER.replace("time.sleep(60)", "sys.stdin.read()")
    several = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(remote)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    deadline = time.monotonic() + 60
    while sum(one.poll() is None for one in several) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    said = [one.communicate("")[0] for one in several]
    assert sorted(said) == ["", "", "held\n"]
