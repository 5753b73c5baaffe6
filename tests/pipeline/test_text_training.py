"""``anygpt-text``: sample shards in, tokenizer and vocabulary out, and nothing at all the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import text
from pipeline.text import load_text_tokenizer
from pipeline.vocabularies import load_vocabulary
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.vocabulary import Modality, Vocabulary
from shards.writer import commit_table


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Sample shards: many captions to train on, and one of a split that is kept apart."""
    captions = [("train", "a turquoise octagon at the top")] * 40 + [("heldout", "xylophone " * 50)]
    samples = [
        TokenizedSample(f"c/{n}", "c", split, (Segment("caption", Modality.TEXT, words),), Provenance("f"))
        for n, (split, words) in enumerate(captions)
    ]
    folder = tmp_path / "samples"
    sha256 = commit_table(folder / "a.parquet", samples_to_table(samples))
    entry = ShardEntry("a.parquet", len(samples), (folder / "a.parquet").stat().st_size, sha256)
    write_manifest(folder, Manifest("samples", "c", "f" * 16, (entry,), 1))
    return folder


@pytest.fixture
def arguments(repository: Path, tmp_path: Path, dataset: Path) -> list[str]:
    """The shipped config with the paths of this test."""
    values = {
        "output": tmp_path / "tokenizers" / "text",
        "templates": repository / "configs/templates",
        "vocabulary": repository / "configs/vocabulary/tiny.toml",
    }
    sets = [f"{key}={value}" for key, value in values.items()] + [f'datasets=["{dataset}"]', "words=['arpeggio']"]
    return [str(repository / "configs/tokenizers/text.toml"), *(part for one in sets for part in ("--set", one))]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_command_makes_tokenizer_and_vocabulary_once(
    arguments: list[str], tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "tokenizers"
    assert text(arguments) == 0
    assert "trained" in capsys.readouterr().out
    tokenizer = load_text_tokenizer(output / "text")
    vocabulary = Vocabulary.from_json(json.loads((output / "vocabulary.json").read_text(encoding="utf-8")))
    assert vocabulary == load_vocabulary(repository / "configs/vocabulary/tiny.toml", text_tokenizer=tokenizer)
    assert [len(tokenizer.encode(word)) for word in (" turquoise", " octagon", " arpeggio")] == [1, 1, 1]
    assert len(tokenizer.encode(" xylophone")) > 1, "texts of other splits are not read"
    before = contents(output)
    assert text(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(output) == before


def test_a_killed_or_damaged_result_is_made_again_with_the_same_bytes(arguments: list[str], tmp_path: Path):
    output = tmp_path / "tokenizers"
    assert text(arguments) == 0
    before = {name: data for name, (data, _) in contents(output).items()}
    for name in ("text/origin.json", "text/tokenizer.json", "vocabulary.json"):
        (output / name).write_bytes(b"{")
        assert text(arguments) == 0
        assert {name: data for name, (data, _) in contents(output).items()} == before


def test_raw_corpora_are_read_before_anything_is_tokenized(arguments: list[str], tmp_path: Path):
    """A miniature MLS folder: its transcripts are learned, its sounds are not opened."""
    root = tmp_path / "mls"
    corpus = tmp_path / "mls.toml"
    audio = root / "mls_english" / "train" / "audio" / "1" / "2"
    audio.mkdir(parents=True)
    lines = [f"1_2_{n:06d}\tquixotic zephyr quixotic" for n in range(30)]
    (root / "mls_english" / "train" / "transcripts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for n in range(30):
        (audio / f"1_2_{n:06d}.flac").write_bytes(b"not a sound")
    corpus.write_text(f'corpus = "mls"\nroot = "{root}"\noutput = "{tmp_path / "out"}"\n', encoding="utf-8")
    assert text([*arguments, "--set", "datasets=[]", "--set", f'corpora=["{corpus}"]']) == 0
    tokenizer = load_text_tokenizer(tmp_path / "tokenizers" / "text")
    assert [len(tokenizer.encode(word)) for word in (" quixotic", " zephyr")] == [1, 1]
    origin = tmp_path / "tokenizers" / "text" / "origin.json"
    before = origin.stat().st_mtime_ns
    assert text([*arguments, "--set", "datasets=[]", "--set", f'corpora=["{corpus}"]']) == 0
    assert origin.stat().st_mtime_ns == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert text([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "41 samples of 1 datasets" in printed
    assert "to do" in printed
    assert not (tmp_path / "tokenizers").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [("vocab_sise=5", "did you mean 'vocab_size'"), ("vocab_size=100", "raise it"), ("templates=nowhere", "nowhere")],
)
def test_a_wrong_config_is_exit_two_with_one_message(
    arguments: list[str], change: str, message: str, capsys: pytest.CaptureFixture[str]
):
    assert text([*arguments, "--set", change]) == 2
    assert message in capsys.readouterr().err
