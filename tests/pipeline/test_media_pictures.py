"""Pictures: whatever the bytes are, 224 x 224 RGB or a named reason."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from pipeline.pictures import PictureConfig, decode_picture
from shards.errors import SampleError
from tests.fixtures.miniature_corpora import picture


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(color: tuple[int, ...] | int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, color)


def reason(data: bytes, config: PictureConfig | None = None) -> str:
    with pytest.raises(SampleError) as caught:
        decode_picture(data, config)
    return caught.value.reason


@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
def test_every_size_and_format_becomes_224(width: int, height: int, form: str):
    config = PictureConfig(max_aspect_ratio=40)
    data = encoded(plain((10, 200, 30), size=(width, height)), form)
    pixels = decode_picture(data, config)
    assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (10, 200, 30)).max() <= 12


@given(st.binary(max_size=200))
def test_random_bytes_are_never_a_picture_nor_a_crash(data: bytes):
    assert reason(data) in {"image_unreadable", "image_truncated", "image_too_small"}


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_flipped_byte_gives_a_picture_or_a_reason(position: int, value: int):
    data = bytearray(picture(3))
    data[position % len(data)] = value
    try:
        assert decode_picture(bytes(data)).shape == (224, 224, 3)
    except SampleError as error:
        assert error.reason.startswith("image_")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_cut_picture_is_truncated(form: str):
    data = picture(1, form=form, size=(200, 160))
    assert reason(data[: len(data) // 2]) in {"image_truncated", "image_unreadable"}


def test_the_squash_is_pillows_bicubic_without_a_crop():
    image = Image.open(io.BytesIO(picture(2, size=(90, 40))))
    expected = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    assert (decode_picture(picture(2, size=(90, 40))) == expected).all()
    other = decode_picture(picture(2, size=(90, 40)), PictureConfig(resize="bilinear"))
    assert (other != expected).any()


def test_transparency_lies_on_white():
    half = plain((0, 0, 255, 0), "RGBA")
    half.paste((255, 0, 0, 255), (0, 0, 20, 30))
    pixels = decode_picture(encoded(half))
    assert tuple(pixels[112, 20]) == (255, 0, 0)
    assert tuple(pixels[112, 200]) == (255, 255, 255)


def test_transparency_can_be_dropped_as_upstream_does():
    """The colours below it come to light."""
    hidden = plain((0, 0, 255, 0), "RGBA")
    data = encoded(hidden)
    assert tuple(decode_picture(data, PictureConfig(transparency="drop"))[112, 112]) == (0, 0, 255)
    assert tuple(decode_picture(data, PictureConfig(transparency="white"))[112, 112]) == (255, 255, 255)
    opaque = encoded(plain((9, 8, 7)))
    assert (decode_picture(opaque) == decode_picture(opaque, PictureConfig(transparency="drop"))).all()


def test_pixels_are_those_of_the_public_code(parity: Path):
    """All images with upstream's choice; with ours, all but those that are transparent."""
    config = json.loads((parity / "seed2" / "config.json").read_text(encoding="utf-8"))
    expected = load_file(parity / "seed2" / "expected.safetensors")["squashed_uint8"]
    size = expected.shape[1]
    names = config["images"]
    assert len(names) == len(expected)
    for name, pixels in zip(names, expected, strict=True):
        data = (parity / "seed2" / "images" / f"{name}.png").read_bytes()
        assert (decode_picture(data, PictureConfig(size=size, transparency="drop")) == pixels).all(), name
        if not Image.open(io.BytesIO(data)).has_transparency_data:
            assert (decode_picture(data, PictureConfig(size=size)) == pixels).all(), name


def test_a_picture_of_one_pixel_is_a_named_reject():
    assert reason(encoded(plain((1, 2, 3), size=(1, 1)))) == "image_too_small"
    assert reason(encoded(plain((1, 2, 3), size=(1, 1)), "JPEG")) == "image_too_small"


def test_a_palette_with_a_transparent_color_lies_on_white():
    image = plain(0, "P")
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.paste(1, (0, 0, 20, 30))
    pixels = decode_picture(encoded(image, transparency=0))
    assert tuple(pixels[112, 20]) == (200, 0, 0)
    assert tuple(pixels[112, 200]) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    """Pillow's own conversion makes everything above 255 white."""
    wide = Image.fromarray(np.full((30, 40), 128 << 8, np.uint16))
    assert (decode_picture(encoded(wide)) == 128).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA", "P"])
def test_every_mode_becomes_rgb(mode: str):
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_picture(encoded(picture_of(mode), form)).shape == (224, 224, 3)


def picture_of(mode: str) -> Image.Image:
    return Image.open(io.BytesIO(picture(1))).convert(mode)


def test_the_cameras_orientation_is_applied():
    """Orientation 6: the stored left side is the top."""
    image = plain((0, 0, 0), size=(40, 40))
    image.paste((255, 255, 255), (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif, quality=95)
    turned, stored = decode_picture(data), decode_picture(data, PictureConfig(orient=False))
    assert turned[20].mean() > 240 and turned[200].mean() < 15
    assert stored[:, 20].mean() > 240 and stored[:, 200].mean() < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form: str):
    frames = [plain((250, 0, 0)), plain((0, 250, 0)), plain((0, 0, 250))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert tuple(decode_picture(data)[100, 100]) == (250, 0, 0)


def test_names_do_not_matter_but_formats_that_run_programs_are_refused():
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n") == "image_unreadable"
    assert reason(b"<html><body>403 Forbidden</body></html>") == "image_unreadable"


def test_sizes_are_judged_by_the_header():
    def header(width: int, height: int) -> bytes:
        ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
        return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    assert reason(header(25_000, 25_000)) == "image_too_large"
    assert reason(header(2**31 - 1, 2**31 - 1)) == "image_too_large"
    assert reason(header(9_000, 9_000)) == "image_too_large"
    assert reason(header(3, 100)) == "image_too_small"
    assert reason(header(1_000, 10)) == "image_aspect_ratio"
    assert reason(header(100, 100)) == "image_truncated"
