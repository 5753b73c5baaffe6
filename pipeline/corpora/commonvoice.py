"""Common Voice: sentences read aloud by volunteers.

Source: Ardila et al. 2020, arXiv:1912.06670; layout of releases 6 to 11, as in the lhotse recipe.
Reads: ``<locale>/<split>.tsv`` and the mp3 files in ``clips`` beside it.
Yields: one sample per row, with the slots ``speech`` and ``transcript``. A clip that no row names is no input. A sample's id
is its row; its clip is the ``member`` of its provenance.

A row is one line. A field in quotes is unquoted, with doubled quotes made single; a quote that nothing closes is a
character like any other (a CSV reader would swallow the rows after it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, check_line, iter_lines
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt, numbers
from pipeline.reading.text import clean_text, decode_utf8
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import CorpusError, SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "commonvoice"
_NEEDED = ("path", "sentence")


class Options(CorpusOptions):
    """Which locales are read, and how a sentence is written."""

    locales: tuple[str, ...] = ()
    """E.g. ``["en"]``; all that are there if empty."""
    lower_case: bool = False
    """AnyGPT's published rows are in lower case without punctuation; we keep the sentence as it was shown."""


def sources(root: Path, options: Options) -> list[Source]:
    """The tables of the split, one file a locale. A table whose header is wrong is one input, which is rejected."""
    paths = find_files(root, [f"{options.split}.tsv"], corpus=CORPUS)
    chosen = [path for path in paths if not options.locales or path.parent.name in options.locales]
    if not chosen:
        raise CorpusError(
            f"{root}: expected the locales {', '.join(options.locales)}, found "
            f"{', '.join(path.parent.name for path in paths)}; correct options.locales"
        )
    return [Source(path, sum(1 for _ in _rows(path))) for path in chosen]


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Rows ``[start, stop)`` of a table."""
    name = relative_name(source.path, root)
    for line, header in islice(_rows(source.path), start, stop):
        sample_id = f"{CORPUS}/{source.path.parent.name}/{options.split}/{line.number}"
        yield attempt(
            lambda line=line, header=header, sample_id=sample_id: _sample(
                root, source.path, line, header, options, sample_id
            ),
            sample_id=sample_id,
            corpus=CORPUS,
            provenance=Provenance(name, offset=line.offset),
        )


def _rows(path: Path) -> Iterator[tuple[Line, Sequence[str]]]:
    """Rows with the names of their columns; the header itself, without names, if it is no header."""
    lines = iter_lines(path)
    first = next(lines, None)
    if first is None:
        return
    columns = first.data.decode("utf-8", errors="replace").split("\t")
    if first.problem or not set(_NEEDED) <= set(columns):
        yield first, ()
        return
    for line in lines:
        yield line, columns


def _sample(root: Path, path: Path, line: Line, columns: Sequence[str], options: Options, sample_id: str) -> RawSample:
    text = decode_utf8(check_line(line), what=f"line {line.number}")
    if not columns:
        raise SampleError("header_malformed", f"expected a header with {' and '.join(_NEEDED)}, found {text[:80]!r}")
    fields = text.split("\t")
    if len(fields) != len(columns):
        raise SampleError(
            "record_malformed", f"line {line.number}: expected {len(columns)} columns, found {len(fields)}"
        )
    row = dict(zip(columns, map(_unquote, fields), strict=True))
    sentence = clean_text(row["sentence"], what="sentence")
    clip = read_media(path.parent / "clips", row["path"], root=root)
    return RawSample(
        sample_id,
        CORPUS,
        options.split,
        (
            RawMedia("speech", Modality.SPEECH, clip),
            RawText("transcript", sentence.lower() if options.lower_case else sentence),
        ),
        Provenance(relative_name(path, root), row["path"], line.offset),
        numbers(row, ("up_votes", "down_votes")),
    )


def _unquote(field: str) -> str:
    quoted = len(field) >= 2 and field.startswith('"') and field.endswith('"')
    return field[1:-1].replace('""', '"') if quoted else field
