"""Pictures: encoded bytes to the (224, 224, 3) that every picture tokenizer reads.

As AnyGPT's inference does (anygpt-compat 2.1): RGB, squashed to 224 x 224 with Pillow's bicubic filter, no crop. We depart
from it in what upstream left to chance: the camera's orientation is applied, transparency is laid on white (``drop`` is
upstream's way: the colours below it come to light, whatever they are), 16 bits are scaled and not clipped, of an
animation the first frame is taken. What a file is, its bytes say, never its name.

Size is judged from the header, before a pixel is decoded: a picture that claims 25,000 x 25,000 costs nothing.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from configs.load import Config
from pipeline.tokenizers.base import Picture
from shards.errors import SampleError

# Formats that occur in corpora; Pillow's others include some that start programs (EPS) or have no business here.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# What Pillow's decoders raise on damaged data.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class PictureConfig(Config):
    """How a picture is read; part of the fingerprint of every dataset with pictures."""

    size: int = Field(default=224, ge=1)
    """Of both sides; Table 1 wants 224."""
    resize: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    orient: bool = True
    """Apply the EXIF orientation."""
    transparency: Literal["white", "drop"] = "white"
    """What becomes of it: laid on white, or dropped, which is what gave AnyGPT's own tokens."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Larger ones are rejected before they are decoded (``image_too_large``)."""
    min_side: int = Field(default=8, ge=1)
    """Smaller ones are rejected (``image_too_small``): blown up to 224, they show nothing."""
    max_aspect_ratio: float = Field(default=20.0, ge=1.0)
    """Longer side by shorter side; squashed to a square, anything longer shows nothing (``image_aspect_ratio``)."""


def decode_picture(data: bytes, config: PictureConfig | None = None) -> Picture:
    """Decode one picture.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        SampleError: ``image_unreadable`` (no picture at all), ``image_truncated``, ``image_too_large``,
            ``image_too_small``, ``image_aspect_ratio``, ``image_mode_unsupported``.
    """
    config = config or PictureConfig()
    with _open(data) as image:
        _check_size(image.size, config)
        try:
            image.seek(0)
            image.load()
            if config.orient:
                # In place: else an image that lies right is copied, which takes a tenth of the time a picture has.
                ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image, on_white=config.transparency == "white")
        except Image.DecompressionBombError as error:
            raise SampleError("image_too_large", str(error)) from error
        except _DAMAGE as error:
            raise SampleError("image_truncated", f"expected a whole picture, found: {error}") from error
        filter_ = Image.Resampling[config.resize.upper()]
        return np.asarray(rgb.resize((config.size, config.size), filter_), np.uint8).copy()


def _open(data: bytes) -> Image.Image:
    """Read the header, nothing else."""
    try:
        with warnings.catch_warnings():
            # Pillow warns on its own limit; ours is checked right after.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise SampleError(
            "image_unreadable", f"expected a picture, found {len(data)} bytes: {data[:16]!r}..."
        ) from error
    except _DAMAGE as error:
        raise SampleError("image_truncated", f"expected a whole header, found: {error}") from error


def _check_size(size: tuple[int, int], config: PictureConfig) -> None:
    short, long = sorted(size)
    found = f"found {size[0]} x {size[1]}"
    if short * long > config.max_pixels:
        raise SampleError("image_too_large", f"expected at most {config.max_pixels} pixels, {found}")
    if short < config.min_side:
        raise SampleError("image_too_small", f"expected at least {config.min_side} pixels a side, {found}")
    if long > short * config.max_aspect_ratio:
        raise SampleError("image_aspect_ratio", f"expected at most {config.max_aspect_ratio} : 1, {found}")


def _to_rgb(image: Image.Image, *, on_white: bool) -> Image.Image:
    """Any mode to RGB."""
    if image.mode == "F":
        raise SampleError("image_mode_unsupported", "expected 8 or 16 bits a channel, found floats of unknown range")
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255, which turns a 16-bit photograph white.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if on_white and image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    # A conversion to what it is would be a copy.
    return image if image.mode == "RGB" else image.convert("RGB")
