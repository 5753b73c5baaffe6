"""Names that every file system takes, and files that hold what was decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from inference.media_out import MAX_NAME, is_safe_name, safe_name, save_medium
from shards.modality import Modality

ANY_TEXT = st.text(st.characters(), max_size=300) | st.text("abAB/\\|.: -_\x00", max_size=80)


@given(ANY_TEXT)
@example("")
@example("CON")
@example("nul")
@example("com1")
@example("..")
@example("-rf")
@example("a/../../etc/passwd")
@example("text|image|x")
@example("\ud83d")
def test_a_name_is_safe_whatever_the_text(text):
    name = safe_name(text)
    assert is_safe_name(name) and 0 < len(name) <= MAX_NAME
    assert name.isascii() and name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    assert name.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt9"} and name[0] not in "-_"


@given(ANY_TEXT, ANY_TEXT)
@example("a b", "a_b")
@example("A", "a")
@example("é", "e")
@example("x" * 200, "x" * 201)
@example("a b", safe_name("a b"))
def test_two_texts_never_share_a_name(left, right):
    """Also where case does not count, for there are small letters only; also if one text is the other's name."""
    assert (safe_name(left) == safe_name(right)) == (left == right)


@given(ANY_TEXT, st.text(max_size=5), st.text(max_size=5))
def test_equal_texts_are_told_apart_by_what_else_is_given(text, left, right):
    assert (safe_name(text, unique_by=left) == safe_name(text, unique_by=right)) == (left == right)


def test_short_plain_names_stay_as_they_are():
    assert safe_name("answer-1") == "answer-1"
    assert safe_name("A red circle!").startswith("a_red_circle-")


def test_a_picture_comes_back_from_its_file(tmp_path: Path):
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    path = save_medium(tmp_path / "new", "a/b|c", Modality.IMAGE, picture)
    assert path.parent == tmp_path / "new" and path.suffix == ".png"
    assert (np.asarray(Image.open(path)) == picture).all()


@pytest.mark.parametrize(("modality", "rate"), [(Modality.SPEECH, 16_000), (Modality.MUSIC, 32_000)])
def test_a_sound_has_its_rate_and_its_samples(tmp_path: Path, modality, rate):
    wave = np.sin(np.arange(rate // 4) / 20).astype(np.float32)
    read, found = soundfile.read(save_medium(tmp_path, "tone", modality, wave), dtype="float32")
    assert found == rate and np.abs(read - wave).max() < 2 / 32768
    assert soundfile.info(save_medium(tmp_path, "tone", modality, wave, sample_rate_hz=8000)).samplerate == 8000


def test_a_text_is_no_medium(tmp_path: Path):
    with pytest.raises(ValueError, match="expected a picture or a sound"):
        save_medium(tmp_path, "t", Modality.TEXT, np.zeros(3, np.float32))
