"""Raw samples: what a corpus reader yields, before any tokenizer has seen it.

A reader never decodes media: it hands over bytes (or a cut of a longer recording) together with where they came from.
What cannot be a sample at all is a :class:`Reject`; what the corpus's own published rules or our filters leave out is
:class:`Filtered`. So inputs = samples + filtered + rejects, whatever the file looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.records import Provenance
from shards.vocabulary import Modality


@dataclass(frozen=True, slots=True)
class RawText:
    """A text segment as the corpus has it, after the corpus's own documented repairs."""

    slot: str
    text: str


@dataclass(frozen=True, slots=True)
class RawMedia:
    """A picture or a sound, still encoded.

    Attributes:
        data: the encoded bytes; empty when ``path`` is given instead.
        path: a file to read (long recordings are read once per unit, not once per segment).
        begin_s, end_s: a cut of the recording; None means from its start / to its end.
    """

    slot: str
    modality: Modality
    data: bytes = b""
    path: Path | None = None
    begin_s: float | None = None
    end_s: float | None = None


RawSegment = RawText | RawMedia


@dataclass(frozen=True, slots=True)
class RawSample:
    """One item of a corpus: ordered segments and provenance.

    Attributes:
        sample_id: unique in its corpus and independent of the machine, e.g. ``laion2b/00000/000000017``.
        quality: numbers that filters read (similarity, punsafe, width ...); absent where the corpus has none.
    """

    sample_id: str
    corpus: str
    split: str
    segments: tuple[RawSegment, ...]
    provenance: Provenance
    quality: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Reject:
    """An input that is no sample, with a named reason; goes to the rejects dataset."""

    sample_id: str
    corpus: str
    reason: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Filtered:
    """A sound input that is left out on purpose, with the name of the rule; it is counted, and no fault of anyone's."""

    sample_id: str
    corpus: str
    reason: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Source:
    """One raw file a reader walks item by item: the unit of listing.

    Attributes:
        num_items: every input in it, those that will be rejected included.
        part: the reader's own address of a part, where one file holds several sources (GigaSpeech: one a recording);
            opaque to everybody else, and to be handed back with the rest of the source.
    """

    path: Path
    num_items: int
    part: str = ""
