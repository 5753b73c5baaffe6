"""The protocol every media codec implements, whether fitted here (``compact``) or loaded from published weights.

Table 1 of the paper is law: a picture is 32 codes of 8,192; speech 50 frames/s of 1,024 (8 levels at rest); music
50 frames/s x 4 levels of 2,048. ``frames_for`` is exact and asserted when samples are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from shards.vocabulary import Codes, Modality

Picture = npt.NDArray[np.uint8]  # (224, 224, 3) RGB
Wave = npt.NDArray[np.float32]  # (samples,) mono in [-1, 1]
Medium = Picture | Wave


@runtime_checkable
class MediaTokenizer(Protocol):
    """Media in, codes out, any number at a time; a codec cuts them into batches that its device can hold.

    The codes of an item never depend on its neighbours: that is what lets shards be the same under any batching.
    """

    name: str
    modality: Modality
    codebook_size: int
    levels: int
    """Levels at rest."""
    sample_rate_hz: int
    """0 for pictures."""
    frame_rate_hz: float
    """Frames per second; 0 for pictures."""
    fingerprint: str
    """16 hex digits over weights, code version and every front-end choice that changes a code."""

    def frames_for(self, num_samples: int) -> int:
        """Exact number of frames for a sound of ``num_samples`` at ``sample_rate_hz`` (ceil); 32 for any picture."""
        ...

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """One (frames, levels) uint16 array per item, in order.

        Raises:
            ValueError: wrong shape or dtype, NaN, or an empty sound.
        """
        ...


@runtime_checkable
class MediaDetokenizer(Protocol):
    """Codes in, media out."""

    name: str
    modality: Modality
    sample_rate_hz: int

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """One picture (224, 224, 3) uint8 or wave (frames * hop,) float32 per item, in order.

        Speech accepts (frames, 1): level 1 alone, as the language model writes it.
        """
        ...
