"""MusicCaps: ten-second clips with captions by musicians.

Source: Agostinelli et al. 2023 (MusicLM), arXiv:2301.11325; fields of the google/MusicCaps card.
Reads: ``musiccaps-public.csv`` and ``wav/[<ytid>]-[<start>-<end>].<extension>``, as common downloaders name the clips.
Yields: one sample per row, with the slots ``music`` and ``caption``. ``aspect_list`` is not read.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt, number
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "musiccaps"
TABLE = "musiccaps-public.csv"
_YTID = re.compile(r"[A-Za-z0-9_-]+")
_NEEDED = ("ytid", "start_s", "end_s", "caption")


class Options(CorpusOptions):
    """Where the clips are."""

    clips: str = "wav"
    """Folder beside the table."""
    extensions: tuple[str, ...] = ("wav", "flac", "mp3", "opus", "ogg")


def sources(root: Path, options: Options) -> list[Source]:
    """The table; one whose header is wrong is one input, which is rejected."""
    return [Source(path, len(_rows(path))) for path in find_files(root, [TABLE], corpus=CORPUS)]


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Rows ``[start, stop)`` of the table."""
    name = relative_name(source.path, root)
    for index, row in islice(enumerate(_rows(source.path), start=1), start, stop):
        sample_id = f"{CORPUS}/{index}"
        yield attempt(
            lambda row=row, index=index, sample_id=sample_id: _sample(
                root, source.path, row, index, options, sample_id
            ),
            sample_id=sample_id,
            corpus=CORPUS,
            provenance=Provenance(name, offset=index),
        )


def _rows(path: Path) -> list[dict[str, str] | str]:
    """Rows by column; of what is no row, the reason."""
    if not path.stat().st_size:
        return ["file_empty"]
    # Bytes that are no UTF-8 survive as lone surrogates, which the text check of the one field refuses.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if not set(_NEEDED) <= set(header):
            return ["header_malformed"]
        rows: list[dict[str, str] | str] = []
        try:
            for fields in reader:
                if fields:
                    whole = len(fields) == len(header)
                    rows.append(dict(zip(header, fields, strict=True)) if whole else "record_malformed")
        except csv.Error:
            rows.append("file_truncated")
        return rows


def _sample(
    root: Path, path: Path, row: dict[str, str] | str, index: int, options: Options, sample_id: str
) -> RawSample:
    if isinstance(row, str):
        raise SampleError(row, f"row {index}: expected the columns of {TABLE}, found it damaged")
    caption = clean_text(row["caption"], what="caption")
    if not _YTID.fullmatch(row["ytid"]):
        raise SampleError("id_malformed", f"row {index}: expected a ytid, found {row['ytid']!r}")
    begin_s, end_s = number(row["start_s"]), number(row["end_s"])
    if begin_s is None or end_s is None or not 0 <= begin_s < end_s:
        raise SampleError(
            "segment_times_invalid",
            f"row {index}: expected 0 <= start < end, found {row['start_s']!r}, {row['end_s']!r}",
        )
    clip = f"[{row['ytid']}]-[{row['start_s']}-{row['end_s']}]"
    folder = path.parent / options.clips
    names = [f"{clip}.{extension}" for extension in options.extensions]
    name = next((name for name in names if (folder / name).exists()), names[0])
    return RawSample(
        sample_id,
        CORPUS,
        options.split,
        (RawMedia("music", Modality.MUSIC, read_media(folder, name, root=root)), RawText("caption", caption)),
        Provenance(relative_name(path, root), name, index, url=f"https://www.youtube.com/watch?v={row['ytid']}"),
    )
