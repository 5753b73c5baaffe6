"""The world of the pictures: what is drawn, what is said about it, and what is kept apart."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.sample_corpora import pictures
from pipeline.sample_corpora.draws import balanced, generator, pick, stable_hex, stable_int
from pipeline.sample_corpora.pictures import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    TEMPLATES,
    PictureAttributes,
    all_attributes,
    describe,
    draw_variation,
    parse_caption,
    render_picture,
    with_article,
)

attributes_strategy = st.sampled_from(all_attributes())
RED_CIRCLE = PictureAttributes("circle", "red", "white", "left")


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


@functools.cache
def small_prototype(attributes: PictureAttributes) -> np.ndarray:
    return pixels(render_picture(attributes).reduce(4))


def test_every_caption_of_every_composition_reads_back_as_its_attributes():
    """The law the evaluation rests on, over all 720 compositions and all templates."""
    for attributes in all_attributes():
        for template in range(len(TEMPLATES)):
            assert parse_caption(describe(attributes, template)) == attributes.as_dict()


def test_every_caption_names_each_attribute_exactly_once():
    for attributes in all_attributes():
        for template in range(len(TEMPLATES)):
            words = describe(attributes, template).replace(",", " ").replace(":", " ").split()
            for word in attributes.as_dict().values():
                assert words.count(word) == 1, (words, word)


def test_there_are_many_wordings_and_they_differ():
    assert len(TEMPLATES) >= 12
    assert len({describe(RED_CIRCLE, template) for template in range(len(TEMPLATES))}) == len(TEMPLATES)


def test_a_caption_a_human_can_follow():
    assert describe(RED_CIRCLE, 0) == "a red circle on the left of a white background"
    assert with_article("orange") == "an orange"


def test_a_contradicted_attribute_is_not_found():
    assert parse_caption("a red circle, or a blue circle, at the top") == {"shape": "circle", "position": "top"}
    assert parse_caption("Three PURPLE crosses!") == {"shape": "cross", "colour": "purple"}
    assert parse_caption("") == {}


def test_held_out_pairs_take_each_shape_and_each_colour_once():
    assert sorted(shape for shape, _ in HELD_OUT_PAIRS) == sorted(SHAPES)
    assert sorted(colour for _, colour in HELD_OUT_PAIRS) == sorted(COLOURS)
    assert len(all_attributes()) == 720
    assert len(all_attributes(held_out=True)) == 120
    assert set(all_attributes(held_out=True)) | set(all_attributes(held_out=False)) == set(all_attributes())


def test_words_outside_the_world_are_refused():
    with pytest.raises(ValueError, match="expected one of circle"):
        PictureAttributes("hexagon", "red", "white", "left")
    with pytest.raises(ValueError, match="expected one of white"):
        PictureAttributes("circle", "red", "blue", "left")


def test_prototypes_are_far_apart():
    """A decoded picture is judged by its nearest prototype, so any two must differ by much more than noise."""
    small = np.stack([small_prototype(one).ravel() for one in all_attributes()])
    squares = (small**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * small @ small.T
    np.fill_diagonal(distances, np.inf)
    root_mean_square = np.sqrt(distances.min() / small.shape[1])
    assert root_mean_square > 8  # of 255, at 56 x 56 pixels; the jitter of shades is 5


@settings(max_examples=60, deadline=None)
@given(attributes_strategy, st.integers(0, 10**9))
def test_a_varied_picture_is_nearest_to_its_own_prototype_among_the_shapes_and_colours(attributes, seed):
    """Variation never makes a red circle look like another composition."""
    varied = draw_variation(generator(seed), jitter_px=2, jitter_scale=0.03, jitter_shade=5)
    picture = pixels(render_picture(attributes, varied).reduce(4))
    rivals = [one for one in all_attributes() if one.position == attributes.position]
    nearest = min(rivals, key=lambda one: float(((small_prototype(one) - picture) ** 2).sum()))
    assert nearest == attributes


@settings(max_examples=100, deadline=None)
@given(attributes_strategy, st.integers(0, 10**9))
def test_variation_stays_within_its_bounds_and_the_shape_within_the_picture(attributes, seed):
    varied = draw_variation(generator(seed), jitter_px=2, jitter_scale=0.03, jitter_shade=5)
    assert max(map(abs, varied.shift_px)) <= 2
    assert abs(varied.scale - 1) <= 0.03
    assert max(map(abs, (*varied.shade, *varied.background_shade))) <= 5
    edge = pixels(render_picture(attributes, varied))
    border = np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]])
    assert np.all(border == border[0])


def test_a_shape_is_about_ninety_pixels_and_antialiased():
    for shape in SHAPES:
        picture = pixels(render_picture(PictureAttributes(shape, "red", "white", "center")))
        changed = np.any(picture != picture[0, 0], axis=-1)
        assert 70 <= np.ptp(np.flatnonzero(changed.any(axis=0))) + 1 <= 110
        assert picture.shape == (pictures.SIZE_PX, pictures.SIZE_PX, 3)
    assert len(np.unique(pixels(render_picture(RED_CIRCLE)).reshape(-1, 3), axis=0)) > 2


def test_no_jitter_is_the_prototype():
    none = draw_variation(generator(1), jitter_px=0, jitter_scale=0, jitter_shade=0)
    assert render_picture(RED_CIRCLE, none).tobytes() == render_picture(RED_CIRCLE).tobytes()


@given(st.integers(1, 40), st.integers(0, 5), st.integers())
def test_balanced_draws_use_every_option_once_an_epoch(size, epoch, seed):
    drawn = [balanced(range(size), epoch * size + place, seed, "test") for place in range(size)]
    assert sorted(drawn) == list(range(size))


def test_draws_depend_on_seed_and_key_alone():
    """Fixed values: another machine, process or hash seed must draw the same."""
    assert stable_int("a", 1, num_bytes=4) == 1_229_552_645
    assert stable_hex("client", "ada", digits=12) == "9735f3ffcba2"
    assert generator(7, "x").integers(10**9) == 940_569_022
    assert pick(generator(7, "x"), range(1000)) == pick(generator(7, "x"), range(1000))
