"""From a bucket to a bucket: the same command, the same bytes as from a folder to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.reading.outcomes import Outcome
from pipeline.samples import RawMedia, RawSample
from shards.cli import verify
from shards.lease import LEASE_NAME
from shards.sample_reader import read_samples
from shards.storage import list_files, open_path
from shards.writer import commit_bytes
from tests.fixtures.miniature_corpora import BUILDERS
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server
from tests.tokenize_jobs import test_packing_job as packing
from tests.tokenize_jobs.test_tokenize_job import CORPUS, write_codec, write_config, write_corpus
from tokenize_jobs.cli import tokenize
from tokenize_jobs.dataset_report import TIMED_NAMES
from tokenize_jobs.packing_cli import pack
from tokenize_jobs.session import ray_session

BUCKET = "s3://bucket"
samples = packing.inputs
"""A fixture: a text tokenizer and two datasets of sample shards."""


@pytest.fixture(scope="module")
def store(no_ray_here: None) -> Iterator[None]:
    """A server, and a Ray that was started when its address was known, as a user's is."""
    with s3_server() as url, pointed_at(url):
        make_bucket("bucket")
        with ray_session(workers=2):
            yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, store: None) -> Path:
    """A corpus in a folder and in the bucket, tokenized from folder to folder."""
    folder = tmp_path_factory.mktemp("remote")
    root = write_corpus(folder / "root", shards=2, pictures=5)
    upload(root, open_path(f"{BUCKET}/corpus"))
    path = write_config(folder, root, write_codec(folder / "codec.safetensors"), unit_items=3)
    assert tokenize([str(path)]) == 0
    return path


def upload(root: Path, to: Path) -> None:
    for name in list_files(root):
        commit_bytes(to / name, (root / name).read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder) if name not in TIMED_NAMES}


@pytest.mark.slow
def test_a_corpus_in_a_bucket_becomes_the_same_dataset_in_a_bucket(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(config.parent)  # logs of remote datasets lie in the working directory
    output = f"{BUCKET}/out/{CORPUS}"
    command = [str(config), "--set", f"root={BUCKET}/corpus", "--set", f"output={output}", "--set", "workers=2"]
    local, remote = config.parent / "out" / CORPUS, open_path(output)
    # What a run that was killed there has left: facts and one unit, which is not done again.
    begun = [name for name in contents(local) if name == "ledger/facts.json" or "unit-000000." in name]
    for name in begun:
        commit_bytes(remote / name, (local / name).read_bytes())
    times = {name: (remote / name).stat().st_mtime for name in begun}
    assert len(begun) >= 3

    assert tokenize(command) == 0
    assert contents(remote) == contents(local)
    assert {name: (remote / name).stat().st_mtime for name in begun} == times
    assert LEASE_NAME not in list_files(remote)

    everything = {name: (remote / name).stat().st_mtime for name in list_files(remote)}
    assert tokenize(command) == 0
    assert everything == {name: (remote / name).stat().st_mtime for name in list_files(remote)}, (
        "nothing was to be done"
    )

    assert [s.sample_id for s in read_samples(remote)] == [s.sample_id for s in read_samples(local)]
    capsys.readouterr()
    assert verify([output]) == 0
    assert "whole" in capsys.readouterr().out


def test_a_run_that_finds_another_one_writing_says_who(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = open_path(f"{BUCKET}/busy")
    lease = b'{"host": "node7", "processes": "", "pid": 42, "token": "x", "renewals": 3}'
    commit_bytes(output / LEASE_NAME, lease)
    assert tokenize([str(config), "--set", f"output={output}"]) == 1
    assert "process 42 of node7" in capsys.readouterr().err
    assert list_files(output) == {LEASE_NAME: len(lease)}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("root", "s3://nowhere/x", "expected a bucket of that name"),
        ("root", f"{BUCKET}/nothing", "found nothing"),
        ("output", "s3://nowhere/x", "expected a bucket of that name"),
        ("output", "ftp://host/x", "found ftp://"),
    ],
)
def test_a_wrong_place_is_said_before_anything_runs(
    config: Path, key: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokenize([str(config), "--set", f"{key}={value}"]) == 2
    assert says in capsys.readouterr().err


def test_samples_in_a_bucket_are_packed_into_the_same_rows(
    samples: Path, tmp_path: Path, store: None, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    remote = [f'datasets.{name}.path="{BUCKET}/samples/{name}"' for name in ("pictures", "speech")]
    for name in ("pictures", "speech"):
        upload(samples / name, open_path(f"{BUCKET}/samples/{name}"))
    assert pack(packing.arguments(samples, tmp_path / "local", tmp_path / "local.toml")) == 0
    assert pack(packing.arguments(samples, tmp_path / "from", tmp_path / "from.toml", *remote)) == 0
    assert packing.contents(tmp_path / "from") == packing.contents(tmp_path / "local")


def test_packed_shards_stay_on_this_machine(
    samples: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    assert pack(packing.arguments(samples, tmp_path, tmp_path / "c.toml", f"output={BUCKET}/packed")) == 2
    assert "expected a folder on this machine" in capsys.readouterr().err


def read_all(name: str, root: Path) -> list[Outcome]:
    reader = load_corpus(CorpusConfig(corpus=name, root=root, output=Path("unused")))
    return [with_bytes(result) for source in reader.sources() for result in reader.read(source)]


def with_bytes(result: Outcome) -> Outcome:
    """A result without paths, which differ; what lies there must not."""
    if not isinstance(result, RawSample):
        return result
    segments = (
        replace(s, data=s.path.read_bytes(), path=None) if isinstance(s, RawMedia) and s.path is not None else s
        for s in result.segments
    )
    return replace(result, segments=tuple(segments))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_reader_yields_the_same_from_a_bucket(name: str, tmp_path: Path, store: None) -> None:
    """Broken inputs included: a missing medium is a reject there too."""
    BUILDERS[name](tmp_path)
    remote = open_path(f"{BUCKET}/readers/{name}")
    upload(tmp_path, remote)
    assert read_all(name, remote) == read_all(name, tmp_path)
