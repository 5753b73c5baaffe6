"""A medium in the making: what is asked for, what comes back, and the one Protocol behind which media are made.

Source: AnyGPT section 4.2 (there: DALL-E 3, MusicGen, Azure's text to speech). Here every medium comes from a *plug*: an
HTTP endpoint (:mod:`synthesis.media_http`), weights on this machine (:mod:`synthesis.media_models`), or neither
(:mod:`synthesis.media_offline`). A plug gets requests and yields, as they are done, each request with what was made, or
with the :class:`~shards.errors.SampleError` that says why nothing was. What it made is checked and encoded by
:mod:`synthesis.media_checks`, the same for all of them.

A request is everything that decides a medium. Its name is a hash of that and of the plug's facts, and the medium's file
bears that name: a file that is there is the answer to its request, and is never asked for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shards.errors import SampleError
from shards.modality import Modality

Made = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""A picture (224, 224, 3) uint8, or a mono sound (samples,) float32 at the rate of its modality in Table 1."""
Outcome = Made | SampleError
FOLDERS = {Modality.IMAGE: "images_224", Modality.MUSIC: "music", Modality.SPEECH: "speech"}
"""Where the files of a modality lie in a corpus of the AnyInstruct layout."""
_SUFFIXES = {Modality.IMAGE: "jpg", Modality.MUSIC: "mp3", Modality.SPEECH: "wav"}


@dataclass(frozen=True, slots=True)
class MediaRequest:
    """One medium to make.

    Attributes:
        text: the caption of a picture or of music; the words to be said.
        key: who wants it: the dialogue, the turn and the place in it. No two requests of a corpus have the same.
        seed: of the randomness of a plug, by ``key``; not negative, below 2**31.
        duration_s: of music, as it will be written; 0 for the others.
        voice: who speaks, in the plug's own words; empty for the others.
        speed: of speech, as a factor.
    """

    modality: Modality
    text: str
    key: str
    seed: int
    duration_s: float = 0.0
    voice: str = ""
    speed: float = 1.0


class MediaPlug(Protocol):
    """Makes media of one modality."""

    @property
    def together(self) -> int:
        """Requests whose media depend on each other, because they are made in one batch.

        So many neighbours are made in one go, or none of them: a run that was resumed has the media of one that was not.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What, besides a request, decides a medium; part of every name and of the corpus's fingerprint."""
        ...

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        """Every request once, in any order, as it is done.

        Raises:
            ConfigError: the plug cannot work at all: no weights, no library, a key that an endpoint refuses.
        """
        ...


def medium_name(request: MediaRequest, facts: Mapping[str, Any]) -> str:
    """The name of the file for ``request`` by a plug of these facts, e.g. ``image_0123456789abcdef.jpg``."""
    told = json.dumps([asdict(request), facts], sort_keys=True, separators=(",", ":"), default=str)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return f"{request.modality}_{digest}.{_SUFFIXES[request.modality]}"
