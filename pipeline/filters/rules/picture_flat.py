"""The picture is one colour or nearly so: what a server sends for a picture it no longer has."""

from __future__ import annotations

from typing import cast

import numpy as np
from pydantic import Field

from pipeline.filters.view import PICTURES, RuleConfig, View, outside
from pipeline.tokenizers.base import Picture
from shards.modality import Modality


class Keys(RuleConfig):
    """Of this rule."""

    min_picture_spread: float | None = Field(default=None, ge=0.0, le=127.5)
    """Standard deviation of the pixel values (0 to 255), of the colour channel where it is largest. Photographs and
    drawings of the test corpora have 26 and more."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether any of its pictures is flatter; the flattest is noted as ``picture_spread``."""
    if config.min_picture_spread is None or Modality.IMAGE not in view.modalities:
        return False
    spread = min(picture_spread(cast(Picture, s.clip.medium)) for s in view.media if s.modality is Modality.IMAGE)
    view.numbers["picture_spread"] = spread
    return outside(spread, view, config, least=config.min_picture_spread, of=PICTURES)


def picture_spread(picture: Picture) -> float:
    """Of every fourth pixel each way, which is as good as all.

    Args:
        picture: (height, width, 3) uint8.
    """
    channels = np.ascontiguousarray(picture[::4, ::4].reshape(-1, 3).T, dtype=np.float32)
    return round(float(channels.std(axis=1).max()), 3)
