"""Bytes that depend on their content alone."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import time

import numpy as np
import pytest
import soundfile

from pipeline.sample_corpora import encoders
from pipeline.sample_corpora.encoders import (
    flac_bytes,
    gzip_bytes,
    jpeg_bytes,
    mp3_bytes,
    opus_bytes,
    tar_bytes,
    wav_bytes,
    with_ogg_serial,
)
from pipeline.sample_corpora.pictures import all_attributes, render_picture

RATE_HZ = 16_000
TONE = (0.4 * np.sin(np.arange(2 * RATE_HZ) * 0.1) * np.linspace(0, 1, 2 * RATE_HZ)).astype(np.float32)


def raw_opus() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, RATE_HZ, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def serial_of(data: bytes) -> int:
    return struct.unpack("<I", data[14:18])[0]


def test_opus_is_the_same_twice_although_its_encoder_draws_a_serial_number():
    assert raw_opus() != raw_opus()
    assert opus_bytes(TONE, RATE_HZ, serial=7) == opus_bytes(TONE, RATE_HZ, serial=7)
    assert serial_of(opus_bytes(TONE, RATE_HZ, serial=7)) == 7


def test_page_checksums_are_those_of_libogg():
    """Writing the serial number a stream has already changes nothing, checksums included."""
    original = raw_opus()
    assert with_ogg_serial(original, serial_of(original)) == original
    assert with_ogg_serial(with_ogg_serial(original, 5), serial_of(original)) == original


def test_a_changed_serial_number_leaves_the_sound_as_it_was():
    original = raw_opus()
    before, _ = soundfile.read(io.BytesIO(original))
    after, _ = soundfile.read(io.BytesIO(with_ogg_serial(original, 123)))
    assert np.array_equal(before, after)


def test_what_is_no_ogg_stream_is_refused():
    with pytest.raises(ValueError, match="expected an Ogg page at byte 0"):
        with_ogg_serial(b"RIFF" + bytes(40), 1)


@pytest.mark.parametrize("encode", [flac_bytes, wav_bytes, mp3_bytes, lambda s, r: opus_bytes(s, r, serial=1)])
def test_sounds_come_back_with_their_length_and_without_a_shift(encode):
    data = encode(TONE, RATE_HZ)
    assert data == encode(TONE, RATE_HZ)
    sound, rate_hz = soundfile.read(io.BytesIO(data))
    assert rate_hz == RATE_HZ
    assert len(sound) == len(TONE)
    assert np.corrcoef(sound, TONE)[0, 1] > 0.99


def test_archives_do_not_know_what_time_it_is(monkeypatch):
    members = [("1.jpg", b"a"), ("1.txt", b"b")]
    before = tar_bytes(members), gzip_bytes(b"text")
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert before == (tar_bytes(members), gzip_bytes(b"text"))
    with tarfile.open(fileobj=io.BytesIO(before[0])) as archive:
        assert [(one.name, one.mtime, one.uid) for one in archive] == [
            ("1.jpg", encoders.MTIME_S, 0),
            ("1.txt", encoders.MTIME_S, 0),
        ]
    assert gzip.decompress(before[1]) == b"text"


def test_a_jpeg_keeps_the_picture():
    picture = render_picture(all_attributes()[100])
    from PIL import Image

    again = Image.open(io.BytesIO(jpeg_bytes(picture, 95)))
    error = np.asarray(again, np.float64) - np.asarray(picture, np.float64)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 32
