"""The media front end: from a raw segment to what a codec reads.

Everything here that changes a code is a config key, and :func:`front_end_facts` lists all of it for the fingerprint of a
dataset. Pictures are read by :mod:`pipeline.pictures`, sounds by :mod:`pipeline.sounds`.

Windows (music, and what is said to be ``windowed``): consecutive pieces of ``window_s`` from the start, at most
``max_windows``; what remains at the end is kept as a shorter piece if it is at least ``min_s`` long, else dropped. A clip
shorter than one window is one shorter piece. The default is one window of 5 s, as Table 1 has it: a million clips of five
seconds are the paper's billion music tokens.

A sound modality that Table 1 names has its own section of :class:`MediaConfig`, ``media.audio``, without being named here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, create_model, model_validator

from configs.load import Config
from pipeline.pictures import FORMATS, PictureConfig, decode_picture
from pipeline.samples import RawMedia
from pipeline.sound_files import check_reader
from pipeline.sounds import RESAMPLER, RecordingCache, SoundConfig, decode_sound
from pipeline.tokenization import Clip
from pipeline.tokenizers.base import MediaTokenizer, Wave
from shards.errors import ConfigError, SampleError
from shards.modality import MEDIA, SOUNDS, Modality

FRONT_END_VERSION = 2
"""Raised whenever the same bytes would become other pixels or samples under the same config. 2: mp3 without gaps."""


# What upstream does with its two sounds; any other is averaged and cut, as music is.
_AS_UPSTREAM = {
    Modality.SPEECH: SoundConfig(channel="first"),
    Modality.MUSIC: SoundConfig(channel="mean", min_s=1.0, windowed=True),
}


def sound_defaults(modality: Modality) -> SoundConfig:
    """How a sound is read when a config says nothing: at the rate of Table 1."""
    policy = _AS_UPSTREAM.get(modality, SoundConfig(channel="mean", windowed=True))
    return policy.model_copy(update={"sample_rate_hz": modality.rate.sample_rate_hz})


class WindowConfig(Config):
    """How sounds are cut into windows."""

    window_s: float = Field(default=5.0, gt=0.0)
    max_windows: int = Field(default=1, ge=1)
    min_s: float = Field(default=1.0, gt=0.0)
    """A remainder shorter than this is dropped."""


class _Media(Config):
    picture: PictureConfig = PictureConfig()


if TYPE_CHECKING:

    class _Sounds(_Media):
        """A section for every sound modality."""

        speech: SoundConfig = SoundConfig()
        music: SoundConfig = SoundConfig()

else:
    _Sounds = create_model(
        "_Sounds", __base__=_Media, **{str(sound): (SoundConfig, sound_defaults(sound)) for sound in SOUNDS}
    )


class MediaConfig(_Sounds):
    """How media are read: ``picture``, and a section for every sound modality, such as ``speech``."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """A section that names some keys keeps its own modality's defaults for the others."""
        if not isinstance(data, Mapping):
            return data
        given = dict(cast(Mapping[str, Any], data))
        for sound in SOUNDS:
            if isinstance(section := given.get(sound), Mapping):
                given[str(sound)] = sound_defaults(sound).model_dump() | dict(cast(Mapping[str, Any], section))
        return given

    def sound(self, modality: Modality) -> SoundConfig:
        """The section of a sound modality."""
        return cast(SoundConfig, getattr(self, modality))


def front_end_facts(
    media: MediaConfig, windows: WindowConfig, modalities: Collection[Modality] = MEDIA
) -> dict[str, Any]:
    """Every choice that decides what codecs read, as plain data for a fingerprint.

    Args:
        modalities: that are tokenized; how others would be read is no fact of a dataset.
    """
    facts: dict[str, Any] = {"version": FRONT_END_VERSION, "media": {}}
    if Modality.IMAGE in modalities:
        facts["picture_formats"] = list(FORMATS)
        facts["media"]["picture"] = media.picture.model_dump(mode="json")
    sounds = [sound for sound in SOUNDS if sound in modalities]
    facts["media"] |= {str(sound): media.sound(sound).model_dump(mode="json") for sound in sounds}
    if sounds:
        facts["resampler"] = RESAMPLER
    if any(media.sound(sound).windowed for sound in sounds):
        facts["windows"] = windows.model_dump(mode="json")
    return facts


def check_front_end(media: MediaConfig, codecs: Mapping[Modality, MediaTokenizer]) -> None:
    """See that codecs get what they read, before a medium is decoded.

    Raises:
        ConfigError: sounds would be read at another rate than their codec's, or with a reader that is not installed.
    """
    for modality, codec in codecs.items():
        if not modality.is_sound:
            continue
        sound = media.sound(modality)
        check_reader(sound.reader)
        rates = {modality.rate.sample_rate_hz, codec.sample_rate_hz, sound.sample_rate_hz}
        if len(rates) > 1:
            raise ConfigError(
                f"media.{modality}.sample_rate_hz = {sound.sample_rate_hz}: expected the sample rate of "
                f"tokenizers.{modality} ({codec.name}), which is {codec.sample_rate_hz}, and of Table 1, which is "
                f"{modality.rate.sample_rate_hz}; leave the key out, or choose another codec"
            )


def make_decoder(media: MediaConfig, windows: WindowConfig) -> Callable[[RawMedia], Sequence[Clip]]:
    """A function that decodes raw segments; it remembers the last long recording, so use one per unit of work.

    Its clips are one a segment, or up to ``windows.max_windows`` of a windowed sound. It raises ``SampleError``.
    """
    cache = RecordingCache()

    def decode(raw: RawMedia) -> Sequence[Clip]:
        return decode_media(raw, media, windows, cache=cache)

    return decode


def decode_media(raw: RawMedia, media: MediaConfig, windows: WindowConfig, *, cache: RecordingCache) -> list[Clip]:
    """Decode one raw segment; see :func:`make_decoder`."""
    if raw.modality is Modality.IMAGE:
        data = _picture_bytes(raw)
        return [Clip(decode_picture(data, media.picture), hashlib.sha256(data).hexdigest())]
    if not raw.modality.is_sound:
        raise SampleError("media_unexpected", f"expected a picture or a sound, found {raw.modality}")
    sound = media.sound(raw.modality)
    keep_s = windows.window_s * windows.max_windows if sound.windowed else None
    wave = decode_sound(raw, sound, cache=cache, keep_s=keep_s)
    sha256 = _sound_sha256(raw, sound, cache)
    pieces = cut_windows(wave, windows, sound.sample_rate_hz) if sound.windowed else [wave]
    return [Clip(piece, sha256) for piece in pieces]


def cut_windows(wave: Wave, windows: WindowConfig, sample_rate_hz: int) -> list[Wave]:
    """Consecutive windows from the start; at least one, whatever the length.

    Args:
        wave: (samples,) at ``sample_rate_hz``.
    """
    size = round(windows.window_s * sample_rate_hz)
    shortest = round(windows.min_s * sample_rate_hz)
    pieces = [wave[start : start + size] for start in range(0, len(wave), size)][: windows.max_windows]
    return pieces[:1] + [piece for piece in pieces[1:] if len(piece) >= shortest]


def _picture_bytes(raw: RawMedia) -> bytes:
    if raw.path is None:
        return raw.data
    try:
        return raw.path.read_bytes()
    except OSError as error:
        raise SampleError("media_missing", f"{raw.path.name}: {type(error).__name__}") from error


def _sound_sha256(raw: RawMedia, config: SoundConfig, cache: RecordingCache) -> str:
    """Of the bytes; a cut of a recording adds its times, so that no two segments share one."""
    if raw.path is None:
        return hashlib.sha256(raw.data).hexdigest()
    recording = cache.open(raw.path, channel=config.channel, reader=config.reader)
    return hashlib.sha256(f"{recording.sha256} {raw.begin_s} {raw.end_s}".encode()).hexdigest()
