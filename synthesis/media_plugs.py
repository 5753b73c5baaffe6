"""Which plug a config names."""

from __future__ import annotations

from typing import Any

from shards.modality import Modality
from synthesis.media import MediaPlug
from synthesis.media_config import (
    CorpusMediaConfig,
    Endpoint,
    LocalMusic,
    LocalPictures,
    MusicPlug,
    OfflineMusic,
    OfflinePictures,
    PicturesPlug,
    SpeechPlug,
)


def open_plugs(config: CorpusMediaConfig) -> dict[Modality, MediaPlug]:
    """One plug a modality; weights are loaded and connections opened when the first medium is asked for.

    Raises:
        ConfigError: a folder of weights is not there.
    """
    return {
        Modality.IMAGE: _pictures(config.pictures),
        Modality.MUSIC: _music(config.music),
        Modality.SPEECH: _speech(config.speech),
    }


def plug_facts(config: CorpusMediaConfig) -> dict[str, Any]:
    """Modality -> what its plug says of itself."""
    return {str(modality): dict(plug.facts()) for modality, plug in open_plugs(config).items()}


def _pictures(config: PicturesPlug) -> MediaPlug:
    if isinstance(config, OfflinePictures):
        from synthesis.media_offline import offline_pictures

        return offline_pictures(config)
    if isinstance(config, LocalPictures):
        from synthesis.media_models import DiffusionPlug

        return DiffusionPlug(config)
    return _endpoint(config)


def _music(config: MusicPlug) -> MediaPlug:
    if isinstance(config, OfflineMusic):
        from synthesis.media_offline import offline_music

        return offline_music(config)
    if isinstance(config, LocalMusic):
        from synthesis.media_models import MusicGenPlug

        return MusicGenPlug(config)
    return _endpoint(config)


def _speech(config: SpeechPlug) -> MediaPlug:
    if isinstance(config, Endpoint):
        return _endpoint(config)
    from synthesis.media_offline import offline_speech

    return offline_speech(config)


def _endpoint(config: Endpoint) -> MediaPlug:
    from synthesis.media_http import HttpPlug

    return HttpPlug(config)
