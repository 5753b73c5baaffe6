"""Datasets for the loader's benchmarks: small ones, one of 300 M rows that is hard links to a single file, realistic rows.

A shard that is linked many times is a real file, written by the real writer; only its ids repeat. What a loader does per
shard (its entry in the manifest, opening, checking, mapping) is what it would be with as many files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.packing import MIXES, lengths_of
from pipeline.documents import Document
from pipeline.packing import Piece, pack_best_fit
from shards.manifest import Manifest, ShardEntry, fingerprint, read_manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, sidecar_path, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out

LENGTH = 4500
SHARES = {"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}
_BUFFER_DOCUMENTS = 10_000
# A row of captions, speech, music and documents has so many, on average of the three mixes.
_DOCUMENTS_PER_ROW = 6
_KINDS = (
    ("image_to_text", "laion"),
    ("speech_to_text", "mls"),
    ("music_to_text", "musiccaps"),
    ("interleaved", "mmc4"),
)


def vocabulary() -> Vocabulary:
    """As many ids as AnyGPT's published weights have."""
    return lay_out("bench", text_size=53_516, markers=[], media=[])


def write_datasets(folder: Path, sizes: Mapping[str, int], *, length: int = LENGTH) -> None:
    """One dataset of one shard for each size, ``folder/name``; row i of dataset d starts with the ids ``d, i``."""
    rng = np.random.default_rng(0)
    for number, (name, num_rows) in enumerate(sizes.items()):
        ids = rng.integers(3, vocabulary().size, (num_rows, length), dtype=np.uint16)
        ids[:, 0], ids[:, 1] = number, np.arange(num_rows)
        entry = write_packed_shard(
            folder / name / "shard-00000.arrow", map(_row, ids), vocabulary=vocabulary(), sequence_length=length
        )
        _finish(folder / name, [entry], length)


def write_linked_dataset(folder: Path, source: Path, num_shards: int) -> None:
    """A dataset of ``num_shards`` names for the one file of the dataset in ``source``."""
    folder.mkdir(parents=True)
    (entry,) = read_manifest(source).shards
    paths = [f"shard-{number:05d}.arrow" for number in range(num_shards)]
    for path in paths:
        os.link(source / entry.path, folder / path)
    _finish(folder, [replace(entry, path=path) for path in paths], LENGTH)


def write_realistic_dataset(folder: Path, mix: str, num_documents: int, *, rows_per_shard: int) -> int:
    """Documents of a mix of ``benchmarks/packing.py``, packed by the real code.

    Returns:
        Ids that are no padding.
    """
    rows = pack_best_fit(
        (Piece(document, 0, len(document.token_ids), dataset) for document, dataset in _documents(mix, num_documents)),
        sequence_length=LENGTH,
        pad_id=vocabulary().pad_id,
        dtype=vocabulary().dtype,
        buffer_pieces=_BUFFER_DOCUMENTS,
    )
    entries: list[ShardEntry] = []
    while chosen := list(islice(rows, rows_per_shard)):
        path = folder / f"shard-{len(entries):05d}.arrow"
        entries.append(write_packed_shard(path, chosen, vocabulary=vocabulary(), sequence_length=LENGTH))
    _finish(folder, entries, LENGTH)
    return sum(sum(entry.tokens.values()) for entry in entries)


def _documents(mix: str, num_documents: int) -> Iterator[tuple[Document, str]]:
    """Documents and the dataset each is from; told whole, each trained on from its second half, a reply, on."""
    rng = np.random.default_rng(2)
    lengths = lengths_of(MIXES[mix])[:num_documents]
    kinds = np.searchsorted([121, 1015, 1061], lengths, side="right")
    for number, (length, kind) in enumerate(zip(lengths.tolist(), kinds.tolist(), strict=True)):
        direction, dataset = _KINDS[kind]
        ids = rng.integers(3, vocabulary().size, length, dtype=np.uint16)
        sample_id = f"{dataset}-{rng.integers(1000):05d}-{number:09d}"
        yield Document(sample_id, 0, direction, ids, ((length // 2, length),)), dataset


def _row(ids: np.ndarray) -> PackedRow:
    length = len(ids)
    starts = tuple(range(0, length, -(-length // _DOCUMENTS_PER_ROW)))
    stops = (*starts[1:], length)
    spans = tuple(((start + stop) // 2, stop) for start, stop in zip(starts, stops, strict=True))
    return PackedRow(ids, length, starts, spans)


def _finish(folder: Path, entries: list[ShardEntry], length: int) -> None:
    identity = fingerprint([[entry.path, entry.sha256] for entry in entries])
    sidecars = {sidecar_path(Path(entry.path)).name: "" for entry in entries}
    extra = {"sequence_length": length, "sidecars": sidecars}
    manifest = Manifest("packed", folder.name, identity, entries, FORMAT_VERSION, vocabulary=vocabulary(), extra=extra)
    write_manifest(folder, manifest)
