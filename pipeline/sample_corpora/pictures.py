"""The world of the pictures: one flat shape on a plain background, and the sentences that describe it.

A picture is (shape x colour x background x position) = 6 x 6 x 4 x 5 = 720 compositions of 224 x 224 RGB. Six of the 36
(shape, colour) pairs, each shape and each colour once, are held out: no training text or picture combines them, so that
a model that draws them has composed what it learned apart. A caption names each attribute once, by its own word, so
that :func:`parse_caption` can judge what a model says and :func:`render_picture` (without a variation: the prototype)
what it draws.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 224
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("white", "black", "gray", "beige")
POSITIONS = ("left", "right", "top", "bottom", "center")

HELD_OUT_PAIRS = (
    ("circle", "purple"),
    ("square", "yellow"),
    ("triangle", "blue"),
    ("star", "green"),
    ("cross", "orange"),
    ("diamond", "red"),
)
"""(shape, colour) pairs that no training item shows or names."""

PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

# What the positions are called in running text.
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}

SENTENCE_TEMPLATES = (
    "{a_colour} {shape} {place} of a {background} background",
    "there is {a_colour} {shape} {place}, behind it everything is {background}",
    "a {background} picture with {a_colour} {shape} {place}",
    "on a {background} background, {a_colour} {shape} sits {place}",
    "{place}, you can see {a_colour} {shape} against {background}",
    "the {shape} {place} is {colour} and the background is {background}",
    "{a_colour} {shape} {place} against a plain {background} backdrop",
    "this image shows {a_colour} {shape} {place} on {background}",
    "one {colour} {shape} is placed {place}, surrounded by {background}",
    "a flat drawing of {a_colour} {shape} {place} over {background}",
    "the background is {background} and {place} there is {a_colour} {shape}",
    "a simple picture: {a_colour} {shape} {place}, {background} background",
    "the picture has {a_colour} {shape} {place} and is otherwise {background}",
    "{place} of the {background} canvas lies {a_colour} {shape}",
)
ALT_TEXT_TEMPLATES = (
    "{colour} {shape}, {position}, {background} background",
    "{colour} {shape} {position} on {background}",
    "{colour} {shape} icon {position} | {background} background",
    "{background} background {colour} {shape} {position} stock picture",
)
TEMPLATES = SENTENCE_TEMPLATES + ALT_TEXT_TEMPLATES

# Chosen so that the two most similar compositions, a purple circle and a purple square on gray, differ by 11 of 255 (root
# mean square); gray in the middle of the scale would hide purple and green.
_COLOUR_RGB = {
    "red": (214, 40, 40),
    "orange": (247, 133, 28),
    "yellow": (255, 220, 10),
    "green": (24, 148, 60),
    "blue": (30, 80, 214),
    "purple": (140, 44, 184),
}
_BACKGROUND_RGB = {"white": (245, 245, 245), "black": (18, 18, 18), "gray": (168, 168, 168), "beige": (230, 208, 170)}
_CENTRE_PX = {"left": (56, 112), "right": (168, 112), "top": (112, 56), "bottom": (112, 168), "center": (112, 112)}
_SUPERSAMPLING = 4

_WORDS = {
    **{word: ("shape", shape) for shape in SHAPES for word in (shape, PLURALS[shape])},
    **{colour: ("colour", colour) for colour in COLOURS},
    **{background: ("background", background) for background in BACKGROUNDS},
    **{position: ("position", position) for position in POSITIONS},
}


@dataclass(frozen=True, slots=True)
class PictureAttributes:
    """What a picture shows; a word outside the world is a ``ValueError``."""

    shape: str
    colour: str
    background: str
    position: str

    def __post_init__(self) -> None:
        for word, known in (
            (self.shape, SHAPES),
            (self.colour, COLOURS),
            (self.background, BACKGROUNDS),
            (self.position, POSITIONS),
        ):
            if word not in known:
                raise ValueError(f"expected one of {', '.join(known)}, found {word!r}")

    @property
    def held_out(self) -> bool:
        """Whether (shape, colour) is kept apart for evaluation."""
        return (self.shape, self.colour) in HELD_OUT_PAIRS

    def as_dict(self) -> dict[str, str]:
        """The four words by attribute, as :func:`parse_caption` gives them."""
        return {
            "shape": self.shape,
            "colour": self.colour,
            "background": self.background,
            "position": self.position,
        }


@dataclass(frozen=True, slots=True)
class PictureVariation:
    """How one picture differs from its prototype: pixels, a factor of size, and shades per RGB channel."""

    shift_px: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    shade: tuple[int, int, int] = (0, 0, 0)
    background_shade: tuple[int, int, int] = (0, 0, 0)


@functools.cache
def all_attributes(*, held_out: bool | None = None) -> tuple[PictureAttributes, ...]:
    """Every composition in a fixed order; all 720, or only those that are (not) held out."""
    everything = (PictureAttributes(*words) for words in product(SHAPES, COLOURS, BACKGROUNDS, POSITIONS))
    return tuple(one for one in everything if held_out is None or one.held_out == held_out)


def draw_variation(
    rng: np.random.Generator, *, jitter_px: float, jitter_scale: float, jitter_shade: int
) -> PictureVariation:
    """A small natural variation: uniform within ``+- jitter`` in position, size and shade."""
    dx, dy = (float(shift) for shift in rng.uniform(-jitter_px, jitter_px, 2))
    scale = 1.0 + float(rng.uniform(-jitter_scale, jitter_scale))
    red, green, blue, back_red, back_green, back_blue = (
        int(shade) for shade in rng.integers(-jitter_shade, jitter_shade + 1, 6)
    )
    return PictureVariation((dx, dy), scale, (red, green, blue), (back_red, back_green, back_blue))


def render_picture(attributes: PictureAttributes, variation: PictureVariation | None = None) -> Image.Image:
    """The picture, 224 x 224 RGB, antialiased; without a variation it is the prototype of these attributes."""
    variation = variation or PictureVariation()
    mask = Image.new("L", (SIZE_PX * _SUPERSAMPLING, SIZE_PX * _SUPERSAMPLING), 0)
    x, y = _CENTRE_PX[attributes.position]
    _draw_shape(
        ImageDraw.Draw(mask),
        attributes.shape,
        centre=((x + variation.shift_px[0]) * _SUPERSAMPLING, (y + variation.shift_px[1]) * _SUPERSAMPLING),
        unit=variation.scale * _SUPERSAMPLING,
    )
    shape = Image.new("RGB", (SIZE_PX, SIZE_PX), _shaded(_COLOUR_RGB[attributes.colour], variation.shade))
    background = _shaded(_BACKGROUND_RGB[attributes.background], variation.background_shade)
    canvas = Image.new("RGB", (SIZE_PX, SIZE_PX), background)
    return Image.composite(shape, canvas, mask.reduce(_SUPERSAMPLING))


def describe(attributes: PictureAttributes, template_index: int) -> str:
    """The caption by template ``template_index`` of ``TEMPLATES``: each attribute once, lower case, no full stop."""
    return TEMPLATES[template_index].format(
        **attributes.as_dict(), place=PLACES[attributes.position], a_colour=with_article(attributes.colour)
    )


def parse_caption(text: str) -> dict[str, str]:
    """The attributes a text names, by attribute.

    An attribute that is named with two different words (a red and blue circle) is left out: it was not decided.
    """
    named: dict[str, set[str]] = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _WORDS:
            attribute, value = _WORDS[word]
            named.setdefault(attribute, set()).add(value)
    return {attribute: values.pop() for attribute, values in named.items() if len(values) == 1}


def with_article(word: str) -> str:
    """``a red``, ``an orange``."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _shaded(rgb: tuple[int, int, int], shade: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + change)) for value, change in zip(rgb, shade, strict=True))
    return red, green, blue


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, *, centre: tuple[float, float], unit: float) -> None:
    """About 90 px across; ``unit`` is the length of one pixel of the final picture."""
    x, y = centre
    if shape == "circle":
        radius = 45 * unit
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        return
    draw.polygon([(x + dx * unit, y + dy * unit) for dx, dy in _OUTLINES[shape]], fill=255)


def _star_outline(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    radii = [outer, inner] * points
    angles = [math.pi * corner / points - math.pi / 2 for corner in range(2 * points)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-41, -41), (41, -41), (41, 41), (-41, 41)],
    "triangle": [(0, -46), (50, 40), (-50, 40)],
    "star": _star_outline(5, outer=51, inner=21),
    "cross": [
        *((-15, -45), (15, -45), (15, -15), (45, -15), (45, 15), (15, 15)),
        *((15, 45), (-15, 45), (-15, 15), (-45, 15), (-45, -15), (-15, -15)),
    ],
    "diamond": [(0, -51), (36, 0), (0, 51), (-36, 0)],
}
