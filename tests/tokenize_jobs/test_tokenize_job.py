"""Stage A on Ray: the same bytes for any number of workers, after any interruption, and no byte changed by a second run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.tokenizers.compact import save_family
from pipeline.tokenizers.compact_image import MASK
from shards.manifest import read_manifest
from shards.records import table_to_samples
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from tokenize_jobs.cli import tokenize
from tokenize_jobs.dataset_report import TIMED_NAMES
from tokenize_jobs.log import log_path

CORPUS = "laion2b"
PICTURES, BROKEN, UNCAPTIONED = 44, 3, 2


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def jpeg(number: int) -> bytes:
    """A picture of a few coloured blocks, different for every number."""
    blocks = np.random.Generator(np.random.PCG64(number)).integers(256, size=(4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((80, 64), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_corpus(root: Path, *, shards: int = 2, pictures: int = PICTURES // 2) -> Path:
    """An img2dataset folder; the last shard ends with broken and uncaptioned samples."""
    root.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as archive:
            for number in range(pictures):
                key = f"{shard:05d}{number:04d}"
                add_member(archive, f"{key}.jpg", jpeg(shard * pictures + number))
                add_member(archive, f"{key}.txt", f"picture number {number} of shard {shard}".encode())
                add_member(archive, f"{key}.json", json.dumps({"punsafe": 0.9 if number == 5 else 0.1}).encode())
            for number in range(BROKEN if shard == shards - 1 else 0):
                add_member(archive, f"{shard:05d}8{number:03d}.jpg", jpeg(number)[:200])
                add_member(archive, f"{shard:05d}8{number:03d}.txt", b"half a picture")
            for number in range(UNCAPTIONED if shard == shards - 1 else 0):
                add_member(archive, f"{shard:05d}9{number:03d}.jpg", jpeg(number))
                add_member(archive, f"{shard:05d}9{number:03d}.txt", b"  ")
    return root


def write_config(
    folder: Path, root: Path, codec: Path, *, name: str = CORPUS, unit_items: int = 10, workers: int = 0
) -> Path:
    """``folder/NAME.toml``, whose dataset comes to ``folder/out/NAME``."""
    path = folder / f"{name}.toml"
    path.write_text(
        f'corpus = "laion2b"\nname = "{name}"\nroot = "{root}"\noutput = "{folder / "out" / name}"\nworkers = {workers}\n'
        f'unit_items = {unit_items}\n[tokenizers]\nimage = "{codec}"\n[filters]\nmax_punsafe = 0.5\n',
        encoding="utf-8",
    )
    return path


def write_codec(path: Path) -> Path:
    """A picture codec whose codebooks are noise: real code, real shapes, fitted to nothing."""
    noise = np.random.Generator(np.random.PCG64(0))
    palettes = noise.uniform(0, 255, size=(2048, 6)).astype(np.float32)
    patterns = noise.uniform(0, 1, size=(64, MASK**2)).astype(np.float32)
    save_family(path, {Modality.IMAGE: {"palettes": palettes, "patterns": patterns}})
    return path


def tree(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Name -> sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codec(tmp_path_factory.mktemp("codec") / "codec.safetensors")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, codec: Path) -> Path:
    """Two corpora tokenized in one call, by this process; the folder that holds their configs and outputs."""
    folder = tmp_path_factory.mktemp("tokenized")
    small = write_corpus(folder / "small", shards=1, pictures=3)
    configs = [
        write_config(folder, write_corpus(folder / "root"), codec),
        write_config(folder, small, codec, name="second"),
    ]
    assert tokenize([*map(str, configs)]) == 0
    return folder


def test_every_input_is_written_filtered_or_rejected_with_its_reason(dataset: Path) -> None:
    output = dataset / "out" / CORPUS
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["inputs"] == PICTURES + BROKEN + UNCAPTIONED
    assert report["filtered"] == {"unsafe": 2}
    assert sum(report["rejected"].values()) == BROKEN + UNCAPTIONED
    assert report["inputs"] == report["written"] + 2 + BROKEN + UNCAPTIONED
    assert report["tokens"] == {"image": 32 * report["written"]}
    assert report["images"] == report["written"]
    rejects = pq.read_table(output / "rejects.parquet").to_pylist()
    assert Counter(row["reason"] for row in rejects) == report["rejected"]
    assert {row["source_file"] for row in rejects} == {"00001.tar"}
    assert pq.read_table(output / "filtered.parquet").num_rows == 2


def test_the_dataset_is_whole_and_its_rows_are_the_corpus_in_order(dataset: Path) -> None:
    output = dataset / "out" / CORPUS
    assert verify_dataset(output).faults == ()
    manifest = read_manifest(output)
    rows = [row for shard in manifest.shards for row in table_to_samples(pq.read_table(output / shard.path))]
    texts = [segment.text for row in rows for segment in row.segments if segment.text is not None]
    expected = [f"picture number {n} of shard {s}" for s in range(2) for n in range(PICTURES // 2) if n != 5]
    assert texts == expected
    assert all(
        row.corpus == CORPUS and row.provenance.source_file == f"0000{i // 21}.tar" for i, row in enumerate(rows)
    )
    codes = [segment.codes for row in rows for segment in row.segments if segment.codes is not None]
    assert {one.shape for one in codes} == {(32, 1)}
    assert len({one.tobytes() for one in codes}) > PICTURES // 2


def test_the_second_corpus_of_a_call_is_a_dataset_of_its_own(dataset: Path) -> None:
    second = dataset / "out" / "second"
    assert read_manifest(second).name == "second"
    assert json.loads((second / "report.json").read_text(encoding="utf-8"))["inputs"] == 3 + BROKEN + UNCAPTIONED


def test_the_same_command_again_changes_no_byte_and_starts_no_ray(dataset: Path) -> None:
    before = tree(dataset)
    configs = [str(dataset / f"{name}.toml") for name in (CORPUS, "second")]
    script = (
        "import sys, ray; ray.init = None; from tokenize_jobs.cli import tokenize; sys.exit(tokenize(sys.argv[1:]))"
    )
    assert subprocess.run([sys.executable, "-c", script, *configs], check=False).returncode == 0
    assert tree(dataset) == before


@pytest.mark.parametrize(
    ("workers", "decode_cpus", "encode_cpus"), [(2, 0.5, 0.25), (4, 0.4, 0.4)], ids=["2-apart", "4-in-one"]
)
def test_any_number_of_workers_and_separate_stages_write_the_files_of_one_process(
    dataset: Path,
    tmp_path: Path,
    codec: Path,
    ray_of_this_process: None,
    workers: int,
    decode_cpus: float,
    encode_cpus: float,
) -> None:
    """Both corpora in one call, whose units go through one pipeline."""
    roots = {CORPUS: "root", "second": "small"}
    configs = [write_config(tmp_path, dataset / root, codec, name=name) for name, root in roots.items()]
    keys = [f"cluster.decode_cpus={decode_cpus}", f"cluster.encode_cpus={encode_cpus}", f"workers={workers}"]
    assert tokenize([*map(str, configs), *(word for key in keys for word in ("--set", key))]) == 0
    for name in roots:
        assert tree(tmp_path / "out" / name, but=TIMED_NAMES) == tree(dataset / "out" / name, but=TIMED_NAMES)


def test_a_cluster_without_workers_is_wrong_usage(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``workers = 0`` is this process; an address says the opposite."""
    assert tokenize([str(dataset / f"{CORPUS}.toml"), "--set", "cluster.address=head:6379"]) == 2
    assert "workers" in capsys.readouterr().err


def test_units_that_are_missing_are_done_and_no_others(dataset: Path, tmp_path: Path) -> None:
    config, output = dataset / f"{CORPUS}.toml", tmp_path / "out"
    shutil.copytree(dataset / "out" / CORPUS, output)
    (output / "ledger" / "unit-000002.json").unlink()
    (output / "shards" / "unit-000004.parquet").write_bytes(b"cut")
    kept = {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}
    assert tokenize([str(config), "--set", f"output={output}"]) == 0
    touched = {path.stem for path, mtime in kept.items() if path.stat().st_mtime_ns != mtime}
    assert touched == {"unit-000002", "unit-000004"}
    assert tree(output, but=TIMED_NAMES) == tree(dataset / "out" / CORPUS, but=TIMED_NAMES)


def test_other_filters_on_the_same_output_are_an_error_that_says_what_changed(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(dataset)
    assert tokenize([str(dataset / f"{CORPUS}.toml"), "--set", "filters.max_punsafe=0.95"]) == 1
    assert "max_punsafe was 0.5, now 0.95" in capsys.readouterr().err
    assert tree(dataset) == before


def test_an_exceeded_budget_stops_with_one_message_and_commits_no_such_unit(
    tmp_path: Path, codec: Path, ray_of_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "00000.tar", "w") as archive:
        for number in range(120):
            add_member(archive, f"{number:09d}.jpg", b"no picture")
            add_member(archive, f"{number:09d}.txt", b"a caption")
    config = write_config(tmp_path, root, codec, unit_items=200, workers=1)
    assert tokenize([str(config), "--set", "budget.unit_share=0.1"]) == 1
    message = capsys.readouterr().err
    assert "120: image_unreadable (120)" in message
    assert "budget.unit_share" in message
    assert "Traceback" not in message
    assert not list((tmp_path / "out" / CORPUS).rglob("unit-*"))


def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_with_the_same_bytes(
    tmp_path: Path, codec: Path, ray_of_this_process: None
) -> None:
    root = write_corpus(tmp_path / "root", shards=2, pictures=60)
    config = write_config(tmp_path, root, codec, unit_items=2, workers=1)
    output = tmp_path / "out" / CORPUS
    script = "import sys; from tokenize_jobs.cli import tokenize; sys.exit(tokenize(sys.argv[1:]))"
    running = subprocess.Popen([sys.executable, "-c", script, str(config)], start_new_session=True)
    try:
        wait_for_units(output / "ledger", 3, running)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert not (output / "manifest.json").exists(), "it was killed too late to prove anything"
    assert tokenize([str(config)]) == 0
    assert not list(output.rglob("*.tmp"))
    begun = [json.loads(line) for line in log_path(output).read_text(encoding="utf-8").splitlines()]
    missing = [event["missing"] for event in begun if event["event"] == "tokenize_begun"]
    assert missing[0] == 63
    assert 0 < missing[1] <= 60
    undisturbed = tmp_path / "undisturbed"
    assert tokenize([str(config), "--set", f"output={undisturbed}", "--set", "workers=0"]) == 0
    assert tree(output, but=TIMED_NAMES) == tree(undisturbed, but=TIMED_NAMES)


def wait_for_units(ledger: Path, count: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while len(list(ledger.glob("unit-*.json"))) < count:
        assert running.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no unit was committed in five minutes"
        time.sleep(0.005)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, codec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_corpus(tmp_path / "root", shards=1, pictures=25), codec)
    assert tokenize([str(config), "--dry-run", "--limit", "17"]) == 0
    printed = capsys.readouterr().out
    assert '"unit_items": 10' in printed
    assert "17 inputs in 2 units" in printed
    assert "unit-000001.parquet  00000.tar [10:17]  to do" in printed
    assert not (tmp_path / "out").exists()


def test_a_missing_root_and_a_misspelt_key_are_wrong_usage(
    tmp_path: Path, codec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tmp_path / "nowhere", codec)
    assert tokenize([str(config)]) == 2
    assert "root = " in capsys.readouterr().err
    assert tokenize([str(config), "--set", "rot=here"]) == 2
    assert "did you mean 'root'?" in capsys.readouterr().err


def test_a_missing_codec_names_the_file_and_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path, write_corpus(tmp_path / "root", shards=1, pictures=2), tmp_path / "none.safetensors"
    )
    assert tokenize([str(config)]) == 2
    message = capsys.readouterr().err
    assert "none.safetensors" in message
    assert "anygpt-fit" in message


def test_two_corpora_of_one_call_never_share_an_output(
    tmp_path: Path, codec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_corpus(tmp_path / "root", shards=1, pictures=2), codec)
    assert tokenize([str(config), str(config)]) == 2
    assert "output" in capsys.readouterr().err


def test_a_cluster_that_does_not_let_us_in_is_one_message_that_names_the_address(
    tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray tries for a minute before it gives up, so its refusal is played here."""

    def refuse(**arguments: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {arguments['address']}")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    config = write_config(tmp_path, write_corpus(tmp_path / "root", shards=1, pictures=2), codec)
    assert tokenize([str(config), "--set", "cluster.address=127.0.0.1:1"]) == 2
    assert "cluster.address = 127.0.0.1:1" in capsys.readouterr().err
