"""Speech and music at the exact rates of Table 1: pure functions of the wave, and back to what was heard."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample_corpora import music
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from pipeline.tokenizers.compact_speech import FRONT_END as SPEECH_FRONT_END
from pipeline.tokenizers.quality import log_mel_distance
from pipeline.tokenizers.vocoder import measure_voicing
from shards.vocabulary import Modality
from tests.fixtures.fitted_codecs import music_codec, music_tensors, played, speech_codec, speech_tensors, spoken

CODECS = [speech_codec, music_codec]


def shuffled_ratio(truth, decoded, rate: int) -> tuple[float, float]:
    turned = [decoded[-1], *decoded[:-1]]
    return tuple(
        float(np.mean([log_mel_distance(a, b, rate) for a, b in zip(truth, other, strict=True)]))
        for other in (decoded, turned)
    )


@pytest.mark.parametrize("make", CODECS)
def test_codecs_keep_the_protocol_and_table_1(make):
    codec = make()
    assert isinstance(codec, MediaTokenizer) and isinstance(codec, MediaDetokenizer)
    found = (codec.modality, codec.sample_rate_hz, codec.frame_rate_hz, codec.levels, codec.codebook_size)
    assert found in [(Modality.SPEECH, 16_000, 50.0, 8, 1024), (Modality.MUSIC, 32_000, 50.0, 4, 2048)]


@pytest.mark.parametrize("make", CODECS)
def test_rates_are_exact_for_a_thousand_durations(make):
    codec = make()
    hop = round(codec.sample_rate_hz / codec.frame_rate_hz)
    rng = np.random.default_rng(0)
    lengths = [1, hop - 1, hop, hop + 1, *(int(n) for n in rng.integers(1, 6 * hop, 996))]
    noise = rng.standard_normal(6 * hop).astype(np.float32) * 0.1
    codes = codec.encode([noise[:length] for length in lengths])
    for length, one in zip(lengths, codes, strict=True):
        assert one.shape == (-(-length // hop), codec.levels) == (codec.frames_for(length), codec.levels)
        assert one.dtype == np.uint16 and one.max() < codec.codebook_size


@pytest.mark.parametrize("make", CODECS)
@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(10, np.float64), "float32"),
        (np.zeros(10, np.int16), "float32"),
        (np.zeros((10, 2), np.float32), "float32"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, 0, np.inf], np.float32), "at 2"),
        ([0.0, 0.1], "list"),
    ],
)
def test_what_is_no_wave_is_refused_by_name(make, wave, message):
    codec = make()
    with pytest.raises(ValueError, match=f"{codec.name}.*{message}"):
        codec.encode([wave])


@pytest.mark.parametrize("make", CODECS)
def test_what_are_no_codes_is_refused_by_name(make):
    codec = make()
    good = np.zeros((3, codec.levels), np.uint16)
    for bad in (good[:0], good[:, :0], good[0], np.zeros((3, codec.levels + 1), np.uint16), good + codec.codebook_size):
        with pytest.raises(ValueError, match=codec.name):
            codec.decode([bad])


@pytest.mark.parametrize("make", CODECS)
def test_codes_do_not_depend_on_the_neighbours_in_the_batch(make):
    codec = make()
    clips = spoken(6) if codec.modality is Modality.SPEECH else [wave for _, wave in played(6)]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        assert np.array_equal(codec.encode([clip])[0], codes)
    assert codec.encode([]) == [] and codec.decode([]) == []


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_any_codes_decode_to_a_finite_wave_of_their_length(seed):
    """A language model may write anything; every level and every number of levels."""
    rng = np.random.default_rng(seed)
    for codec in (speech_codec(), music_codec()):
        levels = int(rng.integers(1, codec.levels + 1))
        codes = rng.integers(0, codec.codebook_size, (int(rng.integers(1, 12)), levels)).astype(np.uint16)
        wave = codec.decode([codes])[0]
        assert wave.dtype == np.float32 and np.isfinite(wave).all()
        assert len(wave) == len(codes) * round(codec.sample_rate_hz / codec.frame_rate_hz)


def test_held_out_speech_comes_back():
    """All levels: closer than two decibels; level 1 alone: clearly the same sentence; both far from another one."""
    truth = spoken(10, held_out=True)
    codec = speech_codec()
    codes = codec.encode(truth)
    full, full_shuffled = shuffled_ratio(truth, codec.decode(codes), 16_000)
    words, words_shuffled = shuffled_ratio(truth, codec.decode([one[:, :1] for one in codes]), 16_000)
    assert full < 2 and full < 0.35 * full_shuffled
    assert full < 0.7 * words
    assert words < 4 and words < 0.6 * words_shuffled


def test_more_levels_of_speech_are_closer():
    truth = spoken(4, held_out=True)
    codec = speech_codec()
    codes = codec.encode(truth)
    figures = [shuffled_ratio(truth, codec.decode([one[:, :n] for one in codes]), 16_000)[0] for n in (1, 2, 8)]
    assert figures[0] > figures[1] > figures[2]


def test_the_robot_has_a_voice():
    """From level 1 alone vowels are periodic: in most frames where the speaker's voice is, the robot's is too."""
    truth = spoken(4, held_out=True)
    codec = speech_codec()
    for wave, robot in zip(truth, codec.decode([one[:, :1] for one in codec.encode(truth)]), strict=True):
        spoken_share = measure_voicing(wave, SPEECH_FRONT_END).share
        robot_share = measure_voicing(robot, SPEECH_FRONT_END).share
        assert spoken_share.mean() > 0.2
        assert robot_share[spoken_share > 0].mean() > 0.7


def test_held_out_music_comes_back():
    truth = [wave for _, wave in played(8, held_out=True)]
    codec = music_codec()
    figure, shuffled = shuffled_ratio(truth, codec.decode(codec.encode(truth)), 32_000)
    assert figure < 1.5 and figure < 0.3 * shuffled


def test_held_out_music_keeps_its_pitch_to_a_semitone():
    """In each half second of each clip: every loud partial of the decoded sound is one of the true sound."""
    items = played(8, held_out=True)
    codec = music_codec()
    decoded = codec.decode(codec.encode([wave for _, wave in items]))
    errors = [
        abs(12 * np.log2(_pitch_hz(back[start : start + 3200]) / _pitch_hz(wave[start : start + 3200])))
        for (_, wave), back in zip(items, decoded, strict=True)
        for start in range(6400, 89_600, 9600)
    ]
    assert np.mean(np.array(errors) < 0.5) > 0.9


def _pitch_hz(wave) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16))
    return float(spectrum.argmax()) * 32_000 / (1 << 16)


def test_a_steady_note_is_a_steady_code():
    """What a language model has to learn of it is to repeat."""
    attributes = music.MusicAttributes("organ", "C major", "slow", "drone")
    codes = music_codec().encode([music.render_music(attributes)])[0]
    # Five notes of 0.6 s with a little silence between them.
    assert np.count_nonzero(np.diff(codes[:, 0].astype(int))) <= 10
    assert np.count_nonzero(codes[:, 1:]) <= 0.1 * codes[:, 1:].size


@pytest.mark.parametrize(
    ("modality", "waves"), [("speech", "f.spoken(24)"), ("music", "[wave for _, wave in f.played(16)]")]
)
def test_codes_and_tensors_do_not_depend_on_the_number_of_threads(modality, waves):
    """Another process, with four BLAS threads, fits and encodes the same bytes."""
    script = (
        "import hashlib\n"
        f"from pipeline.tokenizers.compact_{modality} import *\n"
        "from tests.fixtures import fitted_codecs as f\n"
        f"waves = {waves}\n"
        f"tensors = fit_{modality}(waves, seed=0)\n"
        "d = hashlib.sha256()\n"
        "[d.update(tensors[k].tobytes()) for k in sorted(tensors)]\n"
        f"[d.update(c.tobytes()) for c in Compact{modality.title()}(tensors).encode(waves[:4])]\n"
        "print(d.hexdigest())\n"
    )
    root = Path(__file__).resolve().parents[2]
    digests = set()
    for threads in ("1", "4"):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONPATH": str(root),
        }
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_tensors_are_small_and_used():
    """int16 throughout; on clean music a few hundred spectra are all that can be told apart."""
    for tensors in (speech_tensors(), music_tensors()):
        assert all(tensor.dtype == np.int16 for tensor in tensors.values())
    used = int((music_tensors()["level1"] != 0).any(axis=1).sum())
    assert 50 < used < 1000
