"""Media without a network and without weights: the renderers of the sample corpora, and espeak-ng.

They draw and play only what the sample corpora know (:mod:`pipeline.sample_corpora.pictures` and ``music``): a caption
that does not name every attribute, each in one word, is rejected with a reason that says which are missing. Every plug is
a pure function of request and config, so a corpus made twice has the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.sample_corpora import music, pictures, speech
from pipeline.sample_corpora.draws import generator
from shards.errors import SampleError
from synthesis.media import Made, MediaRequest, Outcome
from synthesis.media_config import OfflineMusic, OfflinePictures, OfflineSpeech
from synthesis.voices import espeak_voices

RENDERER_VERSION = 1
"""Raised whenever the same request would give another medium."""


@dataclasses.dataclass(frozen=True, slots=True)
class OfflinePlug:
    """A function of a request behind the Protocol of plugs."""

    name: str
    settings: Mapping[str, Any]
    render: Callable[[MediaRequest], Made]
    together: int = 1

    def facts(self) -> Mapping[str, Any]:
        """The renderer, its version and its settings."""
        return {"plug": self.name, "version": RENDERER_VERSION, **self.settings}

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        """One after the other, in their order."""
        for request in requests:
            try:
                yield request, self.render(request)
            except SampleError as error:
                yield request, error


def offline_pictures(config: OfflinePictures) -> OfflinePlug:
    """One shape on a plain background, as the caption says, with a small variation by the request's seed."""

    def render(request: MediaRequest) -> Made:
        attributes = _named(request, pictures.parse_caption, pictures.PictureAttributes, "caption_no_picture")
        variation = pictures.draw_variation(
            generator(request.seed, "picture"),
            jitter_px=config.jitter_px,
            jitter_scale=config.jitter_scale,
            jitter_shade=config.jitter_shade,
        )
        return np.asarray(pictures.render_picture(attributes, variation), np.uint8)

    return OfflinePlug("shapes", config.model_dump(exclude={"plug"}), render)


def offline_music(config: OfflineMusic) -> OfflinePlug:
    """One instrument that plays one pattern, as the caption says."""

    def render(request: MediaRequest) -> Made:
        attributes = _named(request, music.parse_caption, music.MusicAttributes, "caption_no_music")
        gain_db = float(generator(request.seed, "music").uniform(-config.jitter_gain_db, config.jitter_gain_db))
        return music.render_music(attributes, duration_s=request.duration_s, gain_db=gain_db)

    return OfflinePlug("additive", config.model_dump(exclude={"plug"}), render)


def offline_speech(config: OfflineSpeech) -> OfflinePlug:
    """espeak-ng, with the voices of :mod:`synthesis.voices`."""
    voices = espeak_voices()

    def render(request: MediaRequest) -> Made:
        voice = voices[request.voice]
        paced = dataclasses.replace(voice, rate_wpm=round(voice.rate_wpm * request.speed))
        try:
            return speech.synthesize(request.text, paced)
        except speech.SynthesisError as error:
            raise SampleError("speech_silent", str(error)) from error

    return OfflinePlug("espeak-ng", config.model_dump(exclude={"plug"}), render)


def _named(request: MediaRequest, parse: Callable[[str], dict[str, str]], kind: Any, reason: str) -> Any:
    """The attributes a caption names.

    Raises:
        SampleError: ``reason``, when one is missing or named twice.
    """
    found = parse(request.text)
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in found]
    if missing:
        raise SampleError(
            reason, f"expected one {', one '.join(missing)} that the offline renderer knows, found {request.text!r}"
        )
    return kind(**found)
