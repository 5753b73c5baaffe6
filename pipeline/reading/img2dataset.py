"""Captioned pictures as img2dataset writes them: WebDataset shards ``NNNNN.tar`` of ``KEY.jpg KEY.txt KEY.json``.

Source: rom1504/img2dataset (README, writer). Shared by the LAION corpora, which differ in columns only.

A shard's parquet lists the rows that failed to download too; these have no members and are no inputs. Everything a
sample needs stands in its members, so neither the parquet file nor the ``_stats.json`` is read, and a broken one costs
nothing.

The caption of a sample is its ``.txt``; where that is missing or no UTF-8, the ``caption`` of its ``.json``. Where the
``.json`` is missing or broken, the sample has no quality fields. img2dataset writes a null caption as the word ``None``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tarfile import TarFile
from typing import Any

from pipeline.reading.files import find_files, relative_name
from pipeline.reading.listing import list_sources
from pipeline.reading.outcomes import Outcome, attempt, numbers
from pipeline.reading.shard_index import ShardEntry, count_entries, open_shard, read_member
from pipeline.reading.text import decode_utf8
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
QUALITY = ("similarity", "punsafe", "pwatermark", "aesthetic", "width", "height", "original_width", "original_height")

Captions = Callable[[str | None, Mapping[str, Any]], list[str]]
"""From the alt text (None if there is none) and the json fields (empty if there are none) to the captions of a sample."""


def list_shards(root: Path, corpus: str) -> list[Source]:
    """Every ``*.tar`` below ``root``, with the samples that its headers tell of."""
    return list_sources(find_files(root, ["*.tar"], corpus=corpus), count_entries)


def read_shard(
    root: Path, source: Source, captions: Captions, *, corpus: str, split: str, start: int = 0, stop: int | None = None
) -> Iterator[Outcome]:
    """Samples with the slots ``image`` and ``caption``, in the order of their first members."""
    shard = relative_name(source.path, root)
    with open_shard(source.path) as (archive, entries):
        for number, entry in islice(enumerate(entries), start, stop):
            sample_id = f"{corpus}/{shard.removesuffix('.tar')}/{entry.key or f'item-{number}'}"
            provenance = Provenance(shard, entry.key, entry.offset)
            yield attempt(
                lambda entry=entry, sample_id=sample_id: _sample(
                    archive, entry, captions, corpus, split, sample_id, shard
                ),
                sample_id=sample_id,
                corpus=corpus,
                provenance=provenance,
            )


def _sample(
    archive: TarFile | None, entry: ShardEntry, captions: Captions, corpus: str, split: str, sample_id: str, shard: str
) -> RawSample:
    if entry.problem or archive is None:
        raise SampleError(entry.problem, f"{shard}: {entry.key or 'the shard'} cannot be read as a sample")
    extension = next((name for name in PICTURE_EXTENSIONS if name in entry.members), None)
    if extension is None:
        raise SampleError(
            "media_missing", f"expected a picture ({', '.join(PICTURE_EXTENSIONS)}), found {sorted(entry.members)}"
        )
    picture = read_member(archive, entry.members[extension])
    if not picture:
        raise SampleError("media_empty", f"expected a picture in {entry.members[extension].name}, found no bytes")
    fields = _fields(archive, entry)
    texts = captions(_alt_text(archive, entry, fields), fields)
    url = fields.get("url")
    member = entry.members[extension]
    return RawSample(
        sample_id,
        corpus,
        split,
        (RawMedia("image", Modality.IMAGE, picture), *(RawText("caption", text) for text in texts)),
        Provenance(shard, member.name, member.offset_data, url=url if isinstance(url, str) else ""),
        numbers(fields, QUALITY),
    )


def _fields(archive: TarFile, entry: ShardEntry) -> dict[str, Any]:
    if "json" not in entry.members:
        return {}
    try:
        fields = json.loads(read_member(archive, entry.members["json"]))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _alt_text(archive: TarFile, entry: ShardEntry, fields: Mapping[str, Any]) -> str | None:
    caption = fields.get("caption")
    if "txt" not in entry.members:
        return caption
    try:
        text = decode_utf8(read_member(archive, entry.members["txt"]), what="caption")
    except SampleError as error:
        if error.reason == "text_not_utf8" and caption is not None:
            return caption
        raise
    if text == "None" and "caption" in fields and caption is None:
        return None
    return text
