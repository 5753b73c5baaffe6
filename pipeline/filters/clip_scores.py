"""Scores of a model that a config plugs in: how well picture and caption fit, in whole batches.

The plug is any function ``(pictures, captions, *, model) -> scores``: pictures (n, height, width, 3) uint8, n captions, n
numbers. It is asked about samples of one picture with a caption; where captions are alternatives, the worst one counts,
for any of them may be drawn. All others have no score, and ``keep_unknown`` decides about them.

Scores are rounded to four decimals: the last bits of a model's numbers depend on how many pairs it was given at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from pipeline.filters.config import FilterConfig
from pipeline.filters.view import view_decoded
from pipeline.tokenization import Decoded, DecodedSample
from pipeline.tokenizers.base import Picture
from shards.errors import ConfigError
from shards.modality import Modality

_DECIMALS = 4
_EXAMPLE = '"pipeline.filters.clip_plug:score"'


class ClipPlug(Protocol):
    """What ``clip_plug`` names."""

    def __call__(self, pictures: Picture, captions: Sequence[str], *, model: str) -> npt.ArrayLike:
        """One score a pair, higher for a better fit."""
        ...


def score_samples(items: Iterable[Decoded], config: FilterConfig) -> Iterator[Decoded]:
    """The same items in the same order; samples with a pair to score have ``clip_score`` in ``quality``.

    Raises:
        ConfigError: there is no such function, or it gave something else than one finite number a pair.
    """
    plug = load_plug(config.clip_plug or "")
    remaining = iter(items)
    while some := list(islice(remaining, config.clip_batch)):
        pairs = [(place, *pair) for place, item in enumerate(some) for pair in _pairs(item)]
        worst: dict[int, float] = {}
        for start in range(0, len(pairs), config.clip_batch):
            batch = pairs[start : start + config.clip_batch]
            pictures = np.stack([picture for _, picture, _ in batch])
            scores = _checked(
                plug(pictures, [text for _, _, text in batch], model=config.clip_model), len(batch), config
            )
            for (place, _, _), score in zip(batch, scores, strict=True):
                worst[place] = min(score, worst.get(place, score))
        for place, item in enumerate(some):
            if isinstance(item, DecodedSample) and place in worst:
                item = replace(item, quality={**item.quality, "clip_score": worst[place]})
            yield item


@functools.lru_cache(maxsize=4)
def load_plug(name: str) -> ClipPlug:
    """The function that ``module:function`` names.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"filters.clip_plug = {name!r}: expected module:function, such as {_EXAMPLE}, found {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"filters.clip_plug = {name!r}: expected a function, found {type(found).__name__}")
    return cast(ClipPlug, found)


def _pairs(item: Decoded) -> list[tuple[Picture, str]]:
    if not isinstance(item, DecodedSample):
        return []
    view = view_decoded(item)
    pictures = [segment.clip.medium for segment in view.media if segment.modality is Modality.IMAGE]
    return [(cast(Picture, pictures[0]), text) for text in view.captions] if len(pictures) == 1 else []


def _checked(scores: npt.ArrayLike, count: int, config: FilterConfig) -> list[float]:
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ConfigError(
            f"filters.clip_plug = {config.clip_plug!r}: expected {count} finite scores for as many pairs, found "
            f"{np.array2string(found, threshold=8)} of shape {found.shape}; mend the function"
        )
    return [round(float(score), _DECIMALS) for score in found]
