"""The judges look at pixels and listen to sound; they are right about what is rendered, and not about noise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.judges import (
    MusicJudge,
    PictureJudge,
    SpeechJudge,
    _warped_distances,
    share_right,
    words_right,
)
from pipeline.sample_corpora import music, pictures, speech


def test_the_picture_judge_names_every_varied_picture():
    rng = np.random.default_rng(0)
    chosen = [pictures.all_attributes()[index] for index in rng.choice(720, 40, replace=False)]
    varied = [
        pictures.render_picture(a, pictures.draw_variation(rng, jitter_px=2, jitter_scale=0.03, jitter_shade=5))
        for a in chosen
    ]
    assert PictureJudge().judge([np.asarray(one) for one in varied]) == [a.as_dict() for a in chosen]


def test_the_picture_judge_is_at_chance_on_noise():
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 256, (224, 224, 3)).astype(np.uint8) for _ in range(30)]
    wanted = [pictures.all_attributes()[index].as_dict() for index in rng.choice(720, 30)]
    assert share_right(PictureJudge().judge(noise), wanted, "shape") < 0.6


def test_the_music_judge_names_rendered_pieces_whatever_their_loudness():
    chosen = music.all_attributes()[::29]
    played = [music.render_music(a, duration_s=2.0, gain_db=-9.0) for a in chosen]
    assert MusicJudge(2.0).judge(played) == [a.as_dict() for a in chosen]


@pytest.mark.parametrize(
    ("heard", "truth", "right"),
    [
        ("a red star", "a red star", 1.0),
        ("a red", "a red star", 2 / 3),
        ("", "a red star", 0.0),
        ("A, red! STAR.", "a red star", 1.0),
    ],
)
def test_words_right_is_one_minus_the_word_error_rate(heard, truth, right):
    assert words_right(heard, truth) == pytest.approx(right)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc"), min_size=1))
def test_words_right_stays_in_range_and_is_one_only_for_equals(heard, truth):
    right = words_right(" ".join(heard), " ".join(truth))
    assert 0.0 <= right <= 1.0 and (right == 1.0) == (heard == truth)


def test_the_speech_judge_hears_what_is_said_however_fast():
    sentences = ("Here is your star.", "Here is your circle.", "Here is your triangle.", "Listen to the flute.")
    judge = SpeechJudge([(one, speech.synthesize(one, speech.VOICES[0])) for one in sentences])
    for rate_wpm in (130, 150, 175):
        voice = replace(speech.VOICES[0], rate_wpm=rate_wpm)
        assert [judge.judge(speech.synthesize(one, voice)) for one in sentences] == list(sentences)


def test_the_speech_judge_bears_silence():
    judge = SpeechJudge([("Here.", speech.synthesize("Here.", speech.VOICES[0]))])
    assert judge.judge(np.zeros(8000, np.float32)) == "Here."


@given(st.integers(0, 2**32), st.integers(1, 6), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_distances_to_many_sentences_are_those_to_each(seed, frames, lengths):
    """Against the recurrence written out for two sounds."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(frames, 3)).astype(np.float32)
    rights = [rng.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    padded = np.full((len(rights), max(lengths), 3), 7.0, np.float32)
    for row, right in zip(padded, rights, strict=True):
        row[: len(right)] = right
    found = _warped_distances(left, padded, np.array(lengths))

    def cheapest(right):
        costs = np.abs(left[:, None] - right[None]).mean(axis=2)
        table = np.full((frames + 1, len(right) + 1), np.inf)
        table[0, 0] = 0.0
        for i in range(frames):
            for j in range(len(right)):
                table[i + 1, j + 1] = costs[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
        return table[-1, -1] / (frames + len(right))

    assert found == pytest.approx([cheapest(right) for right in rights])
