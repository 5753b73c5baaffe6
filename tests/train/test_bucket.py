"""Training from a bucket: the batches of a local disk, files fetched once a machine, no fault taken for data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import shards.storage
import train.stream
from configs.load import load_config
from shards.errors import AnyGPTError, ChecksumMismatch, ConfigError, DatasetError
from shards.manifest import Manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.storage import open_path
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes
from tests.fixtures.s3_server import environment, make_bucket, pointed_at, s3_server
from train.config import TrainConfig
from train.mix_cli import main as mix
from train.plan import Plan, describe, make_plan
from train.stream import RowStream

BUCKET = "packed"
LENGTH = 32
FILES = {"image": (5, 9, 4, 7, 6, 8), "speech": (11, 3, 6)}
STEPS = 12


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """Two datasets of several files, no two rows alike, and their mixture."""
    root = tmp_path_factory.mktemp("disk")
    for name, files in FILES.items():
        write(root / name, files, vocabulary, seed=len(name))
    (root / "mixture.toml").write_text("[shares]\nimage = 0.75\nspeech = 0.25\n", encoding="utf-8")
    return root


def write(folder: Path, files: tuple[int, ...], vocabulary: Vocabulary, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = []
    for number, count in enumerate(files):
        ids = rng.integers(3, vocabulary.size, (count, LENGTH))
        rows = [PackedRow(row, LENGTH, (0,), ((0, LENGTH),)) for row in ids]
        path = folder / f"shard-{number:05d}.arrow"
        entries.append(write_packed_shard(path, rows, vocabulary=vocabulary, sequence_length=LENGTH))
    extra = {"sequence_length": LENGTH}
    write_manifest(
        folder,
        Manifest(
            "packed",
            folder.name,
            f"{folder.name:0<16}",
            tuple(entries),
            FORMAT_VERSION,
            vocabulary=vocabulary,
            extra=extra,
        ),
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as url, pointed_at(url):
        make_bucket(BUCKET)
        yield url


@pytest.fixture
def bucket(url: str, disk: Path, request: pytest.FixtureRequest) -> Path:
    """The datasets in a store, in another folder for every test."""
    folder = open_path(f"s3://{BUCKET}/{request.node.name.replace('[', '/').rstrip(']')}")
    upload(disk, folder)
    return folder


def upload(disk: Path, folder: Path) -> None:
    for path in disk.rglob("*"):
        if path.is_file():
            commit_bytes(folder / path.relative_to(disk).as_posix(), path.read_bytes())


Make = Callable[..., Plan]


@pytest.fixture
def make(disk: Path, tmp_path: Path) -> Make:
    """The plan of a run over data in some folder."""

    def plan(data: Path, **changes: object) -> Plan:
        path = tmp_path / "run.toml"
        path.write_text(
            f'output = "{tmp_path}/run"\ndata = "{data}"\nmixture = "{disk}/mixture.toml"\nsteps = {STEPS}\n'
            f'batch_rows = 12\ncache_dir = "{tmp_path}/cache"\nshards_per_window = 2\n',
            encoding="utf-8",
        )
        sets = [f"{key}={value}" for key, value in changes.items()]
        return make_plan(load_config(path, TrainConfig, sets), where=str(path))

    return plan


def read(plan: Plan, steps: int = STEPS, **kwargs: int) -> list[np.ndarray]:
    """(rows, 1 + length) of each step: the dataset's index, then the ids."""
    batches = []
    with RowStream(plan.mixture, plan.datasets, batch_rows=12, attention="document", **kwargs) as stream:
        for _ in range(steps):
            batch = stream.next()
            batches.append(np.concatenate([batch.datasets[:, None], batch.token_ids.astype(np.int64)], axis=1))
    return batches


def equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all((one == other).all() for one, other in zip(left, right, strict=True))


def cached(tmp_path: Path) -> Counter[str]:
    """Files of a cache by what they end in."""
    return Counter(path.suffix for path in (tmp_path / "cache").glob("shard-*") if path.suffix != ".lock")


def test_a_bucket_is_read_as_a_disk_is_batch_by_batch(bucket: Path, disk: Path, make: Make, tmp_path: Path):
    here, there = make(disk, windows="all"), make(bucket)
    assert here.fingerprints == there.fingerprints
    straight = read(here)
    assert equal(read(there), straight)
    assert cached(tmp_path) == {".arrow": sum(map(len, FILES.values()))}
    assert equal(read(there, 4, first_step=9), straight[8:])
    parts = [read(there, 3, first_step=9, rank=rank, world_size=3) for rank in range(3)]
    for step in range(3):
        together = np.concatenate([part[step] for part in parts])
        assert Counter(map(tuple, together.tolist())) == Counter(map(tuple, straight[8 + step].tolist()))


def test_only_remote_datasets_are_read_through_windows_unless_all_are_to_be(bucket: Path, disk: Path, make: Make):
    assert set(make(bucket).mixture.windows) == set(FILES)
    local = make(disk)
    assert not local.mixture.windows and "windows" not in describe(local)
    assert local.mixture.fingerprint != make(bucket).mixture.fingerprint
    assert "windows      2 files at a time of image, speech" in describe(make(bucket))
    assert "at most 64 GiB" in describe(make(bucket))


def test_no_file_is_fetched_before_it_is_needed(bucket: Path, make: Make, tmp_path: Path):
    make(bucket, verify="open")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_smaller_than_a_window_gives_the_same_batches(
    bucket: Path, disk: Path, make: Make, tmp_path: Path
):
    size = max(path.stat().st_size for path in disk.rglob("*.arrow"))
    plan = make(bucket, cache_gib=size / (1 << 30))
    assert equal(read(plan, 3), read(make(disk, windows="all"), 3))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.arrow")) <= size


def test_files_that_are_read_no_more_are_let_go(bucket: Path, disk: Path, make: Make, monkeypatch: pytest.MonkeyPatch):
    """With a plan a step long, rows of several blocks and windows pass by."""
    monkeypatch.setattr(train.stream, "_PLANNED_ROWS", 12)
    plan, images = make(bucket, shards_per_window=1), len(FILES["image"])
    expected = read(make(disk, windows="all", shards_per_window=1))
    most = 0
    with RowStream(plan.mixture, plan.datasets, batch_rows=12, attention="document") as stream:
        for rows in expected:
            assert (stream.next().token_ids == rows[:, 1:]).all()
            most = max(most, len(plan.datasets[0]._open))
    assert 0 < most < images and not any(dataset._open for dataset in plan.datasets)


RANK = """
import sys, time
import numpy as np
from pathlib import Path
import shards.cache_folder as folder
from configs.load import load_config
from shards.mixed_rows import MixedRows
from train.config import TrainConfig
from train.plan import make_plan
path, rank, stall = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
fetched, download = [], folder._download
def counting(shard, file, stopped):
    fetched.append(f"{shard.path.parent.name}/{shard.path.stem}")
    if stall in str(shard.path):
        file.write(b"half")
        file.flush()
        print("stalled", flush=True)
        time.sleep(60)
    download(shard, file, stopped)
folder._download = counting
plan = make_plan(load_config(path, TrainConfig), where=str(path))
print("ready", flush=True)
sys.stdin.read(1)
mixed = MixedRows(plan.mixture, plan.datasets)
rows = mixed.plan(plan.mixture.batches(range(12), 12, rank=rank, world_size=3))
mixed.read_ahead([rows])
mixed.gather(rows, np.empty((len(rows), 32), np.uint16))
print(" ".join(fetched))
"""


def start(config: Path, rank: int, url: str, *, stall: str = "nothing") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(config), str(rank), stall]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment(url), **pipes)


def test_ranks_of_one_machine_fetch_every_shard_once(bucket: Path, make: Make, tmp_path: Path, url: str):
    make(bucket)
    ranks = [start(tmp_path / "run.toml", rank, url) for rank in range(3)]
    for rank in ranks:
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        rank.stdin.write("x")
        rank.stdin.flush()
    fetched = [rank.communicate(timeout=300)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    every = [f"{name}/shard-{number:05d}" for name, files in FILES.items() for number in range(len(files))]
    assert sorted(name for names in fetched for name in names) == sorted(every)


def test_a_rank_that_is_killed_in_a_download_leaves_a_cache_that_the_next_one_uses(
    bucket: Path, disk: Path, make: Make, tmp_path: Path, url: str
):
    plan = make(bucket)
    rank = start(tmp_path / "run.toml", 0, url, stall="image/shard-00003")
    try:
        assert rank.stdout.readline() == "ready\n"
        rank.stdin.write("x")
        rank.stdin.flush()
        assert rank.stdout.readline() == "stalled\n"
    finally:
        rank.send_signal(signal.SIGKILL)
        rank.communicate()
    assert cached(tmp_path)[".tmp"] >= 1
    assert equal(read(plan), read(make(disk, windows="all")))
    assert cached(tmp_path) == {".arrow": sum(map(len, FILES.values()))}


def test_a_flipped_byte_in_the_store_is_refused_and_names_the_object(bucket: Path, make: Make):
    path = bucket / "speech" / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    commit_bytes(path, bytes(data))
    with pytest.raises(
        ChecksumMismatch, match=r"s3://packed/.*/speech/shard-00001.arrow: expected .* bytes with sha256"
    ):
        read(make(bucket))


def test_a_shard_that_is_not_there_is_named(bucket: Path, make: Make):
    (bucket / "image" / "shard-00002.arrow").unlink()
    with pytest.raises(DatasetError, match=r"image/shard-00002.arrow: named in the manifest and not there"):
        read(make(bucket))


def test_a_store_that_goes_away_is_told(disk: Path, make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards.storage, "_OPTIONS", {"s3": {"config_kwargs": {"retries": {"max_attempts": 1}}}})
    with ExitStack() as server:
        url = server.enter_context(s3_server())
        with pointed_at(url):
            make_bucket(BUCKET)
            upload(disk, open_path(f"s3://{BUCKET}/x"))
            plan = make(open_path(f"s3://{BUCKET}/x"))
            server.close()
            with pytest.raises(ConfigError, match="expected an object store that answers"):
                read(plan)


def test_a_dataset_that_is_not_in_the_bucket_is_told_before_anything_is_read(bucket: Path, make: Make):
    with pytest.raises(ConfigError, match=r"'shares.image': expected a packed dataset in s3://packed/"):
        make(bucket / "elsewhere")
    with pytest.raises(AnyGPTError, match=r"s3://nowhere.*expected a bucket of that name"):
        make(open_path("s3://nowhere/x"))


def test_the_plan_of_a_mixture_reads_manifests_in_a_bucket(
    bucket: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make(bucket)
    assert mix([str(tmp_path / "run.toml"), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "image" in shown and f"{sum(FILES['image'])}" in shown
    assert not (tmp_path / "cache").exists()
