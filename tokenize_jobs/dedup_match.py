"""Pass two of ``anygpt-dedup``: which samples are left out, given the signatures of all.

Equal and near media are edges; what is connected is one cluster, and likewise for texts. Then samples are judged in order
(corpus, unit, place in the unit): one whose media (all of them, or any: ``exact.media``) belong to clusters that a sample
before it has, is left out; else it is kept and its clusters are taken. Leaked samples are left out first of all; they take
their clusters too, so that a resized copy of an evaluation picture goes with it.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenize_jobs.dedup_config import DedupConfig
from tokenize_jobs.dedup_near import (
    Numbers,
    Pairs,
    components,
    concatenate,
    hamming_pairs,
    minhash_pairs,
    similarity,
)
from tokenize_jobs.dedup_table import SignatureTable

REASONS = (
    "duplicate_media",
    "near_duplicate_picture",
    "near_duplicate_text",
    "leaked_id",
    "leaked_text",
    "leaked_media",
)
_MEDIA, _PICTURE, _TEXT = range(3)
_LEAKS = ("leaked_id", "leaked_text", "leaked_media")


@dataclass(slots=True)
class Verdicts:
    """Samples that are left out, in order; arrays of numbers, because there may be millions.

    Attributes:
        reasons: index into :data:`REASONS`.
        of: number of the sample that is kept instead; -1 for a leak, whose entry is in ``entries``.
    """

    samples: array[int] = field(default_factory=lambda: array("q"))
    reasons: array[int] = field(default_factory=lambda: array("b"))
    of: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    entries: dict[int, str] = field(default_factory=dict[int, str])

    def add(self, sample: int, reason: int, of: int, score: float) -> None:
        """One more."""
        self.samples.append(sample)
        self.reasons.append(reason)
        self.of.append(of)
        self.scores.append(score)


def judge(table: SignatureTable, config: DedupConfig) -> Verdicts:
    """Every sample that is left out, with the reason, what it is a copy of, and how alike they are."""
    num_clusters = _register_media(table, config)
    num_texts = _register_texts(table, config)
    judge_ = _Judge(num_clusters, num_texts, config, table)
    for sample, rows in itertools.groupby(_involved(table), key=lambda row: row[0]):
        judge_.sample(sample, list(rows))
    return judge_.verdicts


def _register_media(table: SignatureTable, config: DedupConfig) -> int:
    """Make the table ``clustered``: medium, number of its cluster, first medium equal to it."""
    exact = [table.equal("sha256"), table.equal("decoded_sha256")] if config.exact.on else []
    near = [table.equal_pictures(), *_near_pictures(table, config)] if config.pictures.on else []
    same, first = components(*concatenate(exact))
    media, roots = components(*concatenate([*exact, *near]))
    equal_to = media.copy()
    equal_to[np.searchsorted(media, same)] = first
    kept, clusters = np.unique(roots, return_inverse=True)
    table.register("clustered", {"medium": media, "cluster": clusters.astype(np.int64), "equal_to": equal_to})
    return len(kept)


def _near_pictures(table: SignatureTable, config: DedupConfig) -> Iterator[Pairs]:
    hashes, colours, media = table.pictures()
    most = config.pictures.max_colour_distance

    def same_colours(left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
        return np.all(np.abs(colours[left].astype(np.int16) - colours[right]) <= most, axis=1)

    bits = config.pictures.hash_size**2
    for left, right in hamming_pairs(hashes, same_colours, max_distance=config.pictures.max_distance, bits=bits):
        yield media[left], media[right]


def _register_texts(table: SignatureTable, config: DedupConfig) -> int:
    """Make the table ``text_clustered``: sample, number of its cluster."""
    pairs: list[Pairs] = []
    if config.text.on:
        of = table.text_samples
        near = minhash_pairs(table.minhashes(), table.distinct_texts(), threshold=config.text.threshold)
        pairs = [table.equal_texts(), *((of[left], of[right]) for left, right in near)]
    samples, roots = components(*concatenate(pairs))
    kept, clusters = np.unique(roots, return_inverse=True)
    table.register("text_clustered", {"sample": samples, "text_cluster": clusters.astype(np.int64)})
    return len(kept)


def _involved(table: SignatureTable) -> Iterator[Sequence[Any]]:
    """One row for every medium of every sample that shares a cluster or has leaked, in order; leaks come with the first."""
    order = " ".join(f"WHEN '{reason}' THEN {rank}" for rank, reason in enumerate(_LEAKS))
    query = f"""
        WITH involved AS (
            SELECT sample FROM media JOIN clustered USING (medium)
            UNION SELECT sample FROM text_clustered UNION SELECT sample FROM leaks
        ), leaked AS (
            SELECT sample, arg_min({{'reason': reason, 'entry': entry}}, (CASE reason {order} END, entry)) AS leak
            FROM leaks GROUP BY sample
        )
        SELECT sample, medium, cluster, equal_to, picture, text_cluster, leak.reason, leak.entry
        FROM involved LEFT JOIN media USING (sample) LEFT JOIN clustered USING (medium)
        LEFT JOIN text_clustered USING (sample) LEFT JOIN leaked USING (sample)
        ORDER BY sample, medium"""
    for batch in table.stream(query):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Judge:
    """Who has which cluster, while samples go by in order."""

    def __init__(self, num_clusters: int, num_texts: int, config: DedupConfig, table: SignatureTable) -> None:
        self.verdicts = Verdicts()
        self._enough = all if config.exact.media == "all" else any
        self._bits = config.pictures.hash_size**2
        self._sample = np.full(num_clusters, -1, np.int64)
        self._equal_to = np.full(num_clusters, -1, np.int64)
        self._picture = np.zeros(num_clusters, np.uint64)
        self._text_sample = np.full(num_texts, -1, np.int64)
        self._text_samples, self._minhashes = table.text_samples, table.minhashes()

    def sample(self, sample: int, rows: Sequence[Sequence[Any]]) -> None:
        """Judge one sample, given a row for each of its media."""
        text_cluster, leak, entry = rows[0][5:]
        media = [row for row in rows if row[1] is not None]
        if leak is not None:
            self.verdicts.entries[sample] = entry
            self.verdicts.add(sample, REASONS.index(leak), -1, 1.0)
        elif media and self._enough(self._seen(row) for row in media):
            self._leave_out_copy(sample, [row for row in media if self._seen(row)])
            return
        elif text_cluster is not None and self._text_sample[text_cluster] >= 0:
            self._leave_out_text(sample, int(self._text_sample[text_cluster]))
            return
        self._take(sample, media, text_cluster)

    def _seen(self, row: Sequence[Any]) -> bool:
        return row[2] is not None and bool(self._sample[row[2]] >= 0)

    def _leave_out_copy(self, sample: int, seen: Sequence[Sequence[Any]]) -> None:
        alike = [1.0 if row[3] == self._equal_to[row[2]] else self._alike(row) for row in seen]
        reason = _MEDIA if all(row[3] == self._equal_to[row[2]] for row in seen) else _PICTURE
        self.verdicts.add(sample, reason, int(self._sample[seen[0][2]]), min(alike))

    def _alike(self, row: Sequence[Any]) -> float:
        return 1.0 - int(row[4] ^ int(self._picture[row[2]])).bit_count() / self._bits

    def _leave_out_text(self, sample: int, of: int) -> None:
        places = np.searchsorted(self._text_samples, [sample, of])
        score = float(similarity(self._minhashes, places[:1], places[1:])[0])
        self.verdicts.add(sample, _TEXT, of, round(score, 6))

    def _take(self, sample: int, media: Iterable[Sequence[Any]], text_cluster: int | None) -> None:
        for _, _, cluster, equal_to, picture, *_ in media:
            if cluster is not None and self._sample[cluster] < 0:
                self._sample[cluster] = sample
                self._equal_to[cluster] = equal_to
                self._picture[cluster] = picture or 0
        if text_cluster is not None and self._text_sample[text_cluster] < 0:
            self._text_sample[text_cluster] = sample
