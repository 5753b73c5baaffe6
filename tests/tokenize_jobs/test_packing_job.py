"""Stage B: the same bytes on any number of workers, after any crash, and nothing lost on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.load import load_config, read_toml
from pipeline.text import train_text_tokenizer
from shards.errors import DatasetError, RejectBudgetExceeded
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.reader import open_packed
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from shards.writer import commit_table
from tokenize_jobs import packing_cli as cli
from tokenize_jobs.packing_config import PackingConfig
from tokenize_jobs.packing_slices import plan_slices

SENTENCE = "a red blue green square circle on the left right of one spoken sentence with music in it"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A text tokenizer and two datasets of sample shards: captioned pictures and spoken sentences."""
    folder = tmp_path_factory.mktemp("inputs")
    train_text_tokenizer([" ".join(WORDS)] * 3, 300, folder / "text")
    rng = np.random.default_rng(0)
    write_samples(folder / "pictures", pictures(90), shard_rows=40)
    write_samples(folder / "speech", [_speech(rng, number) for number in range(50)], shard_rows=30)
    return folder


def pictures(count: int) -> list[TokenizedSample]:
    """Captioned pictures; fewer are the first of more."""
    rng = np.random.default_rng(1)
    return [_picture(rng, number) for number in range(count)]


def _words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(3, 9))).tolist())


def _picture(rng: np.random.Generator, number: int) -> TokenizedSample:
    codes = rng.integers(0, 8192, (32, 1)).astype(np.uint16)
    segments = (Segment("caption", Modality.TEXT, text=_words(rng)), Segment("image", Modality.IMAGE, codes=codes))
    return TokenizedSample(f"pictures/{number}", "pictures", "train", segments, Provenance("a.tar"))


def _speech(rng: np.random.Generator, number: int) -> TokenizedSample:
    frames = int(rng.integers(20, 200))
    codes = rng.integers(0, 1024, (frames, 8)).astype(np.uint16)
    text = Segment("transcript", Modality.TEXT, text="" if number == 7 else _words(rng))
    speech = Segment("speech", Modality.SPEECH, codes=codes, duration_s=frames / 50)
    split = "test" if number % 10 == 0 else "train"
    return TokenizedSample(f"speech/{number}", "speech", split, (speech, text), Provenance("b.opus"))


def write_samples(folder: Path, samples: list[TokenizedSample], *, shard_rows: int) -> None:
    """A dataset of sample shards."""
    folder.mkdir()
    entries = []
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        part = samples[start : start + shard_rows]
        path = folder / f"unit-{number:05d}.parquet"
        sha256 = commit_table(path, samples_to_table(part))
        entries.append(ShardEntry(path.name, len(part), path.stat().st_size, sha256))
    write_manifest(folder, Manifest("samples", folder.name, "f" * 16, tuple(entries), FORMAT_VERSION))


def arguments(inputs: Path, output: Path, config: Path, *extra: str) -> list[str]:
    config.write_text(
        f"""
output = {str(output)!r}
text_tokenizer = {str(inputs / "text")!r}
templates = "configs/templates"
vocabulary = "configs/vocabulary/tiny.toml"
sequence_length = 512
unit_documents = 64

[datasets.pictures]
path = {str(inputs / "pictures")!r}
draws = 2

[datasets.speech]
path = {str(inputs / "speech")!r}
directions = {{ speech_to_text = 0.5, text_to_speech = 0.5 }}
splits = ["train"]

[datasets.topped]
path = {str(inputs / "speech")!r}
splits = ["train"]

[datasets.topped.filler]
path = {str(inputs / "pictures")!r}
""",
        encoding="utf-8",
    )
    return [str(config), *(part for setting in extra for part in ("--set", setting))]


@pytest.fixture(scope="module")
def packed(inputs: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """An undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        assert cli.pack(arguments(inputs, folder / "out", folder / "config.toml")) == 0
    return folder / "out"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(repository)


def contents(folder: Path, *, report: bool = False) -> dict[str, str]:
    """Checksums of every file; the report has seconds in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (report or path.name != "report.json")
    }


def test_nothing_is_lost_on_the_way(packed: Path) -> None:
    report = json.loads((packed / "report.json").read_text(encoding="utf-8"))
    pictures, speech = report["datasets"]["pictures"], report["datasets"]["speech"]
    assert (pictures["inputs"], pictures["written"], speech["inputs"], speech["written"]) == (180, 180, 50, 50 - 5 - 1)
    assert (speech["filtered"], speech["rejected"]) == ({"other_split": 5}, {"text_missing": 1})
    assert report["cut"] == 0
    assert pictures["fill"] > 0.9
    assert set(report["tokens"]) == {"text", "image", "speech"}
    assert report["datasets"]["topped"]["filler"]["documents"] > 0
    assert pictures["tokens"]["image"] == 2 * 90 * 34
    assert sum(report["tokens_by_direction"].values()) == sum(report["tokens"].values())
    for name in report["datasets"]:
        assert verify_dataset(packed / name).faults == ()
    rejects = pq.read_table(packed / "speech" / "rejects.parquet").to_pylist()
    assert [(reject["sample_id"], reject["reason"]) for reject in rejects] == [("speech/7", "text_missing")]


def test_every_draw_of_every_sample_is_there_once(packed: Path) -> None:
    dataset = open_packed(packed / "pictures")
    sidecars = [pq.read_table(path) for path in sorted((packed / "pictures").glob("*.samples.parquet"))]
    records = [record for table in sidecars for record in table.to_pylist()]
    assert sorted((r["sample_id"], r["draw"]) for r in records) == sorted(
        (f"pictures/{number}", draw) for number in range(90) for draw in (0, 1)
    )
    by_draw = {(r["sample_id"], r["draw"]): r["direction"] for r in records}
    assert any(by_draw[f"pictures/{n}", 0] != by_draw[f"pictures/{n}", 1] for n in range(90))
    ids = dataset.gather(np.arange(dataset.num_rows))
    assert int((ids == dataset.vocabulary.bos_id).sum()) == 180


def test_the_second_run_does_no_work_and_changes_no_byte(packed: Path, inputs: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in packed.rglob("*") if path.is_file()}
    assert cli.pack(arguments(inputs, packed, packed.parent / "config.toml")) == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in packed.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("workers", [1, 2])
def test_files_do_not_depend_on_the_number_of_ray_workers(
    packed: Path, inputs: Path, tmp_path: Path, ray_of_this_process: None, workers: int
) -> None:
    assert cli.pack(arguments(inputs, tmp_path / "out", tmp_path / "config.toml", f"workers={workers}")) == 0
    assert contents(tmp_path / "out") == contents(packed)


# Where the process dies: after the nth call of the function that makes a file durable.
@pytest.mark.parametrize("survived_commits", [0, 1, 2, 9, 17])
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    packed: Path, inputs: Path, tmp_path: Path, survived_commits: int
) -> None:
    given = arguments(inputs, tmp_path / "out", tmp_path / "config.toml")
    script = f"""
import os, signal
import shards.packed, shards.writer
from tokenize_jobs.packing_cli import pack
left = {survived_commits}
durable = shards.writer.commit_file
def dying(temporary, path):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    durable(temporary, path)
shards.writer.commit_file = shards.packed.commit_file = dying
pack({given!r})
"""
    died = subprocess.run([sys.executable, "-c", script], check=False, timeout=180, capture_output=True)
    assert died.returncode == -signal.SIGKILL
    assert contents(tmp_path / "out") != contents(packed)
    assert cli.pack(given) == 0
    assert contents(tmp_path / "out") == contents(packed)


def test_another_config_does_not_overwrite_what_is_there(
    packed: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(packed, report=True)
    assert cli.pack(arguments(inputs, packed, packed.parent / "other.toml", "seed=1")) == 1
    assert "remove that folder or choose another output" in capsys.readouterr().err
    assert contents(packed, report=True) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.pack([*arguments(inputs, tmp_path / "out", tmp_path / "config.toml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert '"sequence_length": 512' in printed
    assert "0 of 3 shards done" in printed
    assert not (tmp_path / "out").exists()


def test_a_limit_takes_the_first_samples(inputs: Path, tmp_path: Path) -> None:
    given = arguments(inputs, tmp_path / "out", tmp_path / "config.toml", "reject_budget=1.0")
    assert cli.pack([*given, "--limit", "10"]) == 0
    assert read_manifest(tmp_path / "out" / "pictures").counts["inputs"] == 20


def test_too_many_rejects_stop_the_job_before_anything_is_committed(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(inputs, tmp_path / "out", tmp_path / "config.toml", "reject_budget=0.001")
    assert cli.pack(given) == RejectBudgetExceeded.exit_code
    assert "text_missing (1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "speech" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("sequence_lenght=3", 2, "did you mean 'sequence_length'?"),
        ("datasets.pictures.path=nowhere", 1, "expected a dataset's manifest"),
        ("datasets.speech.directions.speech_to_text=0.9", 2, "sum to 1"),
        ("text_tokenizer=nowhere", 1, "tokenizer"),
        ("checkpoint=somewhere", 2, "expected either text_tokenizer or checkpoint"),
    ],
)
def test_a_wrong_config_is_one_clear_message(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, code: int, message: str
) -> None:
    assert cli.pack(arguments(inputs, tmp_path / "out", tmp_path / "config.toml", setting)) == code
    assert message in capsys.readouterr().err


def test_packed_shards_cannot_be_packed_again(packed: Path, inputs: Path, tmp_path: Path) -> None:
    given = arguments(
        inputs, tmp_path / "out", tmp_path / "config.toml", f"datasets.pictures.path='{packed / 'pictures'}'"
    )
    assert cli.pack(given) == DatasetError.exit_code


@pytest.mark.parametrize(("draws", "unit_documents", "limit"), [(1, 7, None), (3, 7, None), (2, 1000, 11), (1, 1, 0)])
def test_units_cover_every_draw_of_every_row_once(draws: int, unit_documents: int, limit: int | None) -> None:
    shards = [ShardEntry(f"u{n}", rows, 0, "") for n, rows in enumerate((5, 0, 9, 1))]
    sources = [
        (Path("left"), Manifest("samples", "a", "f", tuple(shards[:3]), FORMAT_VERSION)),
        (Path("right"), Manifest("samples", "b", "f", tuple(shards[3:]), FORMAT_VERSION)),
    ]
    units = plan_slices(sources, draws=draws, unit_documents=unit_documents, limit=limit)
    covered = [
        (part.draw, part.folder, part.shard, row)
        for unit in units
        for part in unit
        for row in range(part.start, part.stop)
    ]
    rows = [(path, entry.path, row) for path, m in sources for entry in m.shards for row in range(entry.num_rows)][
        :limit
    ]
    assert covered == [(draw, *row) for draw in range(draws) for row in rows]
    sizes = [sum(part.stop - part.start for part in unit) for unit in units]
    assert not sizes or (max(sizes) <= unit_documents and max(sizes) - min(sizes) <= 1)


def test_several_corpora_may_share_rows_and_the_sidecar_tells_them_apart(inputs: Path, tmp_path: Path) -> None:
    both = f"datasets.pictures.path=['{inputs / 'pictures'}', '{inputs / 'speech'}']"
    assert cli.pack(arguments(inputs, tmp_path / "out", tmp_path / "config.toml", both)) == 0
    folder = tmp_path / "out" / "pictures"
    sidecar = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.samples.parquet")))
    sources: Counter[str] = Counter()
    for record in sidecar.to_pylist():
        sources[record["dataset"]] += record["stop"] - record["start"]
        assert record["sample_id"].startswith(record["dataset"])
    assert read_manifest(folder).extra["sources"] == dict(sources)
    assert set(sources) == {"pictures", "speech"}
    mixed_rows = sidecar.group_by("row").aggregate([("dataset", "count_distinct")])["dataset_count_distinct"]
    assert max(mixed_rows.to_pylist()) == 2


def test_codes_of_two_tokenizers_do_not_share_rows(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, fingerprint in (("one", "a" * 16), ("two", "b" * 16)):
        shutil.copytree(inputs / "pictures", tmp_path / name)
        manifest = replace(read_manifest(tmp_path / name), name=name, tokenizers={"image": fingerprint})
        write_manifest(tmp_path / name, manifest)
    both = f"datasets.pictures.path=['{tmp_path / 'one'}', '{tmp_path / 'two'}']"
    assert cli.pack(arguments(inputs, tmp_path / "out", tmp_path / "config.toml", both)) == 1
    assert "two: its image codes were made by tokenizer bbbb" in capsys.readouterr().err


def test_a_missing_shard_of_samples_is_named(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(inputs / "pictures", tmp_path / "torn")
    (tmp_path / "torn" / "unit-00001.parquet").unlink()
    given = arguments(
        inputs, tmp_path / "out", tmp_path / "config.toml", f"datasets.pictures.path='{tmp_path / 'torn'}'"
    )
    assert cli.pack(given) == 1
    assert "unit-00001.parquet: expected a shard of samples" in capsys.readouterr().err


def test_every_shipped_config_is_valid_and_fits_a_mixture(repository: Path) -> None:
    """Datasets and shares are named in two files; a name in one of them only would stop the trainer much later."""
    found = {
        path.stem: load_config(path, PackingConfig) for path in (repository / "configs" / "packing").glob("*.toml")
    }
    mixtures = {
        "tiny": "tiny",
        "tiny-sft": "tiny-sft",
        "anygpt-7b-pretrain": "paper-table7",
        "anygpt-7b-quality": "paper-quality-stage",
        "anygpt-7b-sft": "paper-sft",
        "anygpt-chat-sft": "paper-sft",
        "soundstorm-tiny": "soundstorm-tiny",
        "soundstorm-mls": "soundstorm-mls",
    }
    assert set(found) == set(mixtures)
    # The quality phase reads rows of pretraining again, and packs only what is new.
    again = {"anygpt-7b-quality": set(found["anygpt-7b-pretrain"].datasets)}
    for name, config in found.items():
        shares = read_toml(repository / "configs" / "mixtures" / f"{mixtures[name]}.toml")["shares"]
        assert set(config.datasets) <= set(shares) <= set(config.datasets) | again.get(name, set())


def test_a_dataset_that_lost_a_shard_gets_the_same_one_back(packed: Path, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "out")
    given = arguments(inputs, tmp_path / "out", tmp_path / "config.toml")
    (tmp_path / "out" / "pictures" / "shard-00001.arrow").unlink()
    assert cli.pack(given) == 0
    assert contents(tmp_path / "out") == contents(packed)


def test_the_log_says_what_was_done_beside_the_datasets(inputs: Path, tmp_path: Path) -> None:
    given = arguments(inputs, tmp_path / "out", tmp_path / "config.toml")
    assert cli.pack(given) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["pack_begun", *["unit_done"] * 5, *["dataset_done"] * 3]
    assert (
        sum(line["written"] for line in lines[:5] if line["event"] == "unit_done" and line["dataset"] != "topped")
        == 224
    )
    assert cli.pack(given) == 0
    assert len((tmp_path / "out.log.jsonl").read_text(encoding="utf-8").splitlines()) == len(lines)


def test_rejects_may_be_allowed_afterwards_without_packing_again(packed: Path, inputs: Path, tmp_path: Path) -> None:
    """The budget decides whether a run stops, never what it writes."""
    before = contents(packed, report=True)
    assert cli.pack(arguments(inputs, packed, tmp_path / "config.toml", "reject_budget=0.9")) == 0
    assert contents(packed, report=True) == before
