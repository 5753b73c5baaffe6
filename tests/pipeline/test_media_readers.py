"""Sound files by reader: what each can open, what a cut or swollen file becomes, and how a missing extra is named."""

from __future__ import annotations

import functools
import importlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sound_files
from pipeline.media import MediaConfig, WindowConfig, check_front_end, make_decoder
from pipeline.samples import RawMedia
from pipeline.sound_files import check_reader, read_channels
from pipeline.sounds import RecordingCache, SoundConfig, decode_sound, silence_share
from shards.errors import ConfigError, SampleError
from shards.vocabulary import Modality
from tests.fixtures.miniature_corpora import sound, tone

PYAV = SoundConfig(reader="pyav")
# Container, codec, sample format, rate: what soundfile cannot read.
FORMS = {"m4a": ("ipod", "aac", 44_100), "aac": ("adts", "aac", 44_100), "webm": ("webm", "libopus", 48_000)}


def encode(form: str, seconds: float = 2.0, *, channels: int = 2, pieces: bool = False) -> bytes:
    """A tone as PyAV writes it; ``pieces``: an m4a with an index in front of every second, so that a cut one opens."""
    av = pytest.importorskip("av")
    container_name, codec, rate = FORMS[form]
    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"} if pieces else {}
    with av.open(file, "w", format=container_name, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo" if channels == 2 else "mono")
        samples = tone(seconds, rate, channels=channels).T
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "stereo" if channels == 2 else "mono")
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def reason(data: bytes | RawMedia, config: SoundConfig) -> str:
    with pytest.raises(SampleError) as caught:
        decode_sound(data, config)
    return caught.value.reason


@pytest.mark.parametrize("form", FORMS)
def test_pyav_reads_what_soundfile_cannot_and_soundfile_says_so(form: str):
    data = encode(form)
    wave = decode_sound(data, PYAV)
    assert abs(len(wave) - 32_000) <= 2_000
    spectrum = np.abs(np.fft.rfft(wave[8_000:24_000]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    with pytest.raises(SampleError, match=f'this is {form}.*reader = "pyav"') as caught:
        decode_sound(data, SoundConfig())
    assert caught.value.reason == "sound_unreadable"


@pytest.mark.parametrize(
    ("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")]
)
def test_both_readers_agree_where_nothing_is_lost(form: str, subtype: str):
    pytest.importorskip("av")
    data = sound(1.5, 22_050, form=form, subtype=subtype, channels=2)
    for channel in ("first", "mean"):
        one, rate = read_channels(data, reader="soundfile", channel=channel, limit_s=None)
        other, same_rate = read_channels(data, reader="pyav", channel=channel, limit_s=None)
        assert rate == same_rate == 22_050
        np.testing.assert_array_equal(one, other)
        assert one.shape == (33_075, 1 if channel == "first" else 2)


@pytest.mark.parametrize("reader", ["soundfile", "pyav"])
def test_a_limit_gives_the_beginning_of_the_whole(reader: sound_files.Reader):
    if reader == "pyav":
        pytest.importorskip("av")
    for form, subtype in (("MP3", None), ("FLAC", None), ("OGG", "OPUS"), ("WAV", "PCM_16")):
        rate = 48_000 if subtype == "OPUS" else 44_100
        data = sound(8.0, rate, form=form, subtype=subtype, channels=2)
        whole, _ = read_channels(data, reader=reader, channel="mean", limit_s=None)
        start, _ = read_channels(data, reader=reader, channel="mean", limit_s=1.7)
        assert len(start) == round(1.7 * rate) < len(whole)
        np.testing.assert_array_equal(start, whole[: len(start)])


def test_a_bomb_is_not_decoded_to_its_end():
    """Ten minutes of silence are a few hundred kilobytes; what is over the limit is never made."""
    data = encode("aac", seconds=60.0, channels=1)
    assert reason(data, PYAV.model_copy(update={"max_s": 5.0})) == "sound_too_long"
    assert len(decode_sound(data, PYAV, keep_s=1.0)) == 16_000


def test_a_cut_file_is_a_reject():
    m4a = encode("m4a", 6.0, pieces=True)
    assert reason(m4a[: len(m4a) // 2], PYAV) == "sound_truncated"
    # Its index was at the end, and is gone.
    plain = encode("m4a", 6.0)
    assert reason(plain[: len(plain) // 2], PYAV) == "sound_unreadable"
    webm = encode("webm", 6.0)
    assert reason(webm[: len(webm) // 2], PYAV) == "sound_truncated"


@pytest.mark.parametrize(("form", "share"), [("MP3", 0.5), ("FLAC", 0.9), ("FLAC", 0.01)])
def test_a_cut_file_whose_header_knows_better_is_a_reject(form: str, share: float):
    data = sound(6.0, 44_100, form=form, channels=2)
    assert len(decode_sound(data, SoundConfig())) == 96_000
    assert reason(data[: max(100, int(len(data) * share))], SoundConfig()) == "sound_truncated"


def test_what_is_no_sound_has_a_reason():
    av = pytest.importorskip("av")
    assert reason(b"", PYAV) == "media_empty"
    assert reason(b"\x00" * 500, PYAV) == "sound_unreadable"
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(SampleError, match="without a sound in it"):
        decode_sound(file.getvalue(), PYAV)


@given(st.sampled_from(["m4a", "aac", "webm", "MP3", "FLAC", "WAV"]), st.sampled_from(["soundfile", "pyav"]), st.data())
def test_damage_gives_a_wave_or_a_reason(form: str, reader: sound_files.Reader, data: st.DataObject):
    pytest.importorskip("av")
    good = intact(form)
    bad = bytearray(good[: data.draw(st.integers(1, len(good)))] if data.draw(st.booleans()) else good)
    places = st.integers(0, min(len(bad), data.draw(st.sampled_from([100, 2_000, len(bad)]))) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        bad[place] = value
    try:
        assert len(decode_sound(bytes(bad), SoundConfig(reader=reader))) > 0
    except SampleError as error:
        assert error.reason.startswith(("sound_", "media_empty"))


@functools.cache
def intact(form: str) -> bytes:
    return encode(form, 0.6) if form in FORMS else sound(0.6, 44_100, form=form, channels=2)


def test_a_file_of_many_channels_is_a_reject_of_pyav():
    """PyAV reads past the planes of a frame with more than eight, which ends the process."""
    pytest.importorskip("av")
    file = io.BytesIO()
    soundfile.write(file, np.repeat(tone(0.5, 16_000), 25, axis=1), 16_000, format="WAV")
    assert reason(file.getvalue(), PYAV) == "sound_unreadable"
    assert len(decode_sound(file.getvalue(), SoundConfig(channel="mean"))) == 8_000


def test_a_missing_extra_is_named_up_front(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(sound_files, "import_module", absent)
    check_reader("soundfile")
    with pytest.raises(ConfigError, match=r"pip install anygpt-data\[av\]"):
        check_reader("pyav")
    media = MediaConfig.model_validate({"speech": {"reader": "pyav"}})
    codec = importlib.import_module("tests.fixtures.modality_route").HashCodec(Modality.SPEECH)
    with pytest.raises(ConfigError, match=r"pip install anygpt-data\[av\]"):
        check_front_end(media, {Modality.SPEECH: codec})


def test_a_recording_on_disk_is_read_by_the_reader_of_its_kind(tmp_path: Path):
    path = tmp_path / "talk.m4a"
    path.write_bytes(encode("m4a", 3.0))
    media = MediaConfig.model_validate({"speech": {"reader": "pyav"}})
    decode = make_decoder(media, WindowConfig())
    clips = [decode(RawMedia("speech", Modality.SPEECH, path=path, begin_s=b, end_s=b + 1)) for b in (0.0, 1.5)]
    assert [len(clip.medium) for (clip,) in clips] == [16_000, 16_000]
    with pytest.raises(SampleError, match="sound_unreadable"):
        RecordingCache().open(path, channel="first")


@pytest.mark.parametrize(("form", "subtype"), [("MP3", None), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("FLAC", None)])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_samples_do_not_depend_on_the_size_of_reads(
    form: str, subtype: str | None, rate: int, monkeypatch: pytest.MonkeyPatch
):
    """Once, mp3 were read in blocks by a file that could seek; soundfile did after each, and frames were lost there."""
    data = sound(3.0, rate, form=form, subtype=subtype, channels=2)
    expected, _ = read_channels(data, reader="soundfile", channel="mean", limit_s=None)
    monkeypatch.setattr(sound_files, "_BLOCK", 5_001)
    monkeypatch.setattr(sound_files, "_MOST_CLAIMED", 7_000)
    found, _ = read_channels(data, reader="soundfile", channel="mean", limit_s=None)
    np.testing.assert_array_equal(found, expected)
    first, _ = read_channels(data, reader="soundfile", channel="first", limit_s=None)
    np.testing.assert_array_equal(first, expected[:, :1])
    assert silence_share(found[:, 0].copy(), rate) == 0.0


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_an_mp3_is_what_another_decoder_makes_of_it(rate: int):
    pytest.importorskip("av")
    data = sound(6.0, rate, form="MP3", channels=2)
    one, _ = read_channels(data, reader="soundfile", channel="mean", limit_s=None)
    other, _ = read_channels(data, reader="pyav", channel="mean", limit_s=None)
    assert np.abs(one - other).max() < 1e-4
