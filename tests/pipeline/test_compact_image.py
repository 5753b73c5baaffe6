"""Two-tone pictures: exact rate, form apart from colour, and codebooks that do not split what looks alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample_corpora import pictures
from pipeline.sample_corpora.pictures import PictureAttributes, all_attributes, draw_variation, render_picture
from pipeline.tokenizers.compact_image import NUM_PALETTES, CompactImage, cover, fit_image, nearest


def varied(attributes, rng) -> np.ndarray:
    variation = draw_variation(rng, jitter_px=2, jitter_scale=0.03, jitter_shade=5)
    return np.asarray(render_picture(attributes, variation))


@pytest.fixture(scope="module")
def codec() -> CompactImage:
    rng = np.random.default_rng(0)
    train = all_attributes(held_out=False)
    return CompactImage(
        fit_image(np.stack([varied(train[n], rng) for n in rng.choice(len(train), 300, replace=False)]))
    )


def psnr_db(one, other) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


def test_held_out_pictures_come_back(codec):
    rng = np.random.default_rng(1)
    held_out = all_attributes(held_out=True)
    shown = [varied(held_out[n], rng) for n in rng.choice(len(held_out), 24, replace=False)]
    figures = [psnr_db(one, back) for one, back in zip(shown, codec.decode(codec.encode(shown)), strict=True)]
    assert np.mean(figures) >= 24 and min(figures) >= 20


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_picture_has_32_codes_and_decodes(codec, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    (codes,) = codec.encode([noise])
    assert codes.shape == (32, 1) and codes.dtype == np.uint16 and codes.max() < 8192
    assert (codes[0::2] >= NUM_PALETTES).all() and (codes[1::2] < NUM_PALETTES).all()
    (back,) = codec.decode([codes])
    assert back.shape == (224, 224, 3) and back.dtype == np.uint8


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 8191), min_size=32, max_size=32))
def test_any_32_codes_decode(codec, codes):
    """A model may put a palette where a pattern belongs; that paints something, it does not fail."""
    assert codec.decode([np.array(codes, np.uint16)])[0].shape == (224, 224, 3)


def test_the_same_form_has_the_same_patterns_in_every_colour(codec):
    """What lets a model compose: colours, light on dark or dark on light, do not touch the pattern codes."""
    shown = [
        np.asarray(render_picture(PictureAttributes("star", colour, background, "left")))
        for colour in pictures.COLOURS
        for background in pictures.BACKGROUNDS
    ]
    patterns = {tuple(codes[0::2, 0]) for codes in codec.encode(shown)}
    assert len(patterns) <= 2


def test_codes_do_not_depend_on_the_batch(codec):
    rng = np.random.default_rng(3)
    shown = [varied(attributes, rng) for attributes in all_attributes()[::90]]
    together = codec.encode(shown)
    assert all((codec.encode([one])[0] == codes).all() for one, codes in zip(shown, together, strict=True))


def test_fitting_is_deterministic():
    rng = np.random.default_rng(4)
    shown = np.stack([varied(attributes, rng) for attributes in all_attributes()[::40]])
    one, other = fit_image(shown), fit_image(shown)
    assert all((one[name] == other[name]).all() for name in one)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.floats(0.01, 2.0), st.integers(0, 1000))
def test_a_cover_never_has_too_many_entries(count, most, radius, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    assert 1 <= len(cover(vectors, most, radius)) <= most


def test_shades_nobody_can_tell_apart_share_one_code():
    rng = np.random.default_rng(6)
    shades = (rng.integers(0, 2, (500, 1)) * 100 + rng.normal(size=(500, 6))).astype(np.float32)
    entries = cover(shades, 64, 9.0)
    assert len(entries) == 2 and len(set(nearest(shades, entries).tolist())) == 2


WRONG = [np.zeros((224, 224), np.uint8), np.zeros((224, 224, 3), np.float32), np.zeros((1, 1, 3), np.uint8)]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_picture_is_refused(codec, wrong):
    with pytest.raises(ValueError, match="expected"):
        codec.encode([wrong])


def test_a_cut_code_list_is_refused(codec):
    with pytest.raises(ValueError, match="expected 32 codes, found 31"):
        codec.decode([np.zeros(31, np.uint16)])
