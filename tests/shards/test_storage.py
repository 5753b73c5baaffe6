"""Folders on this machine and in a real S3 server: the same words, whole objects only, no fault taken for damage."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards.storage
from pipeline.reading.shard_index import index_shard, open_shard, read_member
from shards.errors import ConfigError, DatasetError
from shards.reader import open_packed
from shards.storage import (
    PART_BYTES,
    arrow_source,
    check_access,
    file_system,
    is_remote,
    list_files,
    match_files,
    open_path,
    open_random,
)
from shards.writer import commit_bytes, commit_file, commit_table, remove_temporaries
from tests.fixtures.s3_server import StallingProxy, environment, make_bucket, pointed_at, s3_server

BUCKET = "bucket"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as url, pointed_at(url):
        make_bucket(BUCKET)
        yield url


@pytest.fixture
def remote(url: str, request: pytest.FixtureRequest) -> Path:
    """A folder of a bucket, another one for every test."""
    return open_path(f"s3://{BUCKET}/{request.node.name.replace('[', '/').rstrip(']')}")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "here" if request.param == "local" else request.getfixturevalue("remote")


# Text to path


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda t: "://" not in t))
def test_text_without_a_scheme_is_the_path_it_always_was(text: str) -> None:
    if not re.match("[A-Za-z][A-Za-z0-9+.-]+:/", text):
        assert open_path(text) == Path(text) and not is_remote(open_path(text))


def test_local_paths_load_no_library_of_object_stores() -> None:
    """A run on local files pays nothing."""
    code = (
        "import sys; from shards.writer import commit_bytes; from shards.storage import open_path, list_files;"
        "from shards.lease import exclusive_writer; from configs.load import StoredPath; open_path('file:///x');"
        "print([name for name in sys.modules if name.split('.')[0] in {'fsspec', 'upath', 's3fs', 'botocore'}])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # pyarrow.parquet brings fsspec's registry, where fsspec is installed; nothing of a store comes with it.
    assert "s3fs" not in found.stdout and "botocore" not in found.stdout and "upath" not in found.stdout


def test_a_file_url_is_a_plain_local_path() -> None:
    assert open_path("file:///data/a%20b") == Path("/data/a b")
    with pytest.raises(ConfigError, match="host 'nas'"):
        open_path("file://nas/x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://host/x", "found http://"),
        ("az://box/x", "found az://"),
        ("s3:/bucket/x", "write two"),
        ("s3:///x", "no bucket"),
    ],
)
def test_what_is_no_place_for_data_is_an_error_that_says_why(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_path(text)


def test_a_store_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"library s3fs.*pip install .*\[s3\]"):
        open_path("s3://bucket/x")


def test_remote_paths_travel_between_processes_and_back_to_text(remote: Path) -> None:
    path = remote / "a" / "b.bin"
    assert pickle.loads(pickle.dumps(path)) == path == open_path(str(path))
    assert path.relative_to(remote).as_posix() == "a/b.bin"
    assert type(path / "c") is type(path)


# One vocabulary for both


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}\.(bin|txt)", fullmatch=True), st.binary(max_size=40), max_size=6
    )
)
def test_what_is_committed_is_found_listed_and_read_alike_on_both_sides(
    files: dict[str, bytes], remote: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = tmp_path_factory.mktemp("local")
    remote = remote / local.name
    for name, data in files.items():
        assert commit_bytes(local / name, data) == commit_bytes(remote / name, data)
    assert list_files(local) == list_files(remote) == {name: len(data) for name, data in files.items()}
    for pattern in ("*.bin", "a/*.txt", "a*", "nothing"):
        names = [{path.relative_to(f).as_posix() for path in match_files(f, [pattern])} for f in (local, remote)]
        assert names[0] == names[1]
    for name, data in files.items():
        path = remote / name
        assert path.read_bytes() == data and path.stat().st_size == len(data)
        assert path.is_file() and path.parent.is_dir() and not path.is_dir()
        with path.open("rb") as file, open_random(path) as other:
            assert file.read() == data == other.read()
    assert not (remote / "none").exists() and not (remote / "none").is_file()
    with pytest.raises(FileNotFoundError):
        (remote / "none").read_bytes()


def test_a_folder_holds_no_file_of_one_whose_name_begins_alike(folder: Path) -> None:
    commit_bytes(folder / "a" / "x.bin", b"1")
    commit_bytes(folder / "ab" / "x.bin", b"12")
    assert list_files(folder / "a") == {"x.bin": 1}
    assert match_files(folder / "a", ["*"]) == {folder / "a" / "x.bin"}
    assert [path.name for path in (folder / "a").iterdir()] == ["x.bin"]


def test_text_is_decoded_as_from_a_local_file(folder: Path) -> None:
    commit_bytes(folder / "t.csv", "\ufeffa,b\r\nä,ö\r\n".encode())
    with (folder / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(file) == ["a,b\r\n", "ä,ö\r\n"]
    assert (folder / "t.csv").read_text(encoding="utf-8-sig") == "a,b\nä,ö\n"


def test_tables_come_back_as_they_were_and_an_object_can_be_replaced_and_removed(folder: Path) -> None:
    path = folder / "t.parquet"
    for rows in (1000, 10):
        table = pa.table({"x": np.arange(rows)})
        commit_table(path, table, writer=".me")
        assert pq.read_table(arrow_source(path)).equals(table)
    path.unlink()
    path.unlink(missing_ok=True)
    assert list_files(folder) == {}
    with pytest.raises(FileNotFoundError):
        path.unlink()


def test_files_written_piece_by_piece_are_refused_in_a_store(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local folder"):
        commit_file(tmp_path / "x", remote / "x")
    with pytest.raises(ConfigError, match="commit_bytes"):
        (remote / "x").open("wb")
    with pytest.raises(ConfigError, match="packed shards"):
        open_packed(remote)


# Nothing half-written


WRITER = """
import sys
from shards.storage import open_path
from shards.writer import commit_bytes
commit_bytes(open_path(sys.argv[1]), bytes(int(sys.argv[2])))
"""


@pytest.mark.parametrize("size", [PART_BYTES + 1, 3 * PART_BYTES], ids=["one-request", "multipart"])
def test_a_writer_killed_in_the_middle_of_an_upload_leaves_nothing_visible(url: str, remote: Path, size: int) -> None:
    proxy = StallingProxy(int(url.rpartition(":")[2]), limit=PART_BYTES // 2)
    before = commit_bytes(remote / "other.bin", b"other")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(remote / "big.bin"), str(size)], env=os.environ | environment(proxy.url)
    )
    try:
        assert proxy.stalled.wait(60), "the upload did not get that far"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        proxy.close()
    assert list_files(remote) == {"other.bin": 5}
    assert not (remote / "big.bin").exists()
    assert before == commit_bytes(remote / "other.bin", b"other")
    remove_temporaries(remote)
    # The next run does it again, over whatever the store keeps of the upload.
    data = bytes(size)
    commit_bytes(remote / "big.bin", data)
    assert (remote / "big.bin").read_bytes() == data


def test_bytes_that_are_not_those_that_were_sent_are_noticed(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system is the real one; between PUT and read-back, somebody else writes."""
    path, fs = remote / "x.bin", file_system(remote)
    info = fs.info

    def overwritten(key: str) -> dict[str, object]:
        fs.pipe_file(key, b"other")
        return info(key)

    monkeypatch.setattr(fs, "info", overwritten)
    with pytest.raises(DatasetError, match="just written"):
        commit_bytes(path, b"mine!")


# What a store refuses


def test_a_missing_bucket_is_an_error_that_names_it(url: str) -> None:
    path = open_path("s3://nowhere/x")
    for act in (lambda: check_access(path), lambda: commit_bytes(path / "y", b"1")):
        with pytest.raises(ConfigError, match=r"s3://nowhere.*expected a bucket"):
            act()


def test_a_denied_request_is_no_missing_file(tmp_path: Path) -> None:
    """A medium that may not be read must stop the run, not become a reject."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as denied, pointed_at(denied):
        path = open_path(f"s3://{BUCKET}/x.bin")
        acts = (path.is_file, path.stat, path.read_bytes, lambda: check_access(path), lambda: list(path.iterdir()))
        for act in acts:
            with pytest.raises(ConfigError, match="credentials"):
                act()


def test_nobody_answering_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.storage, "_OPTIONS", {"s3": {"config_kwargs": {"retries": {"max_attempts": 1}}}})
    with pointed_at("http://127.0.0.1:9"), pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        open_path(f"s3://{BUCKET}/x.bin").is_file()


def test_lost_connections_are_tried_again(url: str) -> None:
    proxy = StallingProxy(int(url.rpartition(":")[2]), limit=1 << 30, drop=3)
    with pointed_at(proxy.url):
        path = open_path(f"s3://{BUCKET}/retried.bin")
        commit_bytes(path, b"in the end")
        proxy.to_drop = 1
        assert path.read_bytes() == b"in the end"
    assert proxy.to_drop == 0
    proxy.close()


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"default_block_size": 1 << 20, "config_kwargs": {"retries": {"max_attempts": 1}}}
    monkeypatch.setattr(shards.storage, "_OPTIONS", {"s3": options})


def test_a_store_that_goes_away_is_no_damaged_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every sample behind that place would become a reject."""
    small_blocks(monkeypatch)
    with ExitStack() as server:
        url = server.enter_context(s3_server())
        with pointed_at(url):
            make_bucket(BUCKET)
            path = open_path(f"s3://{BUCKET}/x.tar")
            commit_bytes(path, tar_of(20, 300_000))
            with open_random(path) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
                server.close()
                with pytest.raises(ConfigError, match="expected an object store that answers"):
                    index_shard(archive)


def test_a_store_that_goes_away_is_no_damaged_table(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    with ExitStack() as server:
        url = server.enter_context(s3_server())
        with pointed_at(url):
            make_bucket(BUCKET)
            path = open_path(f"s3://{BUCKET}/x.parquet")
            commit_table(path, pa.table({"x": [os.urandom(100_000) for _ in range(60)]}))
            with open_random(path) as file, pq.ParquetFile(file) as table:
                server.close()
                with pytest.raises(ConfigError, match="expected an object store that answers"):
                    table.read()


def test_an_archive_that_the_temporary_disk_cannot_hold_is_an_error(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_bytes(remote / "x.tar", bytes(4096))
    monkeypatch.setattr(shards.storage, "disk_usage", lambda folder: SimpleNamespace(free=4095))
    with pytest.raises(ConfigError, match="set TMPDIR"), open_random(remote / "x.tar"):
        pass


# What reading costs


@pytest.fixture
def fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counts requests for parts of objects, and the bytes they asked for."""
    count = SimpleNamespace(requests=0, bytes=0)
    kind = type(file_system(open_path(f"s3://{BUCKET}/x")))
    call = kind._call_s3

    async def counting(self: object, method: str, *args: object, **options: object) -> object:
        if method == "get_object":
            first, last = str(options["Range"]).removeprefix("bytes=").split("-")
            count.requests += 1
            count.bytes += int(last) - int(first) + 1
        return await call(self, method, *args, **options)

    monkeypatch.setattr(kind, "_call_s3", counting)
    return count


def tar_of(members: int, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(members):
            info = tarfile.TarInfo(f"{number:05d}.jpg")
            info.size = size
            archive.addfile(info, io.BytesIO(bytes([number % 256]) * size))
    return buffer.getvalue()


@pytest.mark.parametrize("stop", [120, 12], ids=["all", "a-tenth"])
def test_a_unit_fetches_no_byte_of_an_archive_twice(remote: Path, fetched: SimpleNamespace, stop: int) -> None:
    """The index reads every header, and the samples come after that."""
    data = tar_of(120, 300_000)
    commit_bytes(remote / "x.tar", data)
    fetched.requests = fetched.bytes = 0
    with open_shard(remote / "x.tar") as (archive, entries):
        assert archive is not None and len(entries) == 120
        for number, entry in enumerate(entries[:stop]):
            assert read_member(archive, entry.members["jpg"]) == bytes([number % 256]) * 300_000
    assert fetched.bytes <= 1.1 * len(data)
    assert fetched.requests <= len(data) / shards.storage.BLOCK_BYTES + 2


def test_reading_from_start_to_end_fetches_every_byte_once(remote: Path, fetched: SimpleNamespace) -> None:
    data = os.urandom(20 << 20)
    commit_bytes(remote / "x.bin", data)
    fetched.requests = fetched.bytes = 0
    with (remote / "x.bin").open("rb") as file:
        assert b"".join(iter(lambda: file.read(1 << 16), b"")) == data
    assert fetched.bytes <= 1.1 * len(data)
    assert fetched.requests <= 4
