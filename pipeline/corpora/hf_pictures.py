"""Pictures with captions in Parquet folders: image-text sets of the Hugging Face hub, and img2dataset's Parquet output.

Source: the ``Image`` feature of the ``datasets`` library; LAION's own column names (``URL, TEXT``); rom1504/img2dataset,
``output_format="parquet"`` (``url, caption, jpg``).
Reads: ``<split>-*.parquet`` (or ``options.files``); see :mod:`pipeline.reading.hf_parquet`.
Yields: one sample per row, with the slots ``image`` and ``caption``. Where a column holds a list of captions, they are
alternatives, of which a template draws one.

img2dataset writes a row for a picture that it could not download, without a picture: a reject, ``media_missing``. (Its tar
shards have no members for these, so there they are no inputs.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.reading.columns import ID, LICENCE, MEDIA, TEXT, URL, Columns, quality_of, text_of
from pipeline.reading.hf_parquet import ParquetOptions, list_tables, media_of, read_table
from pipeline.reading.img2dataset import QUALITY
from pipeline.reading.outcomes import Outcome
from pipeline.reading.parquet_rows import Row
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "hf_pictures"


class Options(ParquetOptions):
    """Which columns are read, by the first name that a table has."""

    image: tuple[str, ...] = ("image", "jpg", "jpeg", "png", "webp")
    text: tuple[str, ...] = ("caption", "TEXT", "text", "captions")
    id: tuple[str, ...] = ("key", "id", "image_id", "file_name")
    """What the corpus itself calls a row; becomes the ``member`` of its provenance."""
    url: tuple[str, ...] = ("url", "URL")
    licence: tuple[str, ...] = ("license", "licence", "LICENSE")
    quality: tuple[str, ...] = QUALITY
    """Columns of numbers that filters read; upper case is the same to them."""


def sources(root: Path, options: Options) -> list[Source]:
    """Every Parquet file of the split, in the order of the names."""
    return list_tables(root, options, _columns(options), corpus=CORPUS)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Rows ``[start, stop)`` of a file."""
    return read_table(root, source, options, _columns(options), _sample, corpus=CORPUS, start=start, stop=stop)


def _columns(options: Options) -> Columns:
    roles = {MEDIA: options.image, TEXT: options.text, ID: options.id, URL: options.url, LICENCE: options.licence}
    return Columns(roles, options.quality)


def _sample(
    root: Path, path: Path, row: Row, options: Options, columns: Columns, sample_id: str, where: Provenance
) -> RawSample:
    captions = _captions(row.values[TEXT])
    picture = RawMedia("image", Modality.IMAGE, media_of(row.values[MEDIA], folder=path.parent, root=root))
    url, licence = text_of(row.values, URL), text_of(row.values, LICENCE)
    provenance = Provenance(where.source_file, where.member, where.offset, url=url, licence=licence)
    segments = (picture, *(RawText("caption", caption) for caption in captions))
    corpus = options.label or CORPUS
    return RawSample(sample_id, corpus, options.split, segments, provenance, quality_of(row.values, columns))


def _captions(value: Any) -> list[str]:
    if isinstance(value, list) and not value:
        raise SampleError("text_missing", "caption: expected a text, found an empty list")
    return [clean_text(text, what="caption") for text in (value if isinstance(value, list) else [value])]
