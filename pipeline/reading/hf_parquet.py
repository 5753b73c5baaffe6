"""Parquet folders as the Hugging Face hub has them: media and text in the columns of one table.

Source: the ``datasets`` library, features ``Audio`` and ``Image``: a struct of ``bytes`` (the file as it was) and ``path``
(its name). Where ``bytes`` is null, ``path`` names a file beside the table. Plain binary columns (img2dataset's Parquet
output) and plain names of files are taken as well. Shared by the readers of speech and of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from pipeline.reading.columns import ID, MEDIA, Columns, text_of
from pipeline.reading.files import MAX_MEDIA_BYTES, find_files, read_media, relative_name
from pipeline.reading.listing import list_sources
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt
from pipeline.reading.parquet_rows import Row, count_rows, iter_rows
from pipeline.samples import Filtered, RawSample, Source
from shards.errors import SampleError
from shards.records import Provenance


class ParquetOptions(CorpusOptions):
    """Which files are read, and whose they are."""

    files: tuple[str, ...] = ("{split}-*.parquet", "{split}/*.parquet", "{split}.parquet")
    """Patterns below the root; ``{split}`` is the config's split. E.g. ``["english/{split}-*.parquet"]``."""
    label: str = Field(default="", pattern="^[a-z0-9_]*$")
    """The published corpus, e.g. ``mls``: samples are recorded under it, and templates go by it. The reader if empty."""


OptionsT = TypeVar("OptionsT", bound=ParquetOptions)
Build = Callable[[Path, Path, Row, OptionsT, Columns, str, Provenance], RawSample | Filtered]
"""From the root, the file, a row without a problem, the options, the columns, the id of its sample and where it stands to
the sample."""


def list_tables(root: Path, options: ParquetOptions, columns: Columns, *, corpus: str) -> list[Source]:
    """Every Parquet file of the split, in the order of the names; one that cannot be read is one input."""
    patterns = [pattern.replace("{split}", options.split) for pattern in options.files]
    return list_sources(find_files(root, patterns, corpus=corpus), partial(count_rows, columns=columns))


def read_table(
    root: Path,
    source: Source,
    options: OptionsT,
    columns: Columns,
    build: Build[OptionsT],
    *,
    corpus: str,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Outcome]:
    """One outcome for each of the rows ``[start, stop)``; a sample's id is its row.

    Args:
        corpus: the reader; the label of the samples where ``options`` give none.
    """
    corpus = options.label or corpus
    name = relative_name(source.path, root)
    for row in iter_rows(source.path, columns=columns, start=start, stop=stop):
        sample_id = f"{corpus}/{name.removesuffix('.parquet')}/{row.number}"
        provenance = Provenance(name, _member(row), row.number)
        yield attempt(
            lambda row=row, sample_id=sample_id, provenance=provenance: build(
                root, source.path, _whole(row), options, columns, sample_id, provenance
            ),
            sample_id=sample_id,
            corpus=corpus,
            provenance=provenance,
        )


def media_of(value: Any, *, folder: Path, root: Path, max_bytes: int = MAX_MEDIA_BYTES) -> bytes:
    """The encoded bytes of a medium in a table.

    Args:
        value: a struct of ``bytes`` and ``path``, plain bytes, or the name of a file in ``folder``.

    Raises:
        SampleError: ``media_missing``, ``media_empty``, ``media_too_large``, ``record_malformed`` (e.g. a decoded array),
            ``path_outside_corpus``.
    """
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(value, str):
        data, name = None, value
    if isinstance(data, bytes):
        if not data:
            raise SampleError("media_empty", "expected a medium, found no bytes")
        if len(data) > max_bytes:
            raise SampleError("media_too_large", f"expected at most {max_bytes} bytes, found {len(data)}")
        return data
    if data is not None or (isinstance(value, dict) and not {"bytes", "path"} & set(value)):
        found = f"{type(data).__name__}" if data is not None else f"a struct of {', '.join(value)}"
        raise SampleError(
            "record_malformed", f"expected encoded bytes or the name of a file, found {found}; save it undecoded"
        )
    if name is None or name == "":
        raise SampleError("media_missing", "expected bytes or the name of a file, found neither")
    return read_media(folder, name, root=root, max_bytes=max_bytes)


def _whole(row: Row) -> Row:
    if row.problem is not None:
        raise row.problem
    return row


def _member(row: Row) -> str:
    """What the corpus itself calls the row: its id, or else the name of its medium."""
    media = row.values.get(MEDIA)
    return text_of(row.values, ID) or (text_of(media, "path") if isinstance(media, dict) else "")
