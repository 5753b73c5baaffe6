"""Made-up media, and one sample through a codec and back: what a codec does wrong is named."""

import numpy as np
import pytest

from inference.diagnosis import Check, attempt
from inference.doctor import setting_of
from inference.doctor_media import DURATIONS_S, made_up_media, made_up_picture, made_up_sound
from inference.doctor_trials import (
    TOLERATED,
    check_batch,
    check_codes,
    check_medium,
    check_speed,
    try_codec,
    try_way_back,
)
from pipeline.tokenizers.compact_image import CompactImage, fit_image
from pipeline.tokenizers.weights import CodecOptions
from shards.errors import TokenizerError
from shards.modality import MEDIA, SOUNDS, Modality
from tests.fixtures.fitted_codecs import speech_codec


@pytest.mark.parametrize("modality", MEDIA)
def test_made_up_media_are_what_a_codec_takes_and_always_the_same(modality: Modality):
    media, again = made_up_media(modality), made_up_media(modality)
    assert len(media) == 3
    for index, (one, other) in enumerate(zip(media, again, strict=True)):
        assert np.array_equal(one, other)
        if modality.is_sound:
            assert one.shape == (round(DURATIONS_S[index] * modality.rate.sample_rate_hz),)
            assert one.dtype == np.float32 and 0.5 < float(np.abs(one).max()) <= 1.0
        else:
            assert (
                one.shape == (224, 224, 3)
                and one.dtype == np.uint8
                and len(np.unique(one.reshape(-1, 3), axis=0)) > 200
            )
    assert not np.array_equal(media[0][:1000], media[1][:1000])


@pytest.mark.parametrize("modality", SOUNDS)
def test_one_sound_is_not_a_whole_number_of_frames(modality: Modality):
    assert any(len(made_up_sound(modality, number)) % modality.rate.samples_per_frame for number in range(3))


def test_text_has_no_made_up_medium():
    with pytest.raises(ValueError, match="text"):
        made_up_media(Modality.TEXT)


class Faulty:
    """A speech codec with one thing wrong."""

    modality, name, codebook_size, levels = Modality.SPEECH, "faulty", 1024, 8
    sample_rate_hz, frame_rate_hz, fingerprint = 16_000, 50.0, "0" * 16

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def frames_for(self, num_samples: int) -> int:
        return -(-num_samples // 320)

    def encode(self, batch):
        if self.fault == "raises":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        codes = [np.random.default_rng(len(x)).integers(0, 1024, (self.frames_for(len(x)), 8)) for x in batch]
        if self.fault == "levels":
            codes = [one[:, :4] for one in codes]
        if self.fault == "range":
            codes = [one + 1000 for one in codes]
        if self.fault == "silent":
            codes = [one * 0 for one in codes]
        if self.fault == "neighbours" and len(batch) > 1:
            codes[2][-1, 0] ^= 1
        return [one.astype(np.uint16) for one in codes]

    def decode(self, batch):
        if self.fault == "decode":
            raise KeyError("embed")
        waves = [np.full(len(one) * 320, 0.5, np.float32) for one in batch]
        if self.fault == "length":
            return [wave[:-1] for wave in waves]
        if self.fault == "nan":
            waves[0][7] = np.nan
        return waves


@pytest.mark.parametrize(
    ("fault", "what", "words"),
    [
        ("raises", "codes", "RuntimeError: mat1"),
        ("levels", "codes", "(150, 8) by Table 1, found (150, 4)"),
        ("range", "codes", "[0, 1,024)"),
        ("silent", "codes", "not trained"),
        ("neighbours", "batch", "1 of 2,128 codes differ"),
        ("decode", "way back", "KeyError"),
        ("length", "way back", "47999"),
        ("nan", "way back", "no number"),
    ],
)
def test_what_a_codec_does_wrong_is_named(fault: str, what: str, words: str):
    codec = Faulty(fault)
    checks = try_codec(codec, lambda: codec)
    wrong = [check for check in checks if check.status == "wrong"]
    assert wrong[0].what == what and words in wrong[0].note


def test_a_codec_without_fault_has_none():
    codec = Faulty("")
    assert {check.status for check in try_codec(codec, lambda: codec)} == {"ok"}


def test_a_way_back_that_cannot_be_opened_is_a_finding():
    class OneWay:
        modality = Modality.SPEECH

    def fail() -> Faulty:
        raise TokenizerError("weights of the decoder are not there")

    codes = speech_codec().encode(made_up_media(Modality.SPEECH)[:1])[0]
    (check,) = try_way_back(OneWay(), codes, fail)
    assert check == Check("wrong", "way back", "weights of the decoder are not there")


def test_short_mantissas_may_change_a_hundredth_of_the_codes_and_float32_none():
    alone = [np.zeros((100, 8), np.uint16)]
    together = [alone[0].copy()]
    together[0][:8, 0] = 1
    assert check_batch(alone, together, tolerated=TOLERATED["fp16"]).status == "ok"
    assert check_batch(alone, together, tolerated=TOLERATED["fp32"]).status == "wrong"
    together[0][:9, 0] = 1
    assert check_batch(alone, together, tolerated=TOLERATED["tf32"]).status == "wrong"
    assert "another number" in check_batch(alone, [alone[0][:50]], tolerated=1.0).note


def test_pictures_come_back_as_pictures():
    codes = np.arange(32, dtype=np.uint16)[:, None]
    assert check_medium(np.zeros((768, 768, 3), np.uint8), codes, Modality.IMAGE).status == "ok"
    assert check_medium(np.zeros((3, 768, 768), np.uint8), codes, Modality.IMAGE).status == "wrong"
    assert check_medium(np.zeros((768, 768, 3), np.float32), codes, Modality.IMAGE).status == "wrong"
    assert check_speed("way back, speed", np.zeros((9, 9, 3), np.uint8), 0.5, Modality.IMAGE).note.startswith("0.50 s")
    assert "6 times real time" in check_speed("x", np.zeros(48_000, np.float32), 0.5, Modality.SPEECH).note


def test_codes_of_a_picture_are_32():
    picture = made_up_picture(0)
    codec = CompactImage(fit_image(np.stack([picture, made_up_picture(1)])))
    assert check_codes(codec.encode([picture])[0], picture, codec).status == "ok"
    assert check_codes(np.zeros((16, 1), np.uint16), picture, codec).status == "wrong"


def test_an_attempt_never_raises():
    def fail() -> int:
        raise IsADirectoryError(21, "Is a directory")

    assert attempt("loads", lambda: 3)[0] == 3
    value, check = attempt("loads", fail)
    assert value is None and check.note.startswith("IsADirectoryError")
    assert setting_of(CodecOptions(device="cpu", precision="tf32", compile=True)) == "on cpu, precision tf32, compiled"
