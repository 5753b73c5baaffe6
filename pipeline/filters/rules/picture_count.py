"""A document has fewer or more pictures than asked for.

Counted are the pictures that the reader has kept: MMC4's leaves out those that were not downloaded or fit their sentence
less than ``options.min_matched_sim``. A page of forty pictures is a gallery, and one of 4,500 tokens holds no more.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters.view import PICTURES, RuleConfig, View, outside
from shards.modality import Modality


class Keys(RuleConfig):
    """Of this rule."""

    min_pictures: int | None = Field(default=None, ge=1)
    max_pictures: int | None = Field(default=None, ge=1)
    """Of samples that have any picture."""


def leaves_out(view: View, config: Keys) -> bool:
    """Whether there are too few or too many."""
    count = sum(medium.modality is Modality.IMAGE for medium in view.raw_media)
    return outside(count, view, config, least=config.min_pictures, most=config.max_pictures, of=PICTURES)
