"""Documents of codes alone: all levels at rest, whole media only, no text tokenizer anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.code_documents import code_document
from pipeline.vocabularies import load_vocabulary
from shards.cli import verify
from shards.errors import SampleError
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.reader import open_packed
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.vocabulary import Modality
from shards.writer import commit_table
from tokenize_jobs.packing_cli import pack


def spoken(number: int, frames: int, *, levels: int = 8) -> TokenizedSample:
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 1024, (frames, levels)).astype(np.uint16)
    speech = Segment("speech", Modality.SPEECH, codes=codes, duration_s=frames / 50)
    text = Segment("transcript", Modality.TEXT, text="hello")
    return TokenizedSample(f"s/{number}", "s", "train", (speech, text), Provenance("a.opus"))


@pytest.fixture
def config(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty clips that fit a row and one that does not."""
    monkeypatch.chdir(repository)
    samples = [spoken(number, 3 + number) for number in range(30)] + [spoken(99, 200)]
    path = tmp_path / "speech" / "unit-00000.parquet"
    path.parent.mkdir()
    sha256 = commit_table(path, samples_to_table(samples))
    entry = ShardEntry(path.name, len(samples), path.stat().st_size, sha256)
    write_manifest(path.parent, Manifest("samples", "speech", "f" * 16, (entry,), FORMAT_VERSION))
    text = f"""
output = {str(tmp_path / "packed")!r}
documents = "codes"
vocabulary = "configs/vocabulary/soundstorm.toml"
sequence_length = 802
long_documents = "reject"
[datasets.speech]
path = {str(path.parent)!r}
"""
    (tmp_path / "pack.toml").write_text(text, encoding="utf-8")
    return tmp_path / "pack.toml"


def test_every_level_of_every_clip_comes_back_and_what_is_too_long_is_counted(config: Path, tmp_path: Path):
    assert pack([str(config)]) == 0
    folder = tmp_path / "packed" / "speech"
    assert verify([str(folder)]) == 0
    dataset = open_packed(folder)
    block = dataset.vocabulary.block("speech")
    found = []
    for row in range(dataset.num_rows):
        ids = dataset.gather([row])[0].astype(np.int64)
        starts, ends = np.flatnonzero(ids == block.start_id), np.flatnonzero(ids == block.end_id)
        found += [block.to_codes(ids[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]
    stored = [spoken(number, 3 + number).segments[0].codes for number in range(30)]
    assert sorted(one.tobytes() for one in found) == sorted(one.tobytes() for one in stored if one is not None)
    report = json.loads((tmp_path / "packed" / "report.json").read_text(encoding="utf-8"))
    assert (report["inputs"], report["written"], report["rejected"]) == (31, 30, {"longer_than_row": 1})


def test_a_text_tokenizer_has_no_place_in_it(config: Path, capsys: pytest.CaptureFixture[str]):
    assert pack([str(config), "--set", "text_tokenizer=data/tokenizers/text"]) == 2
    assert "have no text" in capsys.readouterr().err


def test_a_vocabulary_of_several_media_is_refused(config: Path, capsys: pytest.CaptureFixture[str]):
    assert pack([str(config), "--set", "vocabulary=configs/vocabulary/anygpt-released.toml"]) == 2
    assert "expected one medium" in capsys.readouterr().err


def test_a_sample_without_speech_or_without_its_levels_is_a_reject(repository: Path):
    vocabulary = load_vocabulary(repository / "configs" / "vocabulary" / "soundstorm.toml")
    silent = TokenizedSample("s/0", "s", "train", (Segment("a", Modality.TEXT, text="a"),), Provenance("a"))
    for sample, reason in ((silent, "media_missing"), (spoken(1, 5, levels=1), "codes_out_of_range")):
        with pytest.raises(SampleError) as found:
            code_document(sample, vocabulary, draw=0)
        assert found.value.reason == reason
