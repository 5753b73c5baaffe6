"""Speech with transcripts in Parquet folders of the Hugging Face hub: MLS, GigaSpeech, Common Voice and their like.

Source: column names as published by facebook/multilingual_librispeech (``audio, original_path, transcript, speaker_id,
id``), speechcolab/gigaspeech (``segment_id, audio, text, begin_time``) and Mozilla's Common Voice (``client_id, path,
audio, sentence``).
Reads: ``<split>-*.parquet`` (or ``options.files``); see :mod:`pipeline.reading.hf_parquet`.
Yields: one sample per row, with the slots ``speech`` and ``transcript``. Segments of GigaSpeech are cut already, so
their times are not read.

Tables of GigaSpeech are told by their ``segment_id``: their text is written as in :mod:`pipeline.corpora.gigaspeech`, and
segments that are one garbage tag are filtered as ``garbage_tag``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.corpora.gigaspeech import GARBAGE_TAGS, write_text
from pipeline.reading.columns import ID, MEDIA, TEXT, Columns, quality_of
from pipeline.reading.hf_parquet import ParquetOptions, list_tables, media_of, read_table
from pipeline.reading.outcomes import Outcome
from pipeline.reading.parquet_rows import Row
from pipeline.reading.text import clean_text
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Source
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "hf_speech"
_SEGMENT = "segment"


class Options(ParquetOptions):
    """Which columns are read, by the first name that a table has, and how a transcript is written."""

    audio: tuple[str, ...] = ("audio",)
    text: tuple[str, ...] = ("transcript", "text", "sentence")
    id: tuple[str, ...] = ("id", "segment_id", "path")
    """What the corpus itself calls a row; becomes the ``member`` of its provenance."""
    quality: tuple[str, ...] = ("up_votes", "down_votes")
    """Columns of numbers that filters read."""
    style: Literal["auto", "plain", "gigaspeech"] = "auto"
    """How tags such as ``<COMMA>`` are read; ``auto``: as GigaSpeech's where there is a column ``segment_id``."""
    lower_case: bool | None = None
    """Of the transcript; as the corpus has it if not given, but GigaSpeech's upper case becomes lower case."""


def sources(root: Path, options: Options) -> list[Source]:
    """Every Parquet file of the split, in the order of the names."""
    return list_tables(root, options, _columns(options), corpus=CORPUS)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Rows ``[start, stop)`` of a file."""
    return read_table(root, source, options, _columns(options), _sample, corpus=CORPUS, start=start, stop=stop)


def _columns(options: Options) -> Columns:
    roles = {MEDIA: options.audio, TEXT: options.text, ID: options.id, _SEGMENT: ("segment_id",)}
    return Columns(roles, options.quality)


def _sample(
    root: Path, path: Path, row: Row, options: Options, columns: Columns, sample_id: str, provenance: Provenance
) -> RawSample | Filtered:
    corpus = options.label or CORPUS
    transcript = clean_text(row.values[TEXT], what="transcript")
    tagged = options.style == "gigaspeech" or (options.style == "auto" and _SEGMENT in row.values)
    if tagged and transcript in GARBAGE_TAGS:
        return Filtered(sample_id, corpus, "garbage_tag", f"{transcript} stands in place of words", provenance)
    if tagged:
        transcript = clean_text(write_text(transcript, lower_case=options.lower_case is not False), what="transcript")
    elif options.lower_case:
        transcript = transcript.lower()
    speech = RawMedia("speech", Modality.SPEECH, media_of(row.values[MEDIA], folder=path.parent, root=root))
    segments = (speech, RawText("transcript", transcript))
    return RawSample(sample_id, corpus, options.split, segments, provenance, quality_of(row.values, columns))
