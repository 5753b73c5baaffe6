"""One packed shard and its sidecar: bytes, ids, the law of Table 1, documents, loss spans, sums.

The bytes come first: a shard whose sha256 is wrong is not looked at further, its block checksums name the rows. Of a shard
with the right bytes every id is looked at, some hundred thousand at a time so that they stay in the cache, and only rows
that the look of :class:`shards.rates.RowLaw` doubts are gone through one by one. A shard is mapped, so a worker holds its
sidecar and little else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.faults import Fault, ShardFindings
from shards.manifest import Manifest, PackedEntry, ShardEntry
from shards.open_shard import OpenShard, open_shard, rest_is_whole
from shards.packed import count_tokens
from shards.rates import RowLaw, media_fault
from shards.reader import PackedDataset, damaged_rows
from shards.verify_files import NOT_AS_WRITTEN, UNREADABLE, size_fault, without_path
from shards.verify_sidecar import look_at_sidecar
from shards.vocabulary import Vocabulary
from shards.writer import file_sha256

LOOK_IDS = 1 << 17
"""Ids looked at in one go: with all that is made of them they fit the second cache."""
Mask = npt.NDArray[np.bool_]


def look_at_packed(folder: Path, manifest: Manifest, entry: ShardEntry) -> ShardFindings:
    """Everything that can be said of one shard.

    Args:
        manifest: of the dataset; its own list of shards is not read.
    """
    path = folder / entry.path
    if fault := size_fault(path, entry):
        return ShardFindings(faults=(Fault(entry.path, fault),))
    if file_sha256(path) != entry.sha256:
        return ShardFindings(faults=(_damage(path, entry),))
    try:
        # The bytes are checked; this checks that they are of this dataset, and what readers will compare them with.
        lazily = isinstance(entry, PackedEntry) and entry.rest_crc32 is not None
        shard = PackedDataset(folder, replace(manifest, shards=(entry,)), verify="lazy" if lazily else "off").shard(0)
        found = _look_inside(shard, entry, manifest)
        origins, faults = look_at_sidecar(shard, entry, manifest)
        return replace(found, tokens_by_origin=origins, faults=(*found.faults, *faults))
    except UNREADABLE as error:
        return ShardFindings(faults=(Fault(entry.path, f"cannot be read: {without_path(error, path)}"),))


def _damage(path: Path, entry: ShardEntry) -> Fault:
    """Where the bytes are wrong, as far as block checksums tell."""
    rest_crc32 = entry.rest_crc32 if isinstance(entry, PackedEntry) else None
    try:
        blocks = damaged_rows(open_shard(path))
        if blocks and rest_crc32 is not None and not rest_is_whole(path, rest_crc32):
            return Fault(entry.path, f"{NOT_AS_WRITTEN} (its metadata is damaged, and so is what tells whole rows)")
    except UNREADABLE as error:
        return Fault(entry.path, f"{NOT_AS_WRITTEN} (its structure is unreadable: {without_path(error, path)})")
    if not blocks:
        return Fault(
            entry.path, f"{NOT_AS_WRITTEN} (the ids are whole; its metadata, document starts or loss spans are damaged)"
        )
    return Fault(entry.path, NOT_AS_WRITTEN, tuple(row for block in blocks for row in block))


def _look_inside(shard: OpenShard, entry: ShardEntry, manifest: Manifest) -> ShardFindings:
    vocabulary = manifest.vocabulary
    assert vocabulary is not None
    faults = list(_structure_faults(shard, entry.path, vocabulary))
    if faults:
        return ShardFindings(len(shard.token_ids), len(shard.starts), faults=tuple(faults))
    if blocks := damaged_rows(shard):
        rows = tuple(row for block in blocks for row in block)
        faults.append(Fault(entry.path, "its block checksums are not those of its rows; pack it again", rows))
    doubtful, tokens = _look_at_ids(shard, vocabulary)
    doubtful |= _ascending_faults(shard.starts, shard.start_offsets, shard.num_tokens - 1)
    doubtful |= _not_from_zero(shard)
    doubtful |= _ascending_faults(shard.spans.reshape(-1), 2 * shard.span_offsets, shard.num_tokens)
    rows = np.flatnonzero(doubtful)
    outside = rows[(shard.token_ids[rows] >= vocabulary.size).any(axis=1)]
    if outside.size:
        faults.append(Fault(entry.path, f"ids outside [0, {vocabulary.size})", tuple(outside.tolist())))
        return ShardFindings(len(shard.token_ids), len(shard.starts), faults=tuple(faults))
    if rows.size:
        # What follows num_tokens may be anything in a doubtful row.
        tokens = count_tokens(shard.token_ids, shard.num_tokens, vocabulary)
    if tokens != dict(entry.tokens):
        faults.append(Fault(entry.path, f"the manifest says {dict(entry.tokens)} tokens, the rows hold {tokens}"))
    faults += _by_row(entry.path, ((row, _row_fault(shard, row, vocabulary)) for row in rows.tolist()))
    return ShardFindings(len(shard.token_ids), len(shard.starts), tokens, complete=True, faults=tuple(faults))


def _structure_faults(shard: OpenShard, path: str, vocabulary: Vocabulary) -> Iterator[Fault]:
    """What would make the look at the rows itself go wrong."""
    ids, used = shard.token_ids, shard.num_tokens
    if ids.dtype != vocabulary.dtype:
        yield Fault(path, f"ids are stored as {ids.dtype}, those of this vocabulary are {vocabulary.dtype}")
    wrong = np.flatnonzero((used < 1) | (used > ids.shape[1]))
    if wrong.size:
        yield Fault(path, f"num_tokens outside [1, {ids.shape[1]}]", tuple(wrong.tolist()))
    lists = {
        "document_starts": (shard.start_offsets, len(shard.starts)),
        "loss_spans": (shard.span_offsets, len(shard.spans)),
    }
    for name, (offsets, size) in lists.items():
        if len(offsets) and (offsets[0] < 0 or offsets[-1] > size or (np.diff(offsets) < 0).any()):
            yield Fault(path, f"the list offsets of {name} are not ascending within its values")


def _look_at_ids(shard: OpenShard, vocabulary: Vocabulary) -> tuple[Mask, dict[str, int]]:
    """Rows that might break the law or whose padding is not padding, and the ids by modality if there are none."""
    ids, used = shard.token_ids, shard.num_tokens
    law = RowLaw(vocabulary)
    blocks = sorted(vocabulary.blocks.values(), key=lambda block: block.first_id)
    counts = dict.fromkeys([block.name for block in blocks], 0)
    doubtful = np.zeros(len(ids), np.bool_)
    step = max(1, LOOK_IDS // max(1, ids.shape[1]))
    for first in range(0, len(ids), step):
        some = ids[first : first + step]
        doubtful[first + law.doubtful_rows(some)] = True
        shortest = int(used[first : first + step].min())
        after = np.arange(shortest, ids.shape[1]) >= used[first : first + step, None]
        doubtful[first : first + step] |= ((some[:, shortest:] != vocabulary.pad_id) & after).any(axis=1)
        for block in blocks:
            # Ids below the block wrap around to large ones: one comparison for both ends.
            inside = some - ids.dtype.type(block.first_id) < ids.dtype.type(block.num_codes + 2)
            counts[block.name] += int(np.count_nonzero(inside))
    total = {"text": int(used.sum(dtype=np.int64)) - sum(counts.values()), **counts}
    return doubtful, {name: count for name, count in total.items() if count}


def _ascending_faults(values: npt.NDArray[Any], offsets: npt.NDArray[Any], highest: npt.NDArray[Any]) -> Mask:
    """(rows,) whose list does not rise strictly from 0 or more to at most ``highest``."""
    counts = np.diff(offsets)
    values = values[offsets[0] : offsets[-1]] if len(offsets) else values
    wrong = np.zeros(len(highest), np.bool_)
    row_of = np.repeat(np.arange(len(highest)), counts)
    wrong[row_of[(values < 0) | (values > np.repeat(highest, counts))]] = True
    falls = (np.diff(values) <= 0) & (row_of[1:] == row_of[:-1])
    wrong[row_of[1:][falls]] = True
    return wrong


def _not_from_zero(shard: OpenShard) -> Mask:
    """(rows,) whose first document does not begin at 0, or that have none."""
    wrong = np.diff(shard.start_offsets) == 0
    wrong[~wrong] = shard.starts[shard.start_offsets[:-1][~wrong]] != 0
    return wrong


def _by_row(path: str, messages: Iterator[tuple[int, str]]) -> Iterator[Fault]:
    """One fault per kind of message, with all its rows."""
    rows: dict[str, list[int]] = {}
    for row, message in messages:
        if message:
            rows.setdefault(message, []).append(row)
    for message, where in rows.items():
        yield Fault(path, message, tuple(where))


def _row_fault(shard: OpenShard, row: int, vocabulary: Vocabulary) -> str:
    used = int(shard.num_tokens[row])
    starts = shard.document_starts(row)
    spans = shard.loss_spans(row).reshape(-1)
    if not starts.size or int(starts[0]) != 0 or (np.diff(starts) <= 0).any() or int(starts[-1]) >= used:
        return "document starts are not ascending from 0 within the row's ids"
    if spans.size and (int(spans[0]) < 0 or (np.diff(spans) <= 0).any() or int(spans[-1]) > used):
        return "loss spans are not ascending, separate and within the row's ids"
    if (shard.token_ids[row, used:] != vocabulary.pad_id).any():
        return "ids after num_tokens are not padding"
    for block in vocabulary.blocks.values():
        fault = media_fault(shard.token_ids[row, :used], block)
        if fault:
            return fault
    return ""
