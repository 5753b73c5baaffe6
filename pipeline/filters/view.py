"""What a rule looks at, and the one way it compares a number with its thresholds."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import IO

from PIL import Image

from configs.load import Config
from pipeline.pictures import FORMATS
from pipeline.samples import RawMedia, RawSample, RawText
from pipeline.tokenization import DecodedMedia, DecodedSample
from shards.modality import SOUNDS, Modality

CAPTION_SLOTS = frozenset({"caption", "transcript"})
PICTURES = frozenset({Modality.IMAGE})
SPEECH = frozenset({Modality.SPEECH})
PLAYED = frozenset(SOUNDS) - SPEECH
"""Music, and every other sound that nobody transcribes."""
# What Pillow raises on headers that are damaged, or that claim too many pixels.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class RuleConfig(Config):
    """What the keys of all rules have in common."""

    keep_unknown: bool = True
    """Whether a sample without the number that a rule needs is kept."""


@dataclass(frozen=True)
class View:
    """One sample, as rules see it.

    Attributes:
        captions: texts of the caption and transcript slots, which are alternatives of each other.
        document: all its other text, of a web page or a conversation, as one.
        numbers: the corpus's quality fields and what was measured; a rule that measures puts its number here.
        modalities: of the sample's media.
        raw_media, media: before and after they are decoded; the other one is empty.
    """

    captions: tuple[str, ...]
    document: str
    numbers: dict[str, float]
    modalities: frozenset[Modality]
    raw_media: tuple[RawMedia, ...] = ()
    media: tuple[DecodedMedia, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What rules about text judge: every caption alone, a document as a whole."""
        return (*self.captions, self.document) if self.document else self.captions

    @cached_property
    def picture_sizes(self) -> tuple[tuple[float, float], ...]:
        """(width, height) of its pictures: as the corpus has it, else as the headers of their files say.

        Empty if one cannot be read: what is damaged is the decoder's to reject, under its own name.
        """
        width, height = self.numbers.get("width"), self.numbers.get("height")
        if width is not None and height is not None:
            return ((width, height),)
        sizes = [_size_in_header(raw) for raw in self.raw_media if raw.modality is Modality.IMAGE]
        return tuple(size for size in sizes if size is not None) if None not in sizes else ()


def view_raw(sample: RawSample) -> View:
    """A sample before its media are decoded."""
    texts = [(segment.slot, segment.text) for segment in sample.segments if isinstance(segment, RawText)]
    media = tuple(segment for segment in sample.segments if isinstance(segment, RawMedia))
    captions, document = _split(texts)
    return View(captions, document, dict(sample.quality), frozenset(one.modality for one in media), raw_media=media)


def view_decoded(sample: DecodedSample) -> View:
    """A sample whose media are decoded."""
    media = tuple(segment for segment in sample.segments if isinstance(segment, DecodedMedia))
    texts = [
        (segment.slot, segment.text)
        for segment in sample.segments
        if not isinstance(segment, DecodedMedia) and segment.text is not None
    ]
    captions, document = _split(texts)
    return View(captions, document, dict(sample.quality), frozenset(one.modality for one in media), media=media)


def outside(
    number: float | None,
    view: View,
    config: RuleConfig,
    *,
    of: Collection[Modality],
    least: float | None = None,
    most: float | None = None,
) -> bool:
    """Whether a number leaves its range; an unknown one does if the config says so.

    Args:
        of: modalities that the rule is about; a sample without any of them stays in.
        least, most: both None: the rule is off.
    """
    if (least is None and most is None) or view.modalities.isdisjoint(of):
        return False
    if number is None or not isfinite(number):
        return not config.keep_unknown
    return (least is not None and number < least) or (most is not None and number > most)


def _split(texts: list[tuple[str, str]]) -> tuple[tuple[str, ...], str]:
    captions = tuple(text for slot, text in texts if slot in CAPTION_SLOTS)
    return captions, "\n".join(text for slot, text in texts if slot not in CAPTION_SLOTS)


def _stored(raw: RawMedia) -> IO[bytes]:
    return io.BytesIO(raw.data) if raw.path is None else raw.path.open("rb")


def _size_in_header(raw: RawMedia) -> tuple[float, float] | None:
    """Width and height without decoding a pixel; which of the two is which, a camera's orientation may turn round."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _stored(raw) as file, Image.open(file, formats=FORMATS) as image:
                return float(image.width), float(image.height)
    except _DAMAGE:  # the decoder meets it again and gives it its name
        return None
