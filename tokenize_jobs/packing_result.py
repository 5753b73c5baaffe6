"""What packing a unit made: what its ledger entry says, counted from the rows themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import numpy as np

from pipeline.packing_plan import Int64s
from shards.manifest import ShardEntry
from shards.packed import PackedRow
from shards.vocabulary import Vocabulary

FILLER_COUNTS: tuple[str, ...] = ("documents", "tokens", "repeated")
"""What is counted of a filler."""


@dataclass(frozen=True, slots=True)
class RejectedDocument:
    """A document that was not packed, and why."""

    sample_id: str
    draw: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a unit's ledger entry says.

    Attributes:
        shard: None when nothing was left to write.
        inputs: documents, those read of the filler among them.
        tokens_by_source: the dataset of samples they came from -> modality -> ids; padding not counted.
        cut: documents that fit a row and were cut; always 0, counted to prove it.
        split: documents longer than a row that were split at segment borders, dialogues between two exchanges.
        filler: ``documents`` and ``tokens`` of the filler, and ``repeated``: those of its documents told before.
    """

    fingerprint: str
    shard: ShardEntry | None
    sidecar_sha256: str
    inputs: int
    written: int
    filtered: dict[str, int] = field(default_factory=dict[str, int])
    rejected: dict[str, int] = field(default_factory=dict[str, int])
    tokens_by_source: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    tokens_by_direction: dict[str, int] = field(default_factory=dict[str, int])
    documents_by_direction: dict[str, int] = field(default_factory=dict[str, int])
    filler: dict[str, int] = field(default_factory=dict[str, int])
    cut: int = 0
    split: int = 0
    rejects: tuple[RejectedDocument, ...] = ()


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What rows hold; a document in several pieces counts once."""

    documents_by_direction: dict[str, int]
    tokens_by_direction: dict[str, int]
    tokens_by_source: dict[str, dict[str, int]]
    filler: dict[str, int]


def count_rows(rows: Sequence[PackedRow], vocabulary: Vocabulary, *, fillers: Collection[str] = ()) -> RowCounts:
    """Documents and ids of rows.

    Args:
        fillers: names of the datasets that topped rows up.
    """
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    filler = dict.fromkeys(FILLER_COUNTS, 0)
    names = vocabulary.modality_names()
    index = vocabulary.modality_index()
    sources: dict[str, Int64s] = {}
    for row in rows:
        modalities = index[row.token_ids[: row.num_tokens]]
        for source, neighbours in groupby(row.placements, key=attrgetter("dataset")):
            places = list(neighbours)
            found = np.bincount(modalities[places[0].start : places[-1].stop], minlength=len(names))
            sources[source] = sources[source] + found if source in sources else found
            for place in places:
                length = place.stop - place.start
                tokens[place.direction] += length
                documents[place.direction] += place.offset == 0
                if source in fillers:
                    filler["documents"] += 1
                    filler["tokens"] += length
                    filler["repeated"] += place.draw > 0
    by_source = {
        source: {name: int(count) for name, count in zip(names, counts, strict=True) if count}
        for source, counts in sorted(sources.items())
    }
    return RowCounts(_sorted(documents), _sorted(tokens), by_source, filler)


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
