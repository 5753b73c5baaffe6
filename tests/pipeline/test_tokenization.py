"""Stage A's pure part: nothing lost, nothing twice, Table 1 held, whatever happens to a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject
from pipeline.tokenization import (
    LEVELS_AT_REST,
    SAMPLES_PER_FRAME,
    Clip,
    DecodedSample,
    check_rate,
    count_tokens,
    decode_samples,
    encode_samples,
)
from shards.errors import ConfigError, SampleError
from shards.modality import SOUNDS
from shards.rates import CODEBOOK_SIZES
from shards.records import Provenance, TokenizedSample
from shards.vocabulary import Codes, Modality

FATES = ("good", "undecodable", "filtered", "reject", "empty")


class HashCodec:
    """A codec of real shape: its codes are a hash of the medium alone."""

    def __init__(self, modality: Modality, *, frames_too_many: int = 0) -> None:
        self.modality = modality
        self.frames_too_many = frames_too_many
        self.batches: list[int] = []

    def encode(self, batch: Sequence[np.ndarray]) -> list[Codes]:
        self.batches.append(len(batch))
        return [self._encode_one(medium) for medium in batch]

    def _encode_one(self, medium: np.ndarray) -> Codes:
        frames = 32 if self.modality is Modality.IMAGE else -(-len(medium) // SAMPLES_PER_FRAME[self.modality])
        seed = int.from_bytes(hashlib.blake2b(medium.tobytes(), digest_size=8).digest(), "big")
        shape = (frames + self.frames_too_many, LEVELS_AT_REST[self.modality])
        return np.random.Generator(np.random.PCG64(seed)).integers(
            CODEBOOK_SIZES[self.modality], size=shape, dtype=np.uint16
        )


CODECS = {modality: HashCodec(modality) for modality in CODEBOOK_SIZES}


def provenance(number: int) -> Provenance:
    return Provenance(f"file-{number // 10}", f"member-{number}", number)


def raw_item(number: int, fate: str) -> RawSample | Filtered | Reject:
    name = f"corpus/{number:04d}"
    if fate == "filtered":
        return Filtered(name, "corpus", "too_small", "too_small: 3 px", provenance(number))
    if fate == "reject":
        return Reject(name, "corpus", "record_malformed", "record_malformed: no json", provenance(number))
    data = b"broken" if fate == "undecodable" else name.encode()
    segments = (RawText("caption", f"text {number}"), RawMedia("image", Modality.IMAGE, data))
    return RawSample(name, "corpus", "train", () if fate == "empty" else segments, provenance(number), {"score": 0.5})


def decode_picture(medium: RawMedia) -> list[Clip]:
    if medium.data == b"broken":
        raise SampleError("image_truncated", "half of it is missing")
    shade = int.from_bytes(hashlib.blake2b(medium.data, digest_size=1).digest(), "big")
    return [Clip(np.full((224, 224, 3), shade, np.uint8), hashlib.sha256(medium.data).hexdigest())]


def decode_windows(num_windows: int, num_samples: int = 160_000):
    def decode(medium: RawMedia) -> list[Clip]:
        waves = [np.full(num_samples, window / 10, np.float32) for window in range(num_windows)]
        return [Clip(wave, "0" * 64) for wave in waves]

    return decode


@given(st.lists(st.sampled_from(FATES), max_size=20))
def test_every_input_becomes_exactly_one_row_or_one_named_reason_in_order(fates: list[str]) -> None:
    items = [raw_item(number, fate) for number, fate in enumerate(fates)]
    encoded = list(encode_samples(list(decode_samples(items, decode_picture)), CODECS))
    assert [item.sample_id for item in encoded] == [item.sample_id for item in items]
    kinds = {"good": TokenizedSample, "filtered": Filtered}
    assert [type(item) for item in encoded] == [kinds.get(fate, Reject) for fate in fates]


@given(st.integers(1, 100))
def test_codes_are_those_of_a_sample_alone_whatever_its_neighbours(count: int) -> None:
    decoded = list(decode_samples([raw_item(number, "good") for number in range(count)], decode_picture))
    together = list(encode_samples(decoded, CODECS))
    (alone,) = encode_samples(decoded[-1:], CODECS)
    assert isinstance(alone, TokenizedSample)
    assert isinstance(together[-1], TokenizedSample)
    np.testing.assert_array_equal(alone.segments[1].codes, together[-1].segments[1].codes)


def test_a_codec_gets_all_media_of_a_unit_at_once() -> None:
    """It knows best how to cut them."""
    codec = HashCodec(Modality.IMAGE)
    decoded = list(decode_samples([raw_item(number, "good") for number in range(70)], decode_picture))
    list(encode_samples(decoded, {Modality.IMAGE: codec}))
    assert codec.batches == [70]


def test_a_medium_without_a_codec_is_a_mistake_of_the_config() -> None:
    decoded = list(decode_samples([raw_item(0, "good")], decode_picture))
    with pytest.raises(ConfigError, match=r"tokenizers\.image: expected a codec"):
        list(encode_samples(decoded, {}))


def test_rejects_keep_id_reason_message_and_where_it_came_from() -> None:
    (reject,) = decode_samples([raw_item(7, "undecodable")], decode_picture)
    assert isinstance(reject, Reject)
    assert (reject.sample_id, reject.reason) == ("corpus/0007", "image_truncated")
    assert "half of it is missing" in reject.message
    assert reject.provenance == provenance(7)


def test_rows_keep_text_quality_provenance_and_the_hash_of_the_raw_bytes() -> None:
    (row,) = encode_samples(list(decode_samples([raw_item(3, "good")], decode_picture)), CODECS)
    assert isinstance(row, TokenizedSample)
    caption, image = row.segments
    assert caption.text == "text 3"
    assert image.media_sha256 == hashlib.sha256(b"corpus/0003").hexdigest()
    assert (row.quality, row.provenance, row.split) == ({"score": 0.5}, provenance(3), "train")


@given(st.sampled_from(SOUNDS), st.integers(1, 200_000))
def test_table_1_holds_for_every_duration_and_one_frame_more_is_a_reject(modality: Modality, num_samples: int) -> None:
    frames = -(-num_samples // SAMPLES_PER_FRAME[modality])
    check_rate(modality, np.zeros((frames, LEVELS_AT_REST[modality]), np.uint16), num_samples)
    for wrong in (frames - 1, frames + 1):
        with pytest.raises(SampleError, match="rate_mismatch"):
            check_rate(modality, np.zeros((wrong, LEVELS_AT_REST[modality]), np.uint16), num_samples)


@pytest.mark.parametrize("modality", list(CODEBOOK_SIZES))
def test_a_code_outside_its_codebook_is_a_reject(modality: Modality) -> None:
    codes = np.zeros((32 if modality is Modality.IMAGE else 1, LEVELS_AT_REST[modality]), np.uint16)
    codes[0, 0] = CODEBOOK_SIZES[modality]
    with pytest.raises(SampleError, match="rate_mismatch"):
        check_rate(modality, codes, 1)


def test_a_codec_that_breaks_the_rate_rejects_the_sample_and_not_the_job() -> None:
    decoded = list(decode_samples([raw_item(0, "good"), raw_item(1, "filtered")], decode_picture))
    first, second = encode_samples(decoded, {Modality.IMAGE: HashCodec(Modality.IMAGE, frames_too_many=1)})
    assert isinstance(first, Reject)
    assert first.reason == "rate_mismatch"
    assert isinstance(second, Filtered)


def test_each_window_of_a_long_sound_is_a_sample_with_the_same_caption() -> None:
    segments = (RawText("caption", "a slow organ"), RawMedia("music", Modality.MUSIC, b"sound"))
    sample = RawSample("youtube/abc", "youtube", "train", segments, provenance(0))
    rows = list(encode_samples(list(decode_samples([sample], decode_windows(3))), CODECS))
    assert [row.sample_id for row in rows] == ["youtube/abc#w0", "youtube/abc#w1", "youtube/abc#w2"]
    for row in rows:
        assert isinstance(row, TokenizedSample)
        assert row.segments[0].text == "a slow organ"
        assert row.segments[1].codes is not None
        assert row.segments[1].codes.shape == (250, 4)
        assert row.segments[1].duration_s == 5.0
    assert len({row.segments[1].codes.tobytes() for row in rows}) == 3


def test_windows_of_two_media_in_one_sample_are_refused() -> None:
    segments = (RawMedia("music", Modality.MUSIC, b"a"), RawMedia("music", Modality.MUSIC, b"b"))
    sample = RawSample("dialogue/1", "dialogue", "train", segments, provenance(0))
    (reject,) = decode_samples([sample], decode_windows(2))
    assert isinstance(reject, Reject)
    assert reject.reason == "several_long_media"


def test_the_second_sample_of_an_id_is_a_reject() -> None:
    decoded = list(decode_samples([raw_item(1, "good"), raw_item(1, "good")], decode_picture))
    first, second = encode_samples(decoded, CODECS)
    assert isinstance(first, TokenizedSample)
    assert isinstance(second, Reject)
    assert second.reason == "duplicate_id"


def test_tokens_are_counted_as_the_language_model_reads_them() -> None:
    speech = RawSample("s", "c", "train", (RawMedia("speech", Modality.SPEECH, b"a"),), provenance(0))
    music = RawSample("m", "c", "train", (RawMedia("music", Modality.MUSIC, b"a"),), provenance(0))
    one_second, five_seconds = decode_windows(1, 16_000), decode_windows(1, 160_000)
    decoded = [*decode_samples([speech], one_second), *decode_samples([music], five_seconds)]
    decoded += decode_samples([raw_item(0, "good")], decode_picture)
    assert all(isinstance(item, DecodedSample) for item in decoded)
    rows = [row for row in encode_samples(decoded, CODECS) if isinstance(row, TokenizedSample)]
    assert count_tokens(rows) == {"image": 32, "music": 1000, "speech": 50}
