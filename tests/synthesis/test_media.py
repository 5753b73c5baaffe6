"""Checks of what came back, the offline plugs, voices, and files that are made once."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.sample_corpora import music, pictures
from shards.errors import ConfigError, SampleError
from shards.modality import Modality
from synthesis.media import FOLDERS, Made, MediaRequest, Outcome, medium_name
from synthesis.media_checks import check_made, encode_made, read_made, seconds
from synthesis.media_config import CorpusMediaConfig, OfflineMusic, OfflinePictures, OfflineSpeech
from synthesis.media_offline import offline_music, offline_pictures, offline_speech
from synthesis.media_plugs import open_plugs
from synthesis.media_unit import ANSWERS, MadeMedium, make_files
from synthesis.voices import choose_speaker, default_voices, espeak_voices

PICTURE = MediaRequest(Modality.IMAGE, "a red circle on the left of a white background", "d/0/image1", 7)
MUSIC = MediaRequest(Modality.MUSIC, "a flute plays a drone in C major at a slow tempo", "d/0/music1", 7, 2.0)
SPEECH = MediaRequest(Modality.SPEECH, "Here is what you wanted.", "d/0/speech", 7, voice="american-f1")


def tone(rate_hz: int, length_s: float, *, peak: float = 0.5) -> Made:
    return (peak * np.sin(2 * np.pi * 440 * np.arange(round(rate_hz * length_s)) / rate_hz)).astype(np.float32)


def noise_picture() -> Made:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)


SPOILED: dict[str, tuple[MediaRequest, Made]] = {
    "picture_one_colour": (PICTURE, np.full((224, 224, 3), 17, np.uint8)),
    "picture_misshaped": (PICTURE, np.zeros((64, 64, 3), np.uint8)),
    "sound_not_finite": (SPEECH, np.where(np.arange(32_000) == 9, np.nan, tone(16_000, 2.0)).astype(np.float32)),
    "sound_silent": (MUSIC, tone(32_000, 2.0, peak=0.001)),
    "sound_misshaped": (SPEECH, np.zeros(0, np.float32)),
    "music_too_short": (MUSIC, tone(32_000, 1.0)),
    "speech_too_short": (SPEECH, tone(16_000, 0.2)),
    "speech_too_long": (SPEECH, tone(16_000, 40.0)),
}


@pytest.mark.parametrize("reason", SPOILED)
def test_what_is_not_what_was_asked_for_is_rejected_by_name(reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        check_made(*SPOILED[reason])
    assert caught.value.reason == reason


def test_a_click_in_silence_is_silence() -> None:
    sound = np.zeros(64_000, np.float32)
    sound[100:200] = 0.9
    with pytest.raises(SampleError, match="sound_silent"):
        check_made(MUSIC, sound)


@given(st.floats(1.85, 6.0))
def test_music_is_as_long_as_was_asked_whatever_came(length_s: float) -> None:
    checked = check_made(MUSIC, tone(32_000, length_s))
    assert len(checked) == 64_000
    assert seconds(Modality.MUSIC, checked) == 2.0


def test_every_world_of_the_renderers_passes_the_checks() -> None:
    """Pictures: every shape and colour on every background; music: every piece."""
    draw, play = offline_pictures(OfflinePictures()), offline_music(OfflineMusic())
    shown = [one for one in pictures.all_attributes() if one.position == "left"]
    asked = [replace(PICTURE, text=pictures.describe(one, 0), seed=n) for n, one in enumerate(shown)]
    asked += [replace(MUSIC, text=music.describe(one, 0), seed=n) for n, one in enumerate(music.all_attributes())]
    for plug, modality in ((draw, Modality.IMAGE), (play, Modality.MUSIC)):
        for request, made in plug.make([one for one in asked if one.modality is modality]):
            assert not isinstance(made, SampleError), request.text
            check_made(request, made)


def test_two_seeds_give_two_pictures_of_one_caption_and_one_seed_gives_one() -> None:
    plug = offline_pictures(OfflinePictures())
    one, again, other = (made for _, made in plug.make([PICTURE, PICTURE, replace(PICTURE, seed=8)]))
    assert isinstance(one, np.ndarray)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_caption_of_another_world_says_what_is_missing() -> None:
    ((_, found),) = offline_pictures(OfflinePictures()).make([replace(PICTURE, text="a red and blue circle, left")])
    assert isinstance(found, SampleError)
    assert found.reason == "caption_no_picture"
    assert "one colour, one background" in str(found)


def test_speed_shortens_speech() -> None:
    slow, fast = offline_speech(OfflineSpeech()).make([replace(SPEECH, speed=0.8), replace(SPEECH, speed=1.3)])
    assert isinstance(slow[1], np.ndarray)
    assert isinstance(fast[1], np.ndarray)
    assert 1.3 < len(slow[1]) / len(fast[1]) < 2.0


@pytest.mark.parametrize(
    ("request_", "made"), [(PICTURE, noise_picture()), (MUSIC, tone(32_000, 2.0)), (SPEECH, tone(16_000, 2.0))]
)
def test_what_is_written_is_read_back_at_the_rate_of_its_modality(request_: MediaRequest, made: Made) -> None:
    back = read_made(request_.modality, encode_made(request_.modality, made))
    assert back.shape == made.shape
    assert np.abs(back.astype(np.float32) - made).mean() < (60 if request_ is PICTURE else 0.02)
    assert encode_made(request_.modality, made) == encode_made(request_.modality, made)


def test_foreign_sounds_and_pictures_come_in_at_our_rates() -> None:
    buffer = io.BytesIO()
    stereo = np.stack([tone(44_100, 1.0), tone(44_100, 1.0)], axis=1)
    soundfile.write(buffer, stereo, 44_100, format="FLAC")
    assert read_made(Modality.SPEECH, buffer.getvalue()).shape == (16_000,)
    picture = io.BytesIO()
    Image.fromarray(noise_picture()).resize((300, 200)).save(picture, format="PNG")
    assert read_made(Modality.IMAGE, picture.getvalue()).shape == (224, 224, 3)
    with pytest.raises(SampleError, match="image_unreadable"):
        read_made(Modality.IMAGE, b"<html>")
    with pytest.raises(SampleError, match="sound_unreadable"):
        read_made(Modality.MUSIC, b"<html>")


def test_39_voices_sound_like_39() -> None:
    assert len(set(default_voices())) == 39
    plug = offline_speech(OfflineSpeech())
    heard = {
        encode_made(Modality.SPEECH, made)
        for _, made in plug.make([replace(SPEECH, text="Yes.", voice=voice) for voice in default_voices()])
        if isinstance(made, np.ndarray)
    }
    assert len(heard) == 39
    assert {"ada", "ben", "cleo", "dan"} < set(espeak_voices())


@given(st.text(max_size=9), st.sampled_from(["user", "assistant"]), st.integers(0, 5))
def test_a_speaker_is_one_of_the_voices_at_one_of_the_speeds(dialogue_id: str, role: str, seed: int) -> None:
    given_ = {"slowest": 0.9, "fastest": 1.1, "seed": seed, "dialogue_id": dialogue_id, "role": role}
    speaker = choose_speaker(("a", "b"), **given_)
    assert speaker.voice in ("a", "b")
    assert 0.9 <= speaker.speed <= 1.1
    assert speaker == choose_speaker(("a", "b"), **given_)


def test_voices_a_plug_does_not_have_are_a_wrong_config() -> None:
    with pytest.raises(ValueError, match="found 'alloy'"):
        CorpusMediaConfig.model_validate({"voices": {"names": ["alloy"]}})
    speech = {"plug": "http", "base_url": "http://localhost"}
    with pytest.raises(ValueError, match=r"voices\.names"):
        CorpusMediaConfig.model_validate({"speech": speech})
    assert CorpusMediaConfig.model_validate({"speech": speech, "voices": {"names": ["alloy"]}})


def test_a_folder_without_weights_is_a_wrong_config(tmp_path: Path) -> None:
    for table, name in (("pictures", "model_index.json"), ("music", "config.json")):
        config = CorpusMediaConfig.model_validate({table: {"plug": "local", "path": str(tmp_path)}})
        with pytest.raises(ConfigError, match=name):
            open_plugs(config)


@dataclass
class CountingPlug:
    """Makes what it is told to, and remembers what it was asked for."""

    outcomes: Mapping[str, Outcome]
    together: int = 1
    asked: list[str] = field(default_factory=list[str])

    def facts(self) -> Mapping[str, Any]:
        return {"plug": "counting"}

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        for request in requests:
            self.asked.append(request.key)
            yield request, self.outcomes[request.key]


def folders(output: Path) -> Path:
    for folder in (*FOLDERS.values(), ANSWERS):
        (output / folder).mkdir(parents=True)
    return output


def test_an_answer_is_never_asked_for_again_be_it_good_or_not(tmp_path: Path) -> None:
    output = folders(tmp_path)
    bad, late = (replace(PICTURE, key=key) for key in ("bad", "late"))
    outcomes: dict[str, Outcome] = {
        PICTURE.key: noise_picture(),
        "bad": np.zeros((224, 224, 3), np.uint8),
        "late": SampleError("call_timeout", "no answer within 1 s"),
    }
    plug = CountingPlug(outcomes)
    first = make_files(output, [PICTURE, bad, late], plug)
    again = make_files(output, [PICTURE, bad, late], plug)
    assert plug.asked == [PICTURE.key, "bad", "late", "late"]
    assert isinstance(first[PICTURE.key], MadeMedium)
    assert first[PICTURE.key] == again[PICTURE.key]
    assert str(first["bad"]) == str(again["bad"])
    assert "picture_one_colour" in str(again["bad"])


def test_a_file_that_a_power_failure_has_cut_is_made_again(tmp_path: Path) -> None:
    output = folders(tmp_path)
    plug = CountingPlug({MUSIC.key: tone(32_000, 2.0), PICTURE.key: noise_picture()})
    for request in (MUSIC, PICTURE):
        path = output / FOLDERS[request.modality] / medium_name(request, plug.facts())
        make_files(output, [request], plug)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3] if request is PICTURE else b"")
        make_files(output, [request], plug)
        assert path.read_bytes() == whole
    assert plug.asked == [MUSIC.key, MUSIC.key, PICTURE.key, PICTURE.key]


def test_media_that_are_made_together_are_made_together_again(tmp_path: Path) -> None:
    output = folders(tmp_path)
    asked = [replace(PICTURE, key=str(n)) for n in range(5)]
    plug = CountingPlug({str(n): noise_picture() for n in range(5)}, together=2)
    make_files(output, asked, plug)
    (output / FOLDERS[Modality.IMAGE] / medium_name(asked[3], plug.facts())).unlink()
    plug.asked.clear()
    make_files(output, asked, plug)
    assert plug.asked == ["2", "3"]


@given(st.sampled_from(["text", "key", "seed", "voice", "speed", "duration_s"]))
def test_a_name_depends_on_all_of_a_request_and_on_the_plug(name: str) -> None:
    changed = replace(MUSIC, **{name: 3 if name in ("seed", "speed", "duration_s") else "x"})
    assert medium_name(MUSIC, {}) != medium_name(changed, {}) != medium_name(changed, {"plug": "x"})
