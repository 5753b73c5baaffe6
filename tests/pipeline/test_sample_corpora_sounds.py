"""What is heard: music that is what its caption says, speech that is the same whatever was said before it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample_corpora import music, speech
from pipeline.sample_corpora.music import MusicAttributes, all_attributes, describe, parse_caption, render_music
from pipeline.sample_corpora.pictures import HELD_OUT_PAIRS, PLURALS
from pipeline.sample_corpora.sentences import Sentence, all_sentences, names_held_out_pair
from pipeline.sample_corpora.speech import VOICES, SynthesisError, Voice, synthesize, voice_by_name

attributes_strategy = st.sampled_from(all_attributes())


def test_every_music_caption_reads_back_as_its_attributes():
    for attributes in all_attributes():
        for template in range(len(music.TEMPLATES)):
            caption = describe(attributes, template)
            assert parse_caption(caption) == attributes.as_dict()
            assert parse_caption(caption.lower()) == attributes.as_dict()


def test_a_contradicted_attribute_of_music_is_not_found():
    assert parse_caption("a flute and an organ in C major") == {"key": "C major"}


def test_words_outside_the_world_of_music_are_refused():
    with pytest.raises(ValueError, match="expected one of flute"):
        MusicAttributes("tuba", "C major", "slow", "drone")


def test_held_out_pieces_take_each_instrument_and_each_pattern_twice():
    instruments, _, patterns = zip(*music.HELD_OUT_TRIPLES, strict=True)
    assert sorted(instruments) == sorted(music.INSTRUMENTS * 2)
    assert sorted(patterns) == sorted(music.PATTERNS * 2)
    assert len(all_attributes(held_out=True)) == 24
    assert len(all_attributes()) == len(all_attributes(held_out=False)) + 24


@settings(max_examples=40, deadline=None)
@given(attributes_strategy, st.floats(0.5, 6), st.floats(-1, 1))
def test_a_clip_has_the_asked_length_is_loud_enough_and_does_not_clip(attributes, duration_s, gain_db):
    clip = render_music(attributes, duration_s=duration_s, gain_db=gain_db)
    assert clip.shape == (round(duration_s * music.SAMPLE_RATE_HZ),)
    assert clip.dtype == np.float32
    assert 0.5 < np.abs(clip).max() < 0.7
    assert np.sqrt(np.mean(clip**2)) > 0.02


def test_notes_begin_on_codec_frames():
    for seconds in music.NOTE_S.values():
        assert (seconds / music.FRAME_S) == pytest.approx(round(seconds / music.FRAME_S))


def test_the_melody_is_the_one_the_caption_names():
    """Pitch of each note, measured in the sound, against a scale written down by hand."""
    clip = render_music(MusicAttributes("flute", "C major", "medium", "rising scale"))
    note = round(music.NOTE_S["medium"] * music.SAMPLE_RATE_HZ)
    measured = [strongest_hz(clip[start : start + note]) for start in range(0, 8 * note, note)]
    c_major_hz = [523.3, 587.3, 659.3, 698.5, 784.0, 880.0, 987.8, 1046.5]
    assert measured == pytest.approx(c_major_hz, rel=0.01)


def test_a_falling_scale_falls_and_a_drone_stays():
    falling = render_music(MusicAttributes("organ", "A minor", "medium", "falling scale"))
    drone = render_music(MusicAttributes("organ", "A minor", "medium", "drone"))
    note = round(music.NOTE_S["medium"] * music.SAMPLE_RATE_HZ)
    heard = [strongest_hz(falling[start : start + note]) for start in range(0, 8 * note, note)]
    assert heard == sorted(heard, reverse=True)
    assert len(set(heard)) == 8
    assert np.array_equal(drone[:note], drone[note : 2 * note])


def test_the_instruments_sound_different():
    """Spectral envelopes of one note: nearest to itself at another pitch, not to another instrument."""

    def timbre(instrument: str, key: str) -> np.ndarray:
        clip = render_music(MusicAttributes(instrument, key, "slow", "drone"), duration_s=0.6)
        spectrum = np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 65_536))
        fundamental = {"C major": 261.63, "D minor": 293.66}[key] * (2 if instrument in ("flute", "bell") else 0.5)
        bins = [round(fundamental * ratio * 65_536 / music.SAMPLE_RATE_HZ) for ratio in np.arange(0.5, 6, 0.25)]
        envelope = np.array([spectrum[place - 2 : place + 3].max() for place in bins])
        return envelope / np.linalg.norm(envelope)

    known = {instrument: timbre(instrument, "C major") for instrument in music.INSTRUMENTS}
    for instrument in music.INSTRUMENTS:
        heard = timbre(instrument, "D minor")
        assert max(known, key=lambda one: float(known[one] @ heard)) == instrument


def strongest_hz(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 65_536))
    return float(spectrum.argmax() * music.SAMPLE_RATE_HZ / 65_536)


def test_speech_does_not_depend_on_what_was_said_before():
    """espeak remembers phases between sentences; without a fresh library these two differ."""
    first = synthesize("put the red star on top", VOICES[0])
    synthesize("three blue circles", VOICES[1])
    assert np.array_equal(first, synthesize("put the red star on top", VOICES[0]))


def test_speech_is_the_same_in_another_process():
    program = (
        "import hashlib; from pipeline.sample_corpora.speech import VOICES, synthesize;"
        "print(hashlib.sha256(synthesize('draw a red circle', VOICES[2]).tobytes()).hexdigest())"
    )
    digests = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_a_voice_speaks_one_to_three_seconds_without_silent_ends(voice):
    for words in ("Draw a red circle.", "Is the orange triangle at the bottom?"):
        sound = synthesize(words, voice)
        assert 0.8 <= len(sound) / speech.SAMPLE_RATE_HZ <= 2.8
        assert 0.55 < np.abs(sound).max() <= 0.61
        assert np.sqrt(np.mean(sound**2)) > 0.03
        loud = np.flatnonzero(np.abs(sound) > 0.05 * np.abs(sound).max())
        assert loud[0] <= 0.06 * speech.SAMPLE_RATE_HZ
        assert len(sound) - loud[-1] <= 0.06 * speech.SAMPLE_RATE_HZ + 0.04 * speech.SAMPLE_RATE_HZ


def test_voices_and_words_are_told_apart():
    sounds = [synthesize("three blue circles", voice) for voice in VOICES] + [synthesize("a slow song", VOICES[0])]
    assert len({sound.tobytes() for sound in sounds}) == len(sounds)


def test_other_sample_rates_keep_the_duration():
    at_16k = synthesize("show me a green square", VOICES[0])
    at_32k = synthesize("show me a green square", VOICES[0], sample_rate_hz=32_000)
    assert len(at_32k) == pytest.approx(2 * len(at_16k), abs=2)


def test_a_long_data_path_is_shortened(monkeypatch, tmp_path):
    """espeak cannot open its data below a path of about 200 characters, which a deep checkout easily has."""
    import espeakng_loader

    expected = synthesize("four red stars", VOICES[1])
    folder = tmp_path / ("x" * 120) / ("y" * 60)
    folder.mkdir(parents=True)
    (folder / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(folder / "espeak-ng-data"))
    assert np.array_equal(expected, synthesize("four red stars", VOICES[1]))


def test_what_espeak_cannot_say_is_an_error():
    with pytest.raises(SynthesisError, match="expected an espeak-ng voice, found 'no-such-voice'"):
        synthesize("hello", Voice("worf", 1, "no-such-voice", 150, 50, "male", ""))
    with pytest.raises(SynthesisError, match="found silence"):
        synthesize("", VOICES[0])


def test_voices_are_found_by_name():
    assert voice_by_name("ada") is VOICES[0]
    assert len({voice.speaker_id for voice in VOICES}) == len(VOICES) >= 4


def test_a_sentence_in_the_three_ways_corpora_write_it():
    statement, question = Sentence("put the red star on top", False), Sentence("is the star red", True)
    assert statement.written == "Put the red star on top."
    assert statement.tagged == "PUT THE RED STAR ON TOP <PERIOD>"
    assert question.written == "Is the star red?"
    assert question.tagged == "IS THE STAR RED <QUESTIONMARK>"


def test_the_grammar_is_small_and_split_in_two():
    train, held_out = all_sentences(held_out=False), all_sentences(held_out=True)
    assert len({sentence.words for sentence in all_sentences()}) == len(train) + len(held_out) == len(all_sentences())
    assert len(train) > 500
    assert len(held_out) > 100
    assert len({word for sentence in all_sentences() for word in sentence.words.split()}) <= 50
    assert {len(sentence.words.split()) for sentence in all_sentences()} <= set(range(3, 8))


def test_no_training_sentence_names_a_held_out_pair():
    assert not any(names_held_out_pair(sentence.words) for sentence in all_sentences(held_out=False))
    for shape, colour in HELD_OUT_PAIRS:
        assert names_held_out_pair(f"two {colour} {PLURALS[shape]}")
    assert not names_held_out_pair("two red stars")
