"""What a file is, its content says; what cannot be used is told with the file's name and what to do."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from inference.media_in import decode_file, kind_of, kind_of_file, read_file
from shards.errors import SampleError
from shards.modality import Modality


def picture_bytes(kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def sound_bytes(kind: str = "WAV", seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    wave = np.sin(np.arange(round(seconds * rate)) / 15).astype(np.float32) * 0.5
    soundfile.write(buffer, np.stack([wave] * channels, axis=1), rate, format=kind)
    return buffer.getvalue()


def file(tmp_path: Path, data: bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_one_under_any_name(tmp_path: Path, kind):
    path = file(tmp_path, picture_bytes(kind), "sound.wav")
    modality, clip = decode_file(path)
    assert modality is Modality.IMAGE and clip.medium.shape == (224, 224, 3)
    assert kind_of_file(path) == "picture"


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_sound_is_one_under_any_name(tmp_path: Path, kind):
    path = file(tmp_path, sound_bytes(kind), "picture.png")
    assert kind_of_file(path) == "sound"
    modality, clip = decode_file(path, Modality.SPEECH)
    assert modality is Modality.SPEECH and abs(len(clip.medium) - 16_000) < 2000


def test_the_field_says_whether_a_sound_is_speech_or_music(tmp_path: Path):
    path = file(tmp_path, sound_bytes(seconds=7.0, rate=44_100, channels=2))
    assert len(decode_file(path, Modality.SPEECH)[1].medium) == 7 * 16_000
    assert len(decode_file(path, Modality.MUSIC)[1].medium) == 5 * 32_000  # the first window
    with pytest.raises(SampleError, match="say whether it is speech or music"):
        decode_file(path)


def test_music_is_read_from_its_start_every_time(tmp_path: Path):
    """The released code takes another piece of it at every call (anygpt-compat U-17)."""
    noise = np.random.default_rng(0).normal(0, 0.1, 12 * 32_000).astype(np.float32)
    path = tmp_path / "long.wav"
    soundfile.write(path, noise, 32_000, subtype="FLOAT")
    first, second = (decode_file(path, Modality.MUSIC)[1].medium for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(first, noise[: 5 * 32_000])


@pytest.mark.parametrize(
    ("data", "modality", "message"),
    [
        (picture_bytes(), Modality.SPEECH, "expected a sound for speech, found a picture"),
        (sound_bytes(), Modality.IMAGE, "expected a picture for image, found a sound"),
        (b"just a text", Modality.IMAGE, "neither a picture nor a sound.*give PNG"),
        (b"just a text", None, "expected a picture or a sound, found neither"),
        (b"", Modality.IMAGE, "found an empty file"),
        (picture_bytes()[:90], Modality.IMAGE, "image_truncated.*expected a whole picture"),
        (picture_bytes(size=(4, 4)), Modality.IMAGE, "image_too_small"),
        (sound_bytes(seconds=0.01), Modality.SPEECH, "sound_too_short"),
        (sound_bytes(seconds=91.0, rate=4_000), Modality.SPEECH, "sound_too_long"),
        (sound_bytes("FLAC")[:3000], Modality.SPEECH, "sound_truncated"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, data, modality, message):
    path = file(tmp_path, data)
    with pytest.raises(SampleError, match=message) as caught:
        decode_file(path, modality)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.png", ".", "a\x00b", "x" * 5000])
def test_no_file_is_no_file(tmp_path: Path, name):
    with pytest.raises(SampleError, match=r"media_missing.*(mend the path|name the file)"):
        read_file(tmp_path / name)
    assert kind_of_file(tmp_path / name) is None


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "sparse.wav"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(SampleError, match=r"media_too_large.*found 1048576; cut it"):
        decode_file(path, Modality.MUSIC)


def test_damaged_files_have_a_named_reason_and_never_end_the_program(tmp_path: Path, shared_corpora: Path):
    damaged = shared_corpora / "damaged"
    members: list[bytes] = []
    with tarfile.open(damaged / "laion" / "00000.tar") as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.endswith((".jpg", ".png")):
                read = archive.extractfile(member)
                assert read is not None
                members.append(read.read())
    sounds = [path.read_bytes() for suffix in ("wav", "flac", "mp3", "opus") for path in damaged.rglob(f"*.{suffix}")]
    outcomes: dict[str, int] = {}
    for number, data in enumerate([*members, *sounds]):
        path = file(tmp_path, data, f"{number}")
        try:
            decode_file(path, Modality.IMAGE if number < len(members) else Modality.MUSIC)
            outcome = "read"
        except SampleError as error:
            assert str(path) in str(error)
            outcome = error.reason
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["read"] > 10 and outcomes["image_truncated"] >= 1 and outcomes["image_too_large"] >= 1
    assert sum(count for name, count in outcomes.items() if name.startswith(("sound_", "media_"))) >= 3


def test_bytes_of_nothing_are_nothing():
    assert kind_of(b"\x00" * 4096) is None and kind_of(b"%PDF-1.7") is None and kind_of(b"<html></html>") is None
