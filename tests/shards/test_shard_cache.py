"""Laws of the cache: every file once a machine and whole, a bound that is kept, nothing left behind, no error lost."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.cache_folder
import shards.shard_cache
from shards.cache_folder import CacheFolder, RemoteShard
from shards.errors import ChecksumMismatch, ConfigError, DatasetError
from shards.shard_cache import ShardCache, default_folder


def put(store: Path, name: str, data: bytes) -> RemoteShard:
    """A shard in a store; a folder of this machine will do, for a cache only reads from it."""
    store.mkdir(exist_ok=True)
    path = store / f"{name}.arrow"
    path.write_bytes(data)
    return RemoteShard(path, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> Callable[[int, int], list[RemoteShard]]:
    return lambda count, size: [put(tmp_path / "store", f"s{n}", bytes([n]) * size) for n in range(count)]


def until(happened: Callable[[], bool]) -> None:
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


def test_a_shard_is_fetched_once_and_is_what_the_store_has(store, tmp_path: Path):
    (shard,) = store(1, 1000)
    cache = ShardCache(tmp_path / "cache")
    path = cache.get(shard)
    assert path.read_bytes() == shard.path.read_bytes()
    shard.path.unlink()
    assert cache.get(shard) == ShardCache(tmp_path / "cache").get(shard) == path


@given(
    steps=st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 7), max_size=5)), max_size=12),
    bound=st.integers(1, 400),
)
@settings(max_examples=40, deadline=None)
def test_the_bound_is_kept_and_every_file_is_right_whatever_is_asked(
    steps: list[tuple[bool, list[int]]], bound: int, tmp_path_factory: pytest.TempPathFactory
):
    """With one process; a single file that is larger than the bound is kept as long as it is needed."""
    root = tmp_path_factory.mktemp("cache")
    every = [put(root / "store", f"s{n}", bytes([n]) * (20 * n + 10)) for n in range(8)]
    cache = ShardCache(root / "cache", max_bytes=bound, threads=1)
    cache._warned = True
    for ahead, numbers in steps:
        if ahead:
            cache.read_ahead([every[number] for number in numbers])
            continue
        for number in numbers:
            assert cache.get(every[number]).read_bytes() == every[number].path.read_bytes()
            files = CacheFolder(root / "cache", bound)
            with files._room():
                used = files.used_bytes()
            assert used <= max(bound, every[number].num_bytes)
    cache.close()


def test_what_was_used_longest_ago_goes_first_and_what_is_held_stays(store, tmp_path: Path):
    a, b, c, d = store(4, 100)
    files = CacheFolder(tmp_path / "cache", 300)
    for age, shard in enumerate((b, a, c)):
        held = files.hold(shard)
        os.utime(held.lock, (age, age))
        held.release()
    held = files.hold(b)
    os.utime(held.lock, (0, 0))
    files.hold(d).release()
    assert {path.name for path in (tmp_path / "cache").glob("*.arrow")} == {shard.name for shard in (b, c, d)}


def test_what_is_let_go_is_told_to_its_reader_and_fetched_again(store, tmp_path: Path, caplog):
    """A bound that is smaller than what rows are read from by turns works, and says what would be better."""
    every = store(4, 1 << 20)
    cache, dropped = ShardCache(tmp_path / "cache", max_bytes=2 << 20), list[str]()
    cache.read_ahead(every)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for shard in every:
                path = cache.get(shard, drop=lambda shard=shard: dropped.append(shard.name))
                assert path.read_bytes() == shard.path.read_bytes()
    assert dropped and {shard.name for shard in every} >= set(dropped)
    assert len(caplog.records) == 1 and "set cache_gib to 1 or more" in caplog.text


def test_what_is_read_is_needed_sooner_than_what_was_fetched_ahead(store, tmp_path: Path):
    now, soon, other, late = store(4, 100)
    cache = ShardCache(tmp_path / "cache", max_bytes=300, threads=1)
    dropped: list[str] = []
    for shard in (now, soon, late):
        cache.get(shard, drop=lambda shard=shard: dropped.append(shard.path.stem))
    cache.read_ahead([now, soon, other, late])
    cache.get(other)
    assert dropped == ["s3"]
    cache.close()
    assert dropped == ["s3", "s0", "s1"]


def test_threads_fetch_ahead_in_order_and_within_the_bound(store, tmp_path: Path):
    every = store(6, 100)
    cache = ShardCache(tmp_path / "cache", max_bytes=400, threads=2)
    cache.read_ahead(every)
    until(lambda: all((cache.folder / shard.name).is_file() for shard in every[:4]))
    time.sleep(0.1)
    assert not any((cache.folder / shard.name).exists() for shard in every[4:])
    # Two are done with, so two more come.
    cache.read_ahead(every[2:])
    until(lambda: all((cache.folder / shard.name).is_file() for shard in every[2:]))
    assert CacheFolder(cache.folder, 400).used_bytes() == 400
    cache.close()
    until(lambda: not cache._threads)


def test_a_file_that_is_held_is_not_evicted_by_others_and_one_they_need_goes_beyond(store, tmp_path: Path, caplog):
    a, b = store(2, 100)
    mine, other = (ShardCache(tmp_path / "cache", max_bytes=150) for _ in range(2))
    path = mine.get(a)
    assert other.get(b).is_file() and path.is_file()
    assert "fetched again and again" in caplog.text
    mine.close()
    # The next one that fetches brings it back below the bound.
    other.close()
    (c,) = [put(tmp_path / "store", "c", b"c" * 100)]
    assert other.get(c).is_file()
    assert CacheFolder(tmp_path / "cache", 150).used_bytes() == 100


GETS = """
import sys, time
from pathlib import Path
import shards.cache_folder as folder
from shards.shard_cache import ShardCache
fetched, download = [], folder._download
def counting(shard, file, stopped):
    fetched.append(shard.path.stem)
    time.sleep(0.05)
    download(shard, file, stopped)
folder._download = counting
cache = ShardCache(Path(sys.argv[1]))
every = [folder.RemoteShard(Path(p), int(n), s) for p, n, s in (line.split() for line in sys.argv[2].splitlines())]
sys.stdin.read(1)
cache.read_ahead(every)
for shard in every:
    assert cache.get(shard).stat().st_size == shard.num_bytes
print(" ".join(fetched))
"""


def test_processes_that_start_together_fetch_every_shard_once(store, tmp_path: Path):
    every = store(8, 1000)
    lines = "\n".join(f"{shard.path} {shard.num_bytes} {shard.sha256}" for shard in every)
    command = [sys.executable, "-c", GETS, str(tmp_path / "cache"), lines]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.write("x")
        process.stdin.close()
        process.stdin = None
    fetched = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(name for names in fetched for name in names) == sorted(shard.path.stem for shard in every)


DIES = """
import sys, time
from pathlib import Path
from shards.cache_folder import CacheFolder, RemoteShard
def wait():
    print("half", flush=True)
    time.sleep(60)
CacheFolder(Path(sys.argv[1]), 10_000).hold(RemoteShard(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]), stopped=wait)
"""


@pytest.mark.parametrize("same", [True, False], ids=["the-same-shard", "another-shard"])
def test_what_a_killed_process_leaves_is_removed_by_the_next(store, tmp_path: Path, same: bool):
    left, other = store(2, 6000)
    arguments = [str(tmp_path / "cache"), str(left.path), str(left.num_bytes), left.sha256]
    process = subprocess.Popen([sys.executable, "-c", DIES, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"half\n"
        assert [path.suffix for path in (tmp_path / "cache").glob("s*")].count(".tmp") == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shard = left if same else other
    cache = ShardCache(tmp_path / "cache", max_bytes=10_000)
    assert cache.get(shard).read_bytes() == shard.path.read_bytes()
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_mapped_file_survives_its_eviction_and_the_folder_itself(store, tmp_path: Path):
    a, b = store(2, 5000)
    cache = ShardCache(tmp_path / "cache", max_bytes=5000)
    cache._warned = True
    with cache.get(a).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cache.get(b)
    assert not (cache.folder / a.name).exists()
    assert mapped[:] == a.path.read_bytes()


def test_files_of_others_are_neither_counted_nor_removed(store, tmp_path: Path):
    every = store(3, 100)
    theirs = tmp_path / "cache" / "thesis.arrow"
    theirs.parent.mkdir()
    theirs.write_bytes(bytes(5000))
    cache = ShardCache(tmp_path / "cache", max_bytes=150)
    cache._warned = True
    for shard in every:
        cache.get(shard)
    assert theirs.stat().st_size == 5000 and CacheFolder(cache.folder, 150).used_bytes() == 100


# What goes wrong


@pytest.mark.parametrize("damage", [lambda d: d[:9] + b"!" + d[10:], lambda d: d[:-1], lambda d: d + b"!"])
@pytest.mark.parametrize("ahead", [True, False])
def test_other_bytes_than_were_packed_are_refused_and_not_kept(store, tmp_path: Path, damage, ahead: bool):
    (shard,) = store(1, 1000)
    good = shard.path.read_bytes()
    shard.path.write_bytes(damage(good))
    cache = ShardCache(tmp_path / "cache")
    if ahead:
        cache.read_ahead([shard])
        until(lambda: bool(cache._failed))
    with pytest.raises(
        ChecksumMismatch, match=r"s0.arrow: expected 1,000 bytes with sha256 .*copy it there again"
    ) as error:
        cache.get(shard)
    assert isinstance(error.value.__cause__, ChecksumMismatch) == ahead
    assert not list(cache.folder.glob("s0*.arrow*.tmp")) and not (cache.folder / shard.name).exists()
    # It was told once; what is then asked for is what the store has by then.
    shard.path.write_bytes(good)
    assert cache.get(shard).read_bytes() == good


def test_an_error_ahead_of_what_is_never_read_concerns_nobody(store, tmp_path: Path):
    good, bad = store(2, 100)
    bad.path.unlink()
    cache = ShardCache(tmp_path / "cache")
    cache.read_ahead([bad, good])
    until(lambda: bool(cache._failed))
    assert cache.get(good).is_file()
    with pytest.raises(DatasetError, match=r"s1.arrow: named in the manifest and not there"):
        cache.get(bad)


def test_a_fault_of_ours_in_a_thread_reaches_the_caller_too(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (shard,) = store(1, 100)
    cache = ShardCache(tmp_path / "cache")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    with monkeypatch.context() as patch:
        patch.setattr(shards.cache_folder, "_download", broken)
        cache.read_ahead([shard])
        until(lambda: bool(cache._failed))
    with pytest.raises(DatasetError, match="ZeroDivisionError") as error:
        cache.get(shard)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_full_disk_is_told_before_the_download_starts(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (shard,) = store(1, 1000)
    monkeypatch.setattr(shards.cache_folder, "disk_usage", lambda folder: SimpleNamespace(free=999))
    with pytest.raises(ConfigError, match=r"expected 1,000 bytes of room .* found 999; free some, or set cache_dir"):
        ShardCache(tmp_path / "cache").get(shard)
    assert not list((tmp_path / "cache").glob("s0*.tmp"))


def test_a_disk_that_fills_up_meanwhile_is_told(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a quota does it, of which nobody tells how much is left."""
    (shard,) = store(1, 1000)

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"quota exceeded.*set cache_dir to a larger disk"):
        ShardCache(tmp_path / "cache").get(shard)
    assert not list((tmp_path / "cache").glob("s0*.tmp"))


def test_a_disk_that_is_smaller_than_the_bound_is_the_bound(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a, b, c = store(3, 100)
    cache = ShardCache(tmp_path / "cache")
    usage = lambda folder: SimpleNamespace(free=250 - CacheFolder(tmp_path / "cache", 0).used_bytes())  # noqa: E731
    monkeypatch.setattr(shards.cache_folder, "disk_usage", usage)
    for shard in (a, b, c):
        assert cache.get(shard).is_file()
        cache.read_ahead([])
    assert CacheFolder(cache.folder, 0).used_bytes() == 200


def test_a_folder_that_cannot_be_made_is_told(store, tmp_path: Path):
    (shard,) = store(1, 10)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set cache_dir to another"):
        ShardCache(tmp_path / "file" / "cache").get(shard)


def test_the_folder_is_the_users_or_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "anygpt" / "shards"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_folder().parts[-2:] == ("anygpt", "shards") and not default_folder().is_relative_to(tmp_path / "x")


def test_one_who_waits_for_a_download_does_not_wait_for_those_who_read_it(store, tmp_path: Path):
    """A reader keeps its lock for as long as it reads; a waiting second one must get the file all the same."""
    (shard,) = store(1, 100)
    files = CacheFolder(tmp_path / "cache", 1000)
    started, found = threading.Event(), []

    def slow() -> bool:
        started.set()
        time.sleep(0.2)
        return False

    first = threading.Thread(target=lambda: found.append(files.hold(shard, stopped=slow)))
    first.start()
    started.wait(5)
    others = [threading.Thread(target=lambda: found.append(files.hold(shard))) for _ in range(5)]
    for other in others:
        other.start()
    for thread in (first, *others):
        thread.join(5)
    assert len(found) == 6 and len({held.path for held in found}) == 1
    lock = os.open(tmp_path / "cache" / f"{shard.name}.lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for held in found:
        held.release()
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
