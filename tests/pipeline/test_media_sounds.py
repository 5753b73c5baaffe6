"""Sounds: exact lengths, the upstream order of steps, cuts that do not depend on their surroundings."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from hypothesis import given
from hypothesis import strategies as st

from configs.load import validate
from pipeline.media import (
    MediaConfig,
    WindowConfig,
    check_front_end,
    cut_windows,
    front_end_facts,
    make_decoder,
    sound_defaults,
)
from pipeline.samples import RawMedia
from pipeline.sounds import RecordingCache, SoundConfig, decode_sound, silence_share, to_mono
from shards.errors import ConfigError, SampleError
from shards.vocabulary import Modality
from tests.fixtures.miniature_corpora import picture, sound, tone

SPEECH = MediaConfig().speech
MUSIC = MediaConfig().music


def wav(samples: np.ndarray, rate: int, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def reason(data: bytes | RawMedia, config: SoundConfig = SPEECH) -> str:
    with pytest.raises(SampleError) as caught:
        decode_sound(data, config)
    return caught.value.reason


def speech(path: Path, begin_s: float | None = None, end_s: float | None = None) -> RawMedia:
    return RawMedia("speech", Modality.SPEECH, path=path, begin_s=begin_s, end_s=end_s)


@given(st.integers(2_000, 40_000), st.sampled_from([8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000]))
def test_the_length_is_that_of_the_sound_rounded_up(samples: int, rate: int):
    data = np.linspace(-0.5, 0.5, max(samples, rate // 8), dtype=np.float32)
    wave = decode_sound(wav(data, rate), SPEECH)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert len(wave) == -(-len(data) * 16_000 // rate)


def test_speech_is_the_first_channel_and_resampled_as_torchaudio_does():
    stereo = tone(0.5, 44_100, channels=2)
    expected = torchaudio.functional.resample(torch.from_numpy(stereo[:, 0].copy()), 44_100, 16_000).numpy()
    assert (decode_sound(wav(stereo, 44_100), SPEECH) == expected).all()


def test_music_is_resampled_and_then_averaged():
    stereo = tone(1.5, 44_100, channels=2)
    expected = torchaudio.functional.resample(torch.from_numpy(stereo.T.copy()), 44_100, 32_000).mean(dim=0).numpy()
    assert (decode_sound(wav(stereo, 44_100), MUSIC) == expected).all()
    six = np.repeat(tone(1.2, 32_000), 6, axis=1)
    assert np.abs(decode_sound(wav(six, 32_000), MUSIC) - six[:, 0]).max() < 1e-6


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("FLAC", None), ("MP3", None), ("OGG", "OPUS"), ("OGG", "VORBIS")],
)
def test_every_format_is_told_by_its_bytes(form: str, subtype: str | None):
    wave = decode_sound(sound(1.0, 16_000, form=form, subtype=subtype), SPEECH)
    spectrum = np.abs(np.fft.rfft(wave[:16_000]))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_a_prefix_is_the_beginning_of_the_whole():
    """Decoding only what the windows need changes no sample."""
    data = sound(4.0, 44_100, form="WAV", channels=2)
    whole = decode_sound(data, MUSIC)
    assert (decode_sound(data, MUSIC, keep_s=1.5) == whole[:48_000]).all()
    assert (decode_sound(data, MUSIC, keep_s=9.0) == whole).all()


@given(st.floats(0.0, 2.0), st.floats(0.2, 2.0))
def test_a_cut_depends_on_nothing_around_it(begin_s: float, length_s: float):
    samples = np.random.default_rng(1).normal(0, 0.1, (4 * 22_050, 1)).astype(np.float32)
    cache = RecordingCache()
    cache._kept[(Path("x"), "first", "soundfile")] = _recording(samples, 22_050)
    wave = decode_sound(speech(Path("x"), begin_s, begin_s + length_s), SPEECH, cache=cache)
    begin, end = round(begin_s * 22_050), round((begin_s + length_s) * 22_050)
    assert (wave == to_mono(samples[begin:end], 22_050, SPEECH)).all()


def _recording(samples: np.ndarray, rate: int):
    from pipeline.sounds import Recording

    return Recording(samples, rate, "")


def test_a_long_recording_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "long.opus"
    path.write_bytes(sound(3.0, 16_000, form="OGG", subtype="OPUS"))
    decode = make_decoder(MediaConfig(), WindowConfig())
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or read_bytes(self))
    clips = [decode(speech(path, begin, begin + 1.0))[0] for begin in (0.0, 1.0, 1.5)]
    assert reads == [path]
    assert [len(clip.medium) for clip in clips] == [16_000] * 3
    assert len({clip.media_sha256 for clip in clips}) == 3


def test_a_broken_recording_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "broken.opus"
    path.write_bytes(b"x" * 1000)
    decode = make_decoder(MediaConfig(), WindowConfig())
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or read_bytes(self))
    messages: set[str] = set()
    for begin in (0.0, 1.0, 2.0):
        with pytest.raises(SampleError, match="sound_unreadable") as caught:
            decode(speech(path, begin, begin + 1.0))
        messages.add(str(caught.value))
    assert reads == [path] and len(messages) == 1


def test_what_is_no_sound_has_a_reason():
    good = tone(1.0, 16_000)
    bad = good.copy()
    bad[100] = np.nan
    infinite = good.copy()
    infinite[100] = np.inf
    assert reason(b"") == "media_empty"
    assert reason(b"\x00" * 100) == "sound_unreadable"
    assert reason(wav(good, 16_000)[:30]) == "sound_unreadable"
    assert reason(wav(good[:0], 16_000)) == "sound_empty"
    assert reason(wav(good[:800], 16_000)) == "sound_too_short"
    assert reason(wav(bad, 16_000)) == "sound_not_finite"
    assert reason(wav(infinite, 16_000)) == "sound_not_finite"
    assert reason(wav(good * 0, 16_000)) == "sound_silent"
    assert reason(wav(good, 16_000), SoundConfig(max_s=0.5)) == "sound_too_long"
    flac = sound(2.0, 16_000, form="FLAC")
    assert reason(flac[: len(flac) // 2]) == "sound_truncated"
    assert reason(wav(good, 15_999)) == "sound_rate_unsupported"
    assert reason(wav(tone(1.0, 1_000), 1_000)) == "sound_rate_unsupported"


def test_times_outside_a_recording_have_a_reason(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(sound(1.0, 16_000, form="WAV"))
    assert reason(speech(path, 0.5, 1.5)) == "sound_truncated"
    assert reason(speech(path, 0.5, 0.5)) == "segment_times_invalid"
    assert reason(speech(path, -0.5, 0.5)) == "segment_times_invalid"
    assert reason(speech(tmp_path / "gone.wav", 0.0, 0.5)) == "media_missing"
    # Ends are rounded by those who write corpora.
    assert len(decode_sound(speech(path, 0.5, 1.05), SPEECH)) == 8_000
    assert len(decode_sound(speech(path, 0.5), SPEECH)) == 8_000


def test_a_length_that_a_header_invents_is_not_believed():
    """A streamed wav says 0xFFFFFFFF; what is there is read, and no more is allocated."""
    data = bytearray(wav(tone(1.0, 16_000), 16_000, "PCM_16"))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert len(decode_sound(bytes(data), SPEECH)) == 16_000


@given(st.integers(1, 60_000), st.integers(1, 5), st.floats(0.1, 1.5))
def test_windows_are_consecutive_from_the_start(samples: int, max_windows: int, min_s: float):
    wave = np.arange(samples, dtype=np.float32)
    windows = WindowConfig(window_s=2.0, max_windows=max_windows, min_s=min_s)
    pieces = cut_windows(wave, windows, 8_000)
    joined = np.concatenate(pieces)
    assert (joined == wave[: len(joined)]).all()
    assert 1 <= len(pieces) <= max_windows
    assert all(len(piece) == 16_000 for piece in pieces[:-1])
    dropped = min(samples, max_windows * 16_000) - len(joined)
    assert dropped == 0 or dropped < round(min_s * 8_000)


def test_the_decoder_cuts_music_and_nothing_else():
    decode = make_decoder(MediaConfig(), WindowConfig(window_s=1.0, max_windows=3))
    data = sound(2.5, 32_000, form="WAV")
    clips = decode(RawMedia("music", Modality.MUSIC, data))
    assert [len(clip.medium) for clip in clips] == [32_000, 32_000]
    assert {clip.media_sha256 for clip in clips} == {hashlib.sha256(data).hexdigest()}
    assert len(decode(RawMedia("speech", Modality.SPEECH, sound(2.5, 16_000, form="WAV")))) == 1
    (shown,) = decode(RawMedia("image", Modality.IMAGE, picture(1)))
    assert shown.medium.shape == (224, 224, 3)
    with pytest.raises(SampleError, match="media_unexpected"):
        decode(RawMedia("text", Modality.TEXT, b"x"))


def test_five_seconds_of_music_are_160_000_samples_from_any_rate():
    for rate in (22_050, 32_000, 44_100, 48_000):
        (clip,) = make_decoder(MediaConfig(), WindowConfig())(
            RawMedia("music", Modality.MUSIC, sound(5.3, rate, form="WAV", channels=2))
        )
        assert clip.medium.shape == (160_000,)


def test_every_choice_is_a_fact():
    facts = front_end_facts(MediaConfig(), WindowConfig())
    assert facts["media"]["picture"]["resize"] == "bicubic"
    assert facts["media"]["speech"] == {
        "sample_rate_hz": 16_000,
        "channel": "first",
        "min_s": 0.1,
        "max_s": 90.0,
        "windowed": False,
        "reader": "soundfile",
    }
    assert facts["windows"] == {"window_s": 5.0, "max_windows": 1, "min_s": 1.0}
    assert "torchaudio" in facts["resampler"]
    changes = ({"speech": {"channel": "mean"}}, {"music": {"reader": "pyav"}}, {"picture": {"transparency": "drop"}})
    others = [front_end_facts(MediaConfig.model_validate(change), WindowConfig()) for change in changes]
    assert all(other != facts for other in others)


def test_facts_are_those_of_the_modalities_that_are_tokenized():
    """A new modality, or another's setting, leaves the fingerprint of a corpus as it was."""
    facts = front_end_facts(MediaConfig(), WindowConfig(), [Modality.SPEECH])
    assert set(facts["media"]) == {"speech"} and "windows" not in facts and "picture_formats" not in facts
    other = MediaConfig.model_validate({"music": {"channel": "first"}, "picture": {"resize": "bilinear"}})
    assert front_end_facts(other, WindowConfig(max_windows=3), [Modality.SPEECH]) == facts
    assert set(front_end_facts(MediaConfig(), WindowConfig(), [Modality.IMAGE])["media"]) == {"picture"}


def test_a_section_that_names_one_key_keeps_the_defaults_of_its_own_modality():
    config = validate({"music": {"channel": "first"}, "audio": {"max_s": 3.0}}, MediaConfig, where="x")
    assert config.sound(Modality.MUSIC) == sound_defaults(Modality.MUSIC).model_copy(update={"channel": "first"})
    assert config.sound(Modality.AUDIO).sample_rate_hz == 24_000 and config.sound(Modality.AUDIO).windowed
    assert config.speech == sound_defaults(Modality.SPEECH)
    assert MediaConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="did you mean 'audio'"):
        validate({"audoi": {}}, MediaConfig, where="x")
    with pytest.raises(ConfigError, match=r"audio\.chanel"):
        validate({"audio": {"chanel": "first"}}, MediaConfig, where="x")


def test_a_codec_of_another_sample_rate_is_named_before_anything_is_read():
    codecs = {Modality.SPEECH: SimpleNamespace(name="speechtokenizer", sample_rate_hz=16_000)}
    check_front_end(MediaConfig(), codecs)
    with pytest.raises(ConfigError, match=r"media\.speech\.sample_rate_hz = 24000.*tokenizers\.speech.*16000"):
        check_front_end(MediaConfig.model_validate({"speech": {"sample_rate_hz": 24_000}}), codecs)
    codecs[Modality.SPEECH].sample_rate_hz = 48_000
    with pytest.raises(ConfigError, match="48000"):
        check_front_end(MediaConfig(), codecs)


def test_the_share_of_silence():
    wave = np.concatenate([np.zeros(16_000), tone(1.0, 16_000)[:, 0]]).astype(np.float32)
    assert silence_share(wave, 16_000) == pytest.approx(0.5, abs=0.02)
    assert silence_share(wave * 0 + 0.5, 16_000) == 0.0
