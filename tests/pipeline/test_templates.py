"""Templates: pools that hold what they promise, directions by corpus, and mistakes that are named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.templates import (
    Templates,
    all_directions,
    check_shares,
    directions_of,
    draw_direction,
    draw_fractions,
    load_templates,
    split_direction,
)
from shards.errors import ConfigError
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality

PICTURE = (("image", Modality.IMAGE), ("caption", Modality.TEXT))


def sample(corpus: str, *slots: tuple[str, Modality]) -> TokenizedSample:
    codes = np.zeros((32, 1), np.uint16)
    segments = tuple(
        Segment(slot, modality, "words") if modality == Modality.TEXT else Segment(slot, modality, codes=codes)
        for slot, modality in slots
    )
    return TokenizedSample(f"{corpus}/0", corpus, "train", segments, Provenance("f"))


def test_every_pool_has_a_hundred_distinct_sentences(templates: Templates):
    """Plain ASCII sentences that end in a full stop or a question mark and hold no placeholder."""
    everything: list[str] = []
    for direction in sorted(all_directions() - {"interleaved", "dialogue"}):
        pool = templates.pool(direction)
        assert len({text.lower() for text in pool}) == len(pool) >= 100, direction
        everything += pool
    for text in everything:
        assert text.isascii()
        assert re.fullmatch(r"[A-Z][^<>{}\[\]@]*[.?]", text), text
        assert text == " ".join(text.split())
    assert len(everything) == len(set(everything)) >= 600, "a sentence of two directions would not say which is meant"


def test_pools_are_of_varied_wording(templates: Templates):
    """Many ways to begin, and not only commands."""
    for direction in sorted(all_directions() - {"interleaved", "dialogue"}):
        pool = templates.pool(direction)
        assert len({" ".join(text.split()[:2]) for text in pool}) > 40, direction
        assert sum(text.endswith("?") for text in pool) >= 5, direction


def test_corpora_are_told_the_way_the_paper_tells_them(templates: Templates):
    assert directions_of(sample("laion_coco", *PICTURE), templates) == {"image_to_text": 1.0}
    for corpus in ("journeydb", "laion_aesthetics", "laion2b"):
        assert directions_of(sample(corpus, *PICTURE), templates) == {"text_to_image": 1.0}
    assert directions_of(sample("mine", *PICTURE), templates) == {"image_to_text": 0.5, "text_to_image": 0.5}
    speech = (("speech", Modality.SPEECH), ("transcript", Modality.TEXT))
    assert directions_of(sample("mls", *speech), templates) == {"speech_to_text": 0.5, "text_to_speech": 0.5}
    music = (("caption", Modality.TEXT), ("music", Modality.MUSIC))
    assert directions_of(sample("youtube_music", *music), templates) == {"music_to_text": 0.5, "text_to_music": 0.5}
    document = (("text", Modality.TEXT), ("image", Modality.IMAGE))
    assert directions_of(sample("mmc4_core_ff", *document), templates) == {"interleaved": 1.0}
    assert directions_of(sample("blogs", *document), templates) == {"interleaved": 1.0}
    chat = (("user", Modality.TEXT), ("assistant", Modality.IMAGE))
    assert directions_of(sample("anyinstruct", *chat), templates) == {"dialogue": 1.0}


@given(name=st.text(max_size=20), draw=st.integers(0, 1000), seed=st.integers(0, 2**32))
def test_a_draw_depends_on_its_key_alone(name: str, draw: int, seed: int):
    fractions = draw_fractions(name, draw=draw, seed=seed, count=3)
    assert fractions == draw_fractions(name, draw=draw, seed=seed, count=3)
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert fractions != draw_fractions(name, draw=draw + 1, seed=seed, count=3)


def test_draws_are_the_same_on_every_machine():
    """A golden figure: a change here redraws every packed dataset there is."""
    assert draw_fractions("laion2b/00000/000000017", draw=2, seed=7, count=2) == [
        0.25291652436115186,
        0.3578166175005282,
    ]


@given(fraction=st.floats(0, 1, exclude_max=True), share=st.floats(0, 1))
def test_a_direction_is_drawn_by_its_share(fraction: float, share: float):
    shares = {"text_to_image": 1 - share, "image_to_text": share}
    drawn = draw_direction(shares, fraction)
    assert drawn == ("image_to_text" if fraction < share else "text_to_image") or shares[drawn] > 1 - 1e-9


@pytest.mark.parametrize("direction", sorted(all_directions()))
def test_every_direction_is_a_pair_or_one_of_two_others(direction: str):
    if direction in ("interleaved", "dialogue"):
        with pytest.raises(ConfigError, match="expected a direction"):
            split_direction(direction)
        return
    modality, to_text = split_direction(direction)
    assert direction == (f"{modality}_to_text" if to_text else f"text_to_{modality}")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"image_to_txt": 1.0}, "found 'image_to_txt'"),
        ({"image_to_text": 0.5}, "sum to 1"),
        ({"image_to_text": 1.5, "text_to_image": -0.5}, "sum to 1"),
        ({}, "sum to 1"),
    ],
)
def test_wrong_shares_are_refused_by_name(shares: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        check_shares(shares, where="packing.toml: key 'directions'")
    assert str(raised.value).startswith("packing.toml: key 'directions'")


@pytest.fixture
def spoiled(repository: Path, tmp_path: Path) -> Callable[[str, str, str], Path]:
    """A copy of the templates with one string of one file replaced."""

    def spoil(name: str, old: str, new: str) -> Path:
        folder = tmp_path / "templates"
        shutil.copytree(repository / "configs" / "templates", folder)
        path = folder / name
        before = path.read_text(encoding="utf-8")
        assert old in before
        path.write_text(before.replace(old, new, 1), encoding="utf-8")
        return folder

    return spoil


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("image.toml", '"Draw this."', '"Draw what the text says."', "found 'draw what the text says.' again"),
        ("image.toml", '"Draw this."', '"Draw {text}."', "no brackets or placeholders"),
        ("image.toml", '"Draw this."', '"Draw this"', "ends in"),
        ("image.toml", '"Draw this."', '"Draw a caf\u00e9."', "plain ASCII"),
        ("image.toml", '"Draw this."', '" Draw this."', "plain ASCII"),
        ("speech.toml", 'modality = "speech"', 'modality = "music"', "key 'modality': expected 'speech'"),
        ("music.toml", "music_to_text = 0.5", "music_to_text = 0.4", "directions.default.*sum to 1"),
        ("music.toml", "music_to_text = 0.5", "image_to_text = 0.5", "expected only"),
        ("interleaved.toml", "[directions.default]", "[directions.blogs]", "directions.default' is required"),
        ("dialogue.toml", 'preset = "MMGPT"', 'preset = "GPT"', "expected one of.*'AnyGPT', 'MMGPT'"),
        ("dialogue.toml", "user_end", "user_stop", "user_stop"),
    ],
)
def test_a_mistake_in_a_template_names_file_and_key(
    spoiled: Callable[[str, str, str], Path], name: str, old: str, new: str, message: str
):
    with pytest.raises(ConfigError, match=message) as raised:
        load_templates(spoiled(name, old, new))
    assert name in str(raised.value)


def test_too_small_a_pool_is_refused(spoiled: Callable[[str, str, str], Path]):
    folder = spoiled("music.toml", "# Music", "# Less music")
    path = folder / "music.toml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    start = lines.index("x_to_text = [\n")
    path.write_text("".join(lines[: start + 1] + lines[start + 8 :]), encoding="utf-8")
    with pytest.raises(ConfigError, match="expected at least 100 instructions, found 99"):
        load_templates(folder)


def test_a_missing_file_is_named(spoiled: Callable[[str, str, str], Path]):
    folder = spoiled("music.toml", "# Music", "# Less music")
    (folder / "speech.toml").unlink()
    with pytest.raises(ConfigError, match=r"speech\.toml"):
        load_templates(folder)


def test_any_change_of_wording_changes_the_fingerprint(templates: Templates, spoiled: Callable[[str, str, str], Path]):
    changed = load_templates(spoiled("image.toml", '"Draw this."', '"Draw it."'))
    assert changed.fingerprint != templates.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", changed.fingerprint)
