"""Waves to whole numbers and back: one frame per hop, silence stays silent, a tone keeps its pitch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizers.kmeans import EXACT
from pipeline.tokenizers.quality import log_mel_distance, psnr_db
from pipeline.tokenizers.spectra import TOP_STEP, FrontEnd, griffin_lim, mel_bank
from tests.fixtures.fitted_codecs import spoken

MUSIC = FrontEnd(sample_rate_hz=32_000, hop=640, window=2560, num_bands=192)
SPEECH = FrontEnd(sample_rate_hz=16_000, hop=320, window=640, num_bands=80)


def sine(hz: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def loudest_hz(wave: np.ndarray, rate: int) -> float:
    """Of the middle half, by the peak of a long spectrum."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 18))
    return float(spectrum.argmax()) * rate / (1 << 18)


@settings(max_examples=25)
@given(st.integers(1, 5000), st.sampled_from([MUSIC, SPEECH]))
def test_every_started_hop_is_a_frame(num_samples, front_end):
    log_mel = front_end.log_mel(np.zeros(num_samples, np.float32))
    assert log_mel.shape == (-(-num_samples // front_end.hop), front_end.num_bands)
    assert len(log_mel) == front_end.frames_for(num_samples)


@settings(max_examples=25)
@given(st.floats(1e-30, 1e30), st.integers(0, 1000))
def test_frames_are_small_whole_numbers_however_loud_the_sound_is(level, seed):
    """Otherwise sums in the codebooks would not be exact: a finite wave must never be refused."""
    noise = np.random.default_rng(seed).standard_normal(2000).astype(np.float32) * np.float32(level)
    log_mel = MUSIC.log_mel(noise)
    assert np.array_equal(log_mel, np.rint(log_mel)) and log_mel.min() >= 0 and log_mel.max() <= TOP_STEP
    assert (2 * TOP_STEP) ** 2 * MUSIC.num_bands < EXACT


def test_a_sound_in_pieces_has_the_frames_of_the_whole():
    """Longer than a piece of the analysis; the frames inside do not depend on where the sound ends."""
    wave = np.random.default_rng(0).standard_normal(SPEECH.hop * 1200).astype(np.float32) * 0.1
    whole, part = SPEECH.log_mel(wave), SPEECH.log_mel(wave[: SPEECH.hop * 900])
    assert np.array_equal(whole[:898], part[:898])


@pytest.mark.parametrize("front_end", [MUSIC, SPEECH])
def test_no_band_is_empty_and_no_bin_is_unheard(front_end):
    bank = mel_bank(front_end.sample_rate_hz, front_end.window, front_end.num_bands)
    assert (bank.max(axis=0) > 0).all()
    # The very lowest bin is the mean, the very highest the edge.
    assert (bank[2:-2].max(axis=1) > 0).all()


def test_silence_comes_back_as_silence():
    silence = np.zeros(6400, np.float32)
    assert not SPEECH.log_mel(silence).any()
    assert np.abs(SPEECH.wave_from_log_mel(SPEECH.log_mel(silence), iterations=8)).max() < 1e-4


@pytest.mark.parametrize("semitone", range(0, 49, 6))
def test_a_tone_keeps_its_pitch(semitone):
    """From 130 Hz to 2 kHz, well within half a semitone (2.9 %)."""
    hz = 130.81 * 2 ** (semitone / 12)
    back = MUSIC.wave_from_log_mel(MUSIC.log_mel(sine(hz, 1.0, 32_000)), iterations=8)
    assert len(back) == 32_000
    assert loudest_hz(back, 32_000) == pytest.approx(hz, rel=0.015)


def test_speech_survives_the_frames():
    """Nothing is lost by the front end that the codecs could not give back: less than a decibel."""
    wave = spoken(1)[0]
    back = SPEECH.wave_from_log_mel(SPEECH.log_mel(wave), iterations=16)
    assert log_mel_distance(wave, back, 16_000) < 1.2
    assert np.abs(SPEECH.log_mel(wave) - SPEECH.log_mel(back)[: len(SPEECH.log_mel(wave))]).mean() < 1.5


def test_reconstruction_comes_closer_with_iterations_and_repeats_itself():
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(640) / 640)

    def magnitudes(wave: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(wave, 640)[::160]
        return np.abs(np.fft.rfft(frames * window, axis=1)).astype(np.float32)

    target = magnitudes(spoken(1)[0])[:60]

    def error(iterations: int) -> float:
        wave = griffin_lim(target, 640, 160, 60 * 160, iterations)
        # Frame t is centred on sample (t + 0.5) * 160, so frame 2 begins at sample 80.
        found = magnitudes(wave[80:])
        return float(np.square(found - target[2 : 2 + len(found)]).mean())

    assert error(20) < 0.5 * error(0)
    assert np.array_equal(griffin_lim(target, 640, 160, 6400, 4), griffin_lim(target, 640, 160, 6400, 4))


def test_log_mel_distance_is_zero_for_the_same_and_about_a_gain():
    wave = spoken(1)[0]
    assert log_mel_distance(wave, wave, 16_000) == 0
    loud = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.2
    assert log_mel_distance(loud, loud / 2, 16_000) == pytest.approx(6.0, abs=0.6)
    assert log_mel_distance(loud, loud[:12_000], 16_000) < 0.1
    with pytest.raises(ValueError, match="empty"):
        log_mel_distance(loud, loud[:0], 16_000)


def test_psnr_is_in_decibels_of_the_full_range():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == float("inf")
    assert psnr_db(black, black + 255) == 0
    assert psnr_db(black, black + 1) == pytest.approx(48.13, abs=0.01)
    with pytest.raises(ValueError, match="one shape"):
        psnr_db(black, black[:2])
