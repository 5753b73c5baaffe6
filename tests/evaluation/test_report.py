"""A report is written once, and anew when something that it was made from is another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import validate
from evaluation.report import ReportConfig, make_report, report_key
from shards.errors import AnyGPTError
from shards.manifest import Manifest, ShardEntry, write_manifest

STORED = {"written": "before"}


def manifest(sha256: str) -> Manifest:
    """Of held-out samples, all in one shard with these bytes."""
    return Manifest("samples", "heldout", "f" * 16, [ShardEntry("a.parquet", 3, 9, sha256 * 64, {})], 1)


@pytest.fixture
def config(tmp_path: Path) -> ReportConfig:
    """A run whose report is there."""
    files = ("run/checkpoints/final/model.safetensors", "run/metrics.jsonl", "packed.json", "text/tokenizer.json")
    for name in (*files, "codec.safetensors", "codec.report.json", "run/report.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name.endswith(".jsonl") else "{}", encoding="utf-8")
    write_manifest(tmp_path / "heldout", manifest("a"))
    values = {
        "title": "A run",
        "run": tmp_path / "run",
        "corpora": tmp_path,
        "packing": tmp_path / "packed.json",
        "codecs": tmp_path / "codec.safetensors",
        "text_tokenizer": tmp_path / "text",
        "heldout": {"image": {"dataset": tmp_path / "heldout"}},
    }
    config = validate(values, ReportConfig, where="test")
    stored = STORED | {"key": report_key(config)}
    (tmp_path / "run/report.json").write_text(json.dumps(stored), encoding="utf-8")
    return config


def test_a_report_that_is_there_is_not_made_again(config: ReportConfig):
    assert make_report(config)["written"] == STORED["written"]


@pytest.mark.parametrize(
    "name",
    [
        "run/checkpoints/final/model.safetensors",
        "run/metrics.jsonl",
        "packed.json",
        "text/tokenizer.json",
        "codec.report.json",
    ],
)
def test_a_file_that_it_was_made_from_and_that_changed_is_noticed(config: ReportConfig, tmp_path: Path, name: str):
    (tmp_path / name).write_text("[]", encoding="utf-8")
    assert report_key(config) != json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))["key"]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: write_manifest(config.heldout.image.dataset, manifest("b")),
        lambda config: (config.run / "report.html").unlink(),
    ],
    ids=["other held-out samples", "no page"],
)
def test_a_stored_report_that_is_no_longer_true_is_not_handed_out(
    config: ReportConfig, change: Callable[[ReportConfig], object]
):
    change(config)
    # The run of this test has no model that could answer: whoever tries to make the report says so.
    with pytest.raises(AnyGPTError):
        make_report(config)


def test_without_a_trained_model_there_is_no_report(config: ReportConfig):
    (config.run / "checkpoints" / "final" / "model.safetensors").unlink()
    with pytest.raises(AnyGPTError, match="run anygpt-train first"):
        make_report(config)
