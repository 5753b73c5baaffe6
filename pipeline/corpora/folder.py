"""A plain folder of files, and a table beside them that says what each one is: csv, tsv or jsonl.

Source: nobody's in particular; what people make for themselves. The table's default name and its column ``file_name`` are
those of the ``datasets`` library's ImageFolder and AudioFolder.
Reads: ``<split>/metadata.csv``, ``<split>.csv`` or ``metadata.csv`` (or ``.tsv``, ``.jsonl``; or ``options.tables``), and
the files that it names, relative to its own folder.
Yields: one sample per row: ``image`` and ``caption``, ``speech`` and ``transcript``, or ``music`` and ``caption``. A file
that no row names is no input. A sample's id is its row.

Pictures and sounds are told apart by the name's ending. Sounds are speech unless ``options.kind = "music"``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.reading.columns import ID, LICENCE, MEDIA, TEXT, URL, Columns, quality_of, text_of
from pipeline.reading.files import find_files, is_inside, read_media, relative_name
from pipeline.reading.img2dataset import QUALITY
from pipeline.reading.listing import list_sources
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt
from pipeline.reading.tables import TABLE_ENDINGS, Header, TableRow, count_table, iter_table, row_values
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import ConfigError, CorpusError, SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "folder"
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
SOUNDS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
# Folders that say what a table in them is for.
_SPLITS = frozenset({"train", "validation", "valid", "val", "dev", "test", "eval"})
# Slots of a medium and of its text.
_SLOTS = {
    Modality.IMAGE: ("image", "caption"),
    Modality.SPEECH: ("speech", "transcript"),
    Modality.MUSIC: ("music", "caption"),
}


class Options(CorpusOptions):
    """Where the table is, which of its columns are read (by the first name that it has), and what the files are."""

    tables: tuple[str, ...] = ()
    """Patterns below the root; ``{split}`` is the config's split. If empty: those of the split, else ``metadata.*``."""
    media: str = ""
    """Folder that file names are relative to, itself relative to the table's; e.g. ``../clips``."""
    kind: Literal["auto", "image", "speech", "music"] = "auto"
    file: tuple[str, ...] = ("file_name", "file", "path", "image", "audio")
    text: tuple[str, ...] = ("text", "caption", "transcript", "transcription", "sentence")
    id: tuple[str, ...] = ("id", "key")
    url: tuple[str, ...] = ("url",)
    licence: tuple[str, ...] = ("license", "licence")
    quality: tuple[str, ...] = QUALITY
    """Columns of numbers that filters read."""
    label: str = Field(default="", pattern="^[a-z0-9_]*$")
    """The corpus that samples are recorded under, and that templates go by; ``folder`` if empty."""


def sources(root: Path, options: Options) -> list[Source]:
    """Every table of the split, in the order of the names; one whose header is wrong is one input."""
    return list_sources(_tables(root, options), partial(count_table, columns=_columns(options)))


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Rows ``[start, stop)`` of a table."""
    columns = _columns(options)
    corpus, name = options.label or CORPUS, relative_name(source.path, root)
    media = _media_folder(root, name, options)
    for row, header in islice(iter_table(source.path, columns=columns), start, stop):
        sample_id = f"{corpus}/{name}/{row.line.number}"
        yield attempt(
            lambda row=row, header=header, sample_id=sample_id: _sample(
                root, name, media, row, header, options, sample_id
            ),
            sample_id=sample_id,
            corpus=corpus,
            provenance=Provenance(name, offset=row.line.offset),
        )


def _tables(root: Path, options: Options) -> list[Path]:
    if options.tables:
        return find_files(
            root, [pattern.replace("{split}", options.split) for pattern in options.tables], corpus=CORPUS
        )
    endings = [*TABLE_ENDINGS, *(f"{ending}.gz" for ending in TABLE_ENDINGS)]
    of_split = [f"{options.split}{middle}{ending}" for middle in ("", "/metadata") for ending in endings]
    try:
        return find_files(root, of_split, corpus=CORPUS)
    except CorpusError:
        # A table that belongs to no split is about all there is.
        names = [f"metadata{ending}" for ending in endings]
        found = find_files(root, names, corpus=CORPUS)
        tables = [path for path in found if not _SPLITS.intersection(path.relative_to(root).parts[:-1])]
        if not tables:
            raise CorpusError(
                f"{root}: expected a table of the split {options.split}, found none; there is "
                f"{relative_name(found[0], root)}; set split or options.tables"
            ) from None
        return tables


def _media_folder(root: Path, table: str, options: Options) -> Path:
    # Worked out by name, because an object store takes ``..`` for a folder of that name.
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(table), options.media))
    if not is_inside(folder):
        raise ConfigError(
            f"options.media = {options.media!r}: expected a folder inside the corpus, relative to {table}, found one "
            "outside; set root to a folder that holds both"
        )
    return root if folder == "." else root / folder


def _columns(options: Options) -> Columns:
    roles = {MEDIA: options.file, TEXT: options.text, ID: options.id, URL: options.url, LICENCE: options.licence}
    return Columns(roles, options.quality)


def _sample(
    root: Path,
    name: str,
    media: Path,
    row: TableRow,
    header: Header | SampleError,
    options: Options,
    sample_id: str,
) -> RawSample:
    columns = _columns(options)
    values = row_values(row, header, columns=columns)
    file = values.get(MEDIA)
    text = clean_text(values.get(TEXT), what="text")
    data = read_media(media, file, root=root)
    modality = _modality(str(file), options)
    medium, words = _SLOTS[modality]
    return RawSample(
        sample_id,
        options.label or CORPUS,
        options.split,
        (RawMedia(medium, modality, data), RawText(words, text)),
        Provenance(
            name,
            text_of(values, ID) or str(file),
            row.line.offset,
            url=text_of(values, URL),
            licence=text_of(values, LICENCE),
        ),
        quality_of(values, columns),
    )


def _modality(file: str, options: Options) -> Modality:
    if options.kind != "auto":
        return Modality(options.kind)
    ending = file.rpartition(".")[2].lower()
    if ending in PICTURES:
        return Modality.IMAGE
    if ending in SOUNDS:
        return Modality.SPEECH
    raise SampleError(
        "media_kind_unknown", f"expected a name that ends like a picture or a sound, found {file!r}; set options.kind"
    )
