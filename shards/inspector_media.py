"""What turns ids back into something to read, see and hear. It is handed in, so the lowest floor imports no codec."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shards.media_files import data_uri, png_bytes, wav_bytes
from shards.vocabulary import Codes

DecodeText = Callable[[Sequence[int]], str]


class Detokenizer(Protocol):
    """The part of a media detokenizer that the inspector uses."""

    sample_rate_hz: int

    def decode(self, batch: Sequence[Codes]) -> Sequence[Any]:
        """One picture (height, width, 3) uint8 or wave (samples,) float per item."""
        ...


@dataclass(slots=True)
class Decoders:
    """The decoders of one page.

    Attributes:
        text: ids of the text block to text; None shows the ids.
        media: by modality.
        max_media: decode so many of each modality; a sound is some 200 KB of page.
    """

    text: DecodeText | None = None
    media: Mapping[str, Detokenizer] = field(default_factory=dict[str, Detokenizer])
    max_media: int = 40
    _used: dict[str, int] = field(default_factory=dict[str, int], init=False)

    def for_another_page(self) -> Decoders:
        """The same, with nothing decoded yet."""
        return Decoders(self.text, self.media, self.max_media)

    def show(self, modality: str, codes: Codes, label: str) -> str:
        """HTML of one medium: a picture, a player, or its first codes."""
        detokenizer = self.media.get(modality)
        self._used[modality] = self._used.get(modality, 0) + 1
        if detokenizer is None or self._used[modality] > self.max_media:
            return f"<code>{' '.join(str(code) for code in codes.reshape(-1)[:8].tolist())} …</code>"
        medium = np.asarray(detokenizer.decode([codes])[0])
        if medium.ndim == 3:
            return f'<img src="{data_uri(png_bytes(medium), "image/png")}" alt="{html.escape(label)}" loading="lazy">'
        source = data_uri(wav_bytes(medium, detokenizer.sample_rate_hz), "audio/wav")
        return f'<audio controls preload="none" src="{source}" aria-label="{html.escape(label)}"></audio>'
