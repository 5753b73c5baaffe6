"""A filler tops up rows: every token accounted for by source, each of its samples once, and the main rows untouched."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards.audit import trace
from shards.lineage import is_fresh
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.records import FORMAT_VERSION
from shards.verify import verify_dataset
from tests.tokenize_jobs import test_packing_job as packing
from tokenize_jobs.packing_cli import pack
from tokenize_jobs.packing_slices import deal_slices

inputs = packing.inputs


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(repository)


def configured(samples: Path, output: Path, *, draws: int = 1, filler: str = "pictures", path: str = "speech") -> str:
    """A config with one dataset: recordings in small rows and small units, topped up with pictures."""
    config = output.with_suffix(".toml")
    config.write_text(
        f"""
output = {str(output)!r}
text_tokenizer = {str(samples / "text")!r}
vocabulary = "configs/vocabulary/tiny.toml"
sequence_length = 400
unit_documents = 20
reject_budget = 0.5

[datasets.topped]
path = {str(samples / path)!r}

[datasets.topped.filler]
path = {str(samples / filler)!r}
directions = {{ image_to_text = 1.0 }}
draws = {draws}
""",
        encoding="utf-8",
    )
    return str(config)


def records(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.samples.parquet"))
    return [{"shard": path.name, **record} for path in paths for record in pq.read_table(path).to_pylist()]


def test_filled_rows_are_fuller_and_say_what_is_in_them(inputs: Path, tmp_path: Path) -> None:
    assert pack([configured(inputs, tmp_path / "with")]) == 0
    assert pack([configured(inputs, tmp_path / "without"), "--set", "datasets.topped.filler.splits=['none']"]) == 0
    filled, alone = (read_manifest(tmp_path / name / "topped") for name in ("with", "without"))
    assert filled.num_rows == alone.num_rows
    assert filled.extra["fill"] > alone.extra["fill"] + 0.02
    assert verify_dataset(tmp_path / "with" / "topped").faults == ()
    of_main = [r for r in records(tmp_path / "with" / "topped") if r["dataset"] == "speech"]
    assert of_main == records(tmp_path / "without" / "topped")
    assert alone.extra["sources"] == {"pictures": 0, "speech": sum(alone.tokens.values())}
    assert filled.extra["sources"]["speech"] == alone.extra["sources"]["speech"]


def test_tokens_are_counted_per_row_source_modality_and_direction(inputs: Path, tmp_path: Path) -> None:
    assert pack([configured(inputs, tmp_path / "out")]) == 0
    manifest = read_manifest(tmp_path / "out" / "topped")
    found = records(tmp_path / "out" / "topped")
    by_source: Counter[str] = Counter()
    by_direction: Counter[str] = Counter()
    for record in found:
        by_source[record["dataset"]] += record["stop"] - record["start"]
        by_direction[record["direction"]] += record["stop"] - record["start"]
    assert manifest.extra["sources"] == by_source
    assert manifest.extra["tokens_by_direction"] == by_direction
    assert {name: sum(counts.values()) for name, counts in manifest.extra["tokens_by_source"].items()} == by_source
    assert set(manifest.extra["tokens_by_source"]["pictures"]) == {"image", "text"}
    images = [record for record in found if record["dataset"] == "pictures"]
    assert manifest.extra["tokens_by_source"]["pictures"]["image"] == 34 * len(images) == manifest.tokens["image"]
    assert {record["direction"] for record in images} == {"image_to_text"}
    filler = manifest.extra["filler"]
    assert filler == {"documents": len(images), "tokens": by_source["pictures"], "repeated": 0}
    counts = manifest.counts
    assert counts["inputs"] == counts["written"] + sum(counts["filtered"].values()) + sum(counts["rejected"].values())
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["filler"] == filler


def test_every_filler_sample_is_used_once_until_all_were_told(inputs: Path, tmp_path: Path) -> None:
    """Twelve pictures are too few for these rows; with three draws they come back, told anew and counted, but not before."""
    packing.write_samples(tmp_path / "few", packing.pictures(12), shard_rows=5)
    (tmp_path / "few" / "text").symlink_to(inputs / "text")
    (tmp_path / "few" / "speech").symlink_to(inputs / "speech")
    (tmp_path / "few" / "few").symlink_to(tmp_path / "few")
    used: dict[int, list[tuple[str, int]]] = {}
    for draws in (1, 3):
        config = configured(tmp_path / "few", tmp_path / str(draws), draws=draws, filler="few")
        assert pack([config, "--set", "sequence_length=1000"]) == 0
        found = [r for r in records(tmp_path / str(draws) / "topped") if r["dataset"] == "few"]
        used[draws] = [(record["sample_id"], record["draw"]) for record in found]
        assert len(set(used[draws])) == len(used[draws])
        repeated = sum(draw > 0 for _, draw in used[draws])
        assert read_manifest(tmp_path / str(draws) / "topped").extra["filler"]["repeated"] == repeated
        assert (repeated > 0) == (draws > 1)
    assert set(used[1]) == {pair for pair in used[3] if pair[1] == 0}


def test_the_report_tells_what_topped_rows_up(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(inputs, tmp_path / "out")
    assert pack([config, "--dry-run"]) == 0
    assert "filler" in capsys.readouterr().out
    assert pack([config]) == 0
    printed = capsys.readouterr().out
    assert "tokens by source            pictures " in printed
    assert "tokens by modality          image " in printed
    assert "tokens by direction         image_to_text " in printed
    assert "cut 0, split 0;" in printed


def test_rows_are_stale_when_the_filler_changed(inputs: Path, tmp_path: Path) -> None:
    assert pack([configured(inputs, tmp_path / "out")]) == 0
    packed = read_manifest(tmp_path / "out" / "topped")
    sources = [read_manifest(inputs / name) for name in ("pictures", "speech")]
    assert is_fresh(packed, sources)
    assert not is_fresh(packed, sources[1:])


def test_a_dataset_is_not_its_own_filler(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack([configured(inputs, tmp_path / "out", filler="speech")]) == 2
    assert "datasets.topped.filler: expected other datasets" in capsys.readouterr().err


@pytest.mark.parametrize(("num_units", "limit"), [(1, None), (4, None), (40, None), (3, 7), (0, None)])
def test_every_filler_sample_is_dealt_to_one_unit(num_units: int, limit: int | None) -> None:
    shards = tuple(ShardEntry(f"u{n}", rows, 0, "") for n, rows in enumerate((5, 0, 9, 1)))
    sources = [(Path("spare"), Manifest("samples", "a", "f", shards, FORMAT_VERSION))]
    dealt = deal_slices(sources, num_units=num_units, limit=limit)
    assert len(dealt) == num_units
    covered = [(s.shard, row) for unit in dealt for s in unit for row in range(s.start, s.stop)]
    rows = [(shard.path, row) for shard in shards for row in range(shard.num_rows)][:limit]
    assert covered == (rows if num_units else [])
    sizes = [sum(s.stop - s.start for s in unit) for unit in dealt]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert all(s.draw == 0 for unit in dealt for s in unit)


def test_filler_and_main_of_one_part_share_no_content_with_the_other(inputs: Path, tmp_path: Path) -> None:
    config = configured(inputs, tmp_path / "out")
    assert pack([config, "--set", "validation_share=0.3"]) == 0
    train, validation = (
        {record["sample_id"] for record in records(tmp_path / "out" / name)} for name in ("topped", "topped-validation")
    )
    assert train and validation and not train & validation
    assert any(name.startswith("pictures") for name in validation)


def test_a_filler_document_leads_back_to_its_sample_and_no_path_is_stored(inputs: Path, tmp_path: Path) -> None:
    assert pack([configured(inputs, tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "topped"
    used = next(record for record in records(folder) if record["dataset"] == "pictures")
    trail = trace(folder, used["sample_id"], samples=[inputs / "pictures", inputs / "speech"])
    assert [(place.source, place.row, place.start) for place in trail.places] == [
        ("pictures", used["row"], used["start"])
    ]
    assert [sample.member or sample.source_file for sample in trail.samples] == ["a.tar"]
    assert trail.notes == ()
    assert str(inputs) not in (folder / "manifest.json").read_text(encoding="utf-8")


def test_a_filler_document_longer_than_a_row_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    """Neither split nor rejected: a filler may hold anything, its short documents are what is wanted."""
    config = configured(inputs, tmp_path / "out", filler="speech", path="pictures")
    settings = ["sequence_length=170", "datasets.topped.filler.directions={ speech_to_text = 1.0 }"]
    assert pack([config, *(part for setting in settings for part in ("--set", setting))]) == 0
    manifest = read_manifest(tmp_path / "out" / "topped")
    assert manifest.extra["split"] == manifest.extra["cut"] == 0
    assert manifest.extra["sources"]["speech"] > 0
    assert manifest.counts["filtered"]["filler_unused"] > 0
    assert set(manifest.counts["rejected"]) <= {"text_missing"}
    assert all(record["offset"] == 0 for record in records(tmp_path / "out" / "topped"))
