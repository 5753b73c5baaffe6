"""Which plug a config names."""

from __future__ import annotations

from pathlib import Path
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


def open_plugs(config: CorpusMediaConfig, output: Path | None = None) -> dict[Modality, MediaPlug]:
    """One plug a modality; weights are loaded and connections opened when the first medium is asked for.

    Args:
        output: where endpoints count what they cost; None: nowhere, so nothing may be asked for where there is a cap.

    Raises:
        ConfigError: a folder of weights is not there.
    """
    return {
        Modality.IMAGE: _pictures(config.pictures, output),
        Modality.MUSIC: _music(config.music, output),
        Modality.SPEECH: _speech(config.speech, output),
    }


def plug_facts(config: CorpusMediaConfig) -> dict[str, Any]:
    """Modality -> what its plug says of itself."""
    return {str(modality): dict(plug.facts()) for modality, plug in open_plugs(config).items()}


def _pictures(config: PicturesPlug, output: Path | None) -> MediaPlug:
    if isinstance(config, OfflinePictures):
        from synthesis.media_offline import offline_pictures

        return offline_pictures(config)
    if isinstance(config, LocalPictures):
        from synthesis.media_models import DiffusionPlug

        return DiffusionPlug(config)
    return _endpoint(config, output, "pictures")


def _music(config: MusicPlug, output: Path | None) -> MediaPlug:
    if isinstance(config, OfflineMusic):
        from synthesis.media_offline import offline_music

        return offline_music(config)
    if isinstance(config, LocalMusic):
        from synthesis.media_models import MusicGenPlug

        return MusicGenPlug(config)
    return _endpoint(config, output, "music")


def _speech(config: SpeechPlug, output: Path | None) -> MediaPlug:
    if isinstance(config, Endpoint):
        return _endpoint(config, output, "speech")
    from synthesis.media_offline import offline_speech

    return offline_speech(config)


def _endpoint(config: Endpoint, output: Path | None, name: str) -> MediaPlug:
    from synthesis.media_budget import open_budget
    from synthesis.media_http import HttpPlug

    return HttpPlug(config, budget=open_budget(config, output, name) if output is not None else None)
