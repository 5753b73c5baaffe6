"""docs/adding-a-corpus.md is followed to the letter, so that the page cannot rot."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from configs.load import validate
from pipeline.corpus import BoundReader, CorpusConfig
from pipeline.samples import RawMedia, RawSample, RawText, Reject

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-corpus.md"


def block(language: str) -> str:
    """The one code block of a language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def birds() -> Iterator[ModuleType]:
    """The reader of the page, imported as if it lay where the page says."""
    module = ModuleType("pipeline.corpora.birds")
    # pydantic looks the annotations of Options up in the module's own namespace.
    sys.modules[module.__name__] = module
    exec(compile(block("python"), str(PAGE), "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three good pictures, and between them one that is not there and a line that is no JSON."""
    (tmp_path / "img").mkdir()
    lines: list[str] = []
    for number in range(3):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(b"\xff\xd8 picture %d" % number)
        lines.append(json.dumps({"file": f"img/{number}.jpg", "text": f"Bird {number}.", "license": "CC0-1.0"}))
    lines.insert(1, json.dumps({"file": "img/gone.jpg", "text": "Flown."}))
    lines.insert(3, "{")
    (tmp_path / "birds_train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_the_reader_on_the_page_gives_one_outcome_for_every_input(birds: ModuleType, root: Path):
    reader = BoundReader("birds", root, birds.Options(), licence="CC-BY-4.0")
    (source,) = reader.sources()
    assert source.num_items == 5
    samples, rejects = [], []
    for outcome in reader.read(source):
        (samples if isinstance(outcome, RawSample) else rejects).append(outcome)

    assert [sample.sample_id for sample in samples] == [f"birds/birds_train/{n}" for n in (1, 3, 5)]
    picture, caption = samples[1].segments
    assert isinstance(picture, RawMedia) and picture.data == b"\xff\xd8 picture 1"
    assert caption == RawText("caption", "Bird 1.")
    assert samples[1].provenance.licence == "CC0-1.0"
    assert all(isinstance(reject, Reject) for reject in rejects)
    assert [reject.reason for reject in rejects] == ["media_missing", "json_invalid"]


def test_slices_of_a_source_join_to_the_whole(birds: ModuleType, root: Path):
    reader = BoundReader("birds", root, birds.Options())
    (source,) = reader.sources()
    slices = [list(reader.read(source, start=start, stop=start + 2)) for start in range(0, 5, 2)]
    assert [outcome for part in slices for outcome in part] == list(reader.read(source))


def test_the_config_on_the_page_is_valid():
    config = validate(tomllib.loads(block("toml")), CorpusConfig, where=str(PAGE))
    assert config.dataset_name == "birds"
