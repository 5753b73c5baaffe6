"""Signatures: copies have equal or near ones, different samples do not, and what shows nothing has none."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.media import MediaConfig
from pipeline.pictures import decode_picture
from pipeline.samples import RawMedia, RawSample, RawText
from pipeline.signatures import (
    PictureHashConfig,
    SignatureConfig,
    TextHashConfig,
    minhash,
    name_digest,
    names_of,
    normal_text,
    picture_hash,
    pieces,
    quarter_colours,
    sign,
    spread,
    text_sha256,
)
from shards.modality import Modality
from shards.records import Provenance

MEDIA = MediaConfig()
PICTURES = PictureHashConfig()
TEXT_ON = SignatureConfig(text=TextHashConfig(on=True, min_chars=20))


def sample(
    *segments: RawMedia | RawText, sample_id: str = "corpus/file/1", url: str = "", member: str = ""
) -> RawSample:
    return RawSample(sample_id, "corpus", "train", segments, Provenance("file.tar", member, 0, url))


def photo(seed: int, side: int = 300) -> Image.Image:
    """Clouds of colour: what a photograph is to a perceptual hash."""
    noise = np.random.Generator(np.random.PCG64(seed)).integers(256, size=(9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def picture(data: bytes) -> RawMedia:
    return RawMedia("image", Modality.IMAGE, data)


def sound(wave: np.ndarray, kind: str, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    # Whole numbers: libsndfile rounds floats otherwise for one container than for the other.
    soundfile.write(buffer, (wave * 32_767).astype(np.int16), rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def distance(left: bytes, right: bytes) -> int:
    """Bits by which the perceptual hashes of two files differ."""
    hashes = [picture_hash(decode_picture(data), PICTURES) for data in (left, right)]
    assert None not in hashes
    return int(hashes[0] ^ hashes[1]).bit_count()


@given(st.integers(0, 10_000), st.integers(45, 95), st.integers(110, 600))
def test_a_resized_and_re_encoded_copy_is_near(seed: int, quality: int, side: int):
    original = photo(seed)
    copy = encoded(original.resize((side, side), Image.Resampling.LANCZOS), quality=quality)
    assert distance(encoded(original), copy) <= PICTURES.max_distance
    assert copy != encoded(original)


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_different_pictures_are_far_apart(seed: int, further: int):
    assert distance(encoded(photo(seed)), encoded(photo(seed + further))) > 2 * PICTURES.max_distance


def test_real_pictures_are_far_apart_and_all_have_a_hash(shared_corpora: Path):
    files = sorted(path for path in (shared_corpora / "journeydb").rglob("*.jpg"))
    hashes = [picture_hash(decode_picture(file.read_bytes()), PICTURES) for file in files]
    assert len(hashes) == 12
    assert None not in hashes
    gaps = [int(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(gaps) > 2 * PICTURES.max_distance


@pytest.mark.parametrize("shown", ["one colour", "a slope", "noise finer than a hash can see"])
def test_a_picture_that_shows_nothing_has_no_perceptual_hash(shown: str):
    """Else all white pages and all gradients would be copies of each other."""
    slope = np.linspace(0, 255, 224, dtype=np.uint8)
    pixels = {
        "one colour": np.full((224, 224, 3), 200, np.uint8),
        "a slope": np.broadcast_to(slope[:, None, None], (224, 224, 3)).copy(),
        "noise finer than a hash can see": np.random.Generator(np.random.PCG64(1)).integers(
            100, 140, size=(224, 224, 3), dtype=np.uint8
        ),
    }[shown]
    assert spread(pixels) < PICTURES.min_spread
    assert picture_hash(pixels, PICTURES) is None
    signed = sign(sample(picture(encoded(Image.fromarray(pixels)))), SignatureConfig(), MEDIA).media[0]
    assert signed.picture is None
    assert signed.colours == b""
    assert len(signed.sha256) == 32


def test_colours_tell_apart_what_the_hash_cannot():
    """The same shapes in other colours of the same brightness."""
    pixels = np.asarray(photo(3))
    swapped = np.ascontiguousarray(pixels[..., ::-1])
    apart = np.frombuffer(quarter_colours(pixels), np.uint8).astype(int) - np.frombuffer(
        quarter_colours(swapped), np.uint8
    )
    assert len(quarter_colours(pixels)) == 12
    assert np.abs(apart).max() > PICTURES.max_colour_distance


@pytest.mark.parametrize("kind", ["phash", "dhash", "whash", "average"])
def test_every_kind_of_hash_fits_64_bits_and_is_imagehash_s_own(kind: str):
    import imagehash

    config = PictureHashConfig(hash=kind)
    pixels = decode_picture(encoded(photo(5)))
    theirs = getattr(imagehash, "average_hash" if kind == "average" else kind)(Image.fromarray(pixels))
    assert picture_hash(pixels, config) == int(str(theirs), 16)


def test_a_sound_in_another_lossless_container_is_the_same_sound():
    wave = np.random.Generator(np.random.PCG64(0)).uniform(-0.5, 0.5, size=(8_000, 2))
    signed = [
        sign(sample(RawMedia("music", Modality.MUSIC, sound(wave, kind))), SignatureConfig(), MEDIA).media[0]
        for kind in ("WAV", "FLAC")
    ]
    assert signed[0].sha256 != signed[1].sha256
    assert signed[0].decoded_sha256 == signed[1].decoded_sha256 != b""


def test_a_sound_is_another_one_at_another_rate_or_cut_elsewhere(tmp_path: Path):
    wave = np.random.Generator(np.random.PCG64(0)).uniform(-0.5, 0.5, size=16_000)
    (tmp_path / "long.flac").write_bytes(sound(wave, "FLAC"))
    cut = [
        RawMedia("speech", Modality.SPEECH, path=tmp_path / "long.flac", begin_s=begin_s, end_s=begin_s + 0.5)
        for begin_s in (0.0, 0.25)
    ]
    clips = [RawMedia("speech", Modality.SPEECH, sound(wave[:8_000], "WAV", rate)) for rate in (16_000, 8_000)]
    signed = sign(sample(*cut, *clips), SignatureConfig(), MEDIA).media
    assert len({medium.sha256 for medium in signed}) == 4
    first_cut, second_cut, same_clip, slow_clip = (medium.decoded_sha256 for medium in signed)
    assert first_cut == same_clip, "a segment of a recording and the same half second on its own"
    assert len({first_cut, second_cut, slow_clip}) == 3


def test_silence_and_what_cannot_be_decoded_keep_the_hash_of_their_bytes_alone():
    silent, torn = sound(np.zeros(1_000), "WAV"), b"RIFF but no more"
    signed = sign(
        sample(RawMedia("a", Modality.SPEECH, silent), RawMedia("b", Modality.SPEECH, torn), picture(b"\xff\xd8 torn")),
        SignatureConfig(),
        MEDIA,
    ).media
    assert [medium.sha256 for medium in signed] == [
        hashlib.sha256(data).digest() for data in (silent, torn, b"\xff\xd8 torn")
    ]
    assert {medium.decoded_sha256 for medium in signed} == {b""}
    assert signed[2].picture is None


@given(st.text(max_size=80))
def test_a_normalised_text_stays_as_it_is_and_forgets_case_and_punctuation(text: str):
    normal = normal_text(text)
    assert normal_text(normal) == normal
    assert normal_text(f"  {text}! ") == normal
    assert normal == " ".join(normal.split())


def test_a_text_is_the_same_in_capitals_without_punctuation():
    """LibriSpeech writes capitals, MLS small letters, GigaSpeech tags for punctuation."""
    assert normal_text("Hello, WORLD - it’s  me.") == normal_text("hello world it s me")


def test_minhash_estimates_the_share_of_common_pieces():
    config = TextHashConfig(on=True)
    words = [f"word{n}" for n in range(200)]
    left, right = (
        normal_text(" ".join(words)),
        normal_text(" ".join([*words[:190], *(f"other{n}" for n in range(10))])),
    )
    both = [pieces(text, config) for text in (left, right)]
    exact = len(both[0] & both[1]) / len(both[0] | both[1])
    estimate = float((minhash(left, config) == minhash(right, config)).mean())
    assert estimate == pytest.approx(exact, abs=0.12)
    assert minhash(left, config).dtype == np.uint32
    assert minhash(left, config).shape == (128,)


def test_pieces_are_of_characters_or_of_words():
    assert pieces("abcd", TextHashConfig(ngram=3)) == {b"abc", b"bcd"}
    assert pieces("a b c", TextHashConfig(ngram=2, unit="word")) == {b"a b", b"b c"}
    assert pieces("ab", TextHashConfig(ngram=5)) == {b"ab"}


def test_text_signatures_count_chosen_slots_and_long_texts_only():
    segments = (RawText("caption", "A long caption of a picture."), RawText("user", "not a chosen slot"))
    signed = sign(sample(*segments), TEXT_ON, MEDIA)
    assert signed.texts == tuple(text_sha256(normal_text(segment.text)) for segment in segments)
    assert signed.joined_sha256 == signed.texts[0]
    assert len(signed.minhash) == 128 * 4
    short = sign(sample(RawText("caption", "short")), TEXT_ON, MEDIA)
    assert (short.joined_sha256, short.minhash, len(short.texts)) == (b"", b"", 1)


def test_a_sample_goes_by_its_id_its_file_and_its_url_but_not_by_a_bare_number():
    url = "http://images.example.org/val2014/COCO_val2014_000000391895.jpg?v=abc"
    names = names_of(sample(sample_id="laion2b/00000/000000017", url=url, member="000000017.jpg"))
    assert set(names) == {
        "laion2b/00000/000000017",
        url,
        "000000017.jpg",
        "COCO_val2014_000000391895.jpg",
        "COCO_val2014_000000391895",
        "abc",
    }
    assert sign(sample(url=url), SignatureConfig(), MEDIA).names == tuple(map(name_digest, names_of(sample(url=url))))
