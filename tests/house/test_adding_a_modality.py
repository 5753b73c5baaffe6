"""A modality is a line in Modality, a tokenizer file, a vocabulary block and a template file; and nothing else.

Every modality is walked from bytes to a page, and so is one that is made up here: its line is written into the module's
own source, in another process, and every room has to live with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_config
from pipeline.templates import load_templates
from pipeline.vocabularies import MediumLayout, VocabularyLayout
from shards.modality import MEDIA, Modality
from tests.fixtures.modality_route import HashCodec, walk

# A sound with a rate that no other has, two levels at rest and one of them read.
LINE = 'HUM = "hum", MediaRate(600, levels_at_rest=2, levels_read=1, sample_rate_hz=12_000, samples_per_frame=500)'
WALK_THE_NEW_ONE = """
import sys
from pathlib import Path
from types import ModuleType

repository, folder = Path(sys.argv[1]), Path(sys.argv[2])
path = repository / "shards" / "modality.py"
source = path.read_text(encoding="utf-8")
before = "\\n\\n    @property\\n    def rate(self)"
assert source.count(before) == 1
module = ModuleType("shards.modality")
sys.modules["shards.modality"] = module
exec(compile(source.replace(before, "\\n    " + sys.argv[3] + before), str(path), "exec"), module.__dict__)

from tests.fixtures.modality_route import walk

tokens = walk(
    module.Modality("hum"), folder / "walk", templates=folder / "templates", vocabulary=folder / "vocabulary.toml"
)
assert tokens["hum"] == sum(-(-(12 * round((1.03 + 0.31 * n) * 1000)) // 500) for n in range(6)), tokens
"""


def layouts(repository: Path) -> Iterator[VocabularyLayout]:
    for path in sorted((repository / "configs" / "vocabulary").glob("*.toml")):
        yield load_config(path, VocabularyLayout)


def layout_file(path: Path, media: list[MediumLayout]) -> Path:
    """A layout for any text tokenizer."""
    lines = ['name = "walk"', 'markers = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"]']
    for medium in media:
        # A JSON string, or number, is a TOML one.
        values = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in medium.model_dump().items())
        lines += ["[[media]]", *values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def released(repository: Path) -> list[MediumLayout]:
    """The media of the largest layout there is."""
    return list(max((layout.media for layout in layouts(repository)), key=len))


def test_blocks_are_of_the_size_that_table_1_gives(repository: Path):
    """With the levels that the language model reads, or, for a vocoder, with all that are stored."""
    rates = {str(modality): modality.rate for modality in MEDIA}
    for layout in layouts(repository):
        for medium in layout.media:
            rate = rates[medium.name]
            assert medium.codebook_size == rate.codebook_size, layout.name
            assert medium.levels in (rate.levels_read, rate.levels_at_rest), layout.name


@pytest.mark.parametrize("modality", MEDIA)
def test_every_modality_has_its_files(modality: Modality, repository: Path):
    """A rate, a template file, and a block in a shipped vocabulary."""
    rate = modality.rate
    assert 1 <= rate.levels_read <= rate.levels_at_rest and rate.codebook_size <= 1 << 16
    assert rate.is_sound == (rate.samples_per_frame > 0) == (rate.num_frames == 0)
    assert modality in load_templates(repository / "configs" / "templates").media
    assert any(medium.name == modality for layout in layouts(repository) for medium in layout.media)


@pytest.mark.parametrize("modality", MEDIA)
def test_every_modality_goes_all_the_way(
    modality: Modality, released: list[MediumLayout], tmp_path: Path, repository: Path
):
    vocabulary = layout_file(tmp_path / "vocabulary.toml", released)
    tokens = walk(modality, tmp_path, templates=repository / "configs" / "templates", vocabulary=vocabulary)
    assert set(tokens) == {modality} and tokens[modality] > 0


def test_a_modality_that_nobody_has_heard_of_goes_all_the_way(
    released: list[MediumLayout], tmp_path: Path, repository: Path
):
    """Its line, its block, its template; the codec is the one of this test."""
    shipped, templates = repository / "configs" / "templates", tmp_path / "templates"
    templates.mkdir()
    for path in shipped.glob("*.toml"):
        (templates / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    hum = (shipped / "audio.toml").read_text(encoding="utf-8").replace("audio_", "hum_").replace("_audio", "_hum")
    (templates / "hum.toml").write_text(hum.replace('modality = "audio"', 'modality = "hum"'), encoding="utf-8")
    block = MediumLayout(name="hum", prefix="hum", start="<sohu>", end="<eohu>", codebook_size=600, levels=1)
    layout_file(tmp_path / "vocabulary.toml", [*released, block])
    arguments = [sys.executable, "-c", WALK_THE_NEW_ONE, str(repository), str(tmp_path), LINE]
    (tmp_path / "walk").mkdir()
    found = subprocess.run(arguments, cwd=repository, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_fake_codec_is_one():
    from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer

    codec = HashCodec(Modality.AUDIO)
    assert isinstance(codec, MediaTokenizer) and isinstance(codec, MediaDetokenizer)
