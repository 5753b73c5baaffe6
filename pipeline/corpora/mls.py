"""Multilingual LibriSpeech: read sentences from audio books, in eight languages.

Source: Pratap et al. 2020, arXiv:2012.03411; layout as in the lhotse recipe.
Reads: ``mls_<language>[_opus]/<split>/transcripts.txt`` and the flac or opus files it names.
Yields: one sample per line, with the slots ``speech`` and ``transcript``. Inputs are the lines of ``transcripts.txt``: a
sound without a transcript is none. ``segments.txt`` tells where in a book a sentence was cut; the cutting is done, so
it is not read. A sample's id is its line; its utterance is the ``member`` of its provenance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, check_line, count_lines, read_lines
from pipeline.reading.listing import list_sources
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
from pipeline.reading.text import clean_text, decode_utf8
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import CorpusError, SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "mls"
_UTTERANCE = re.compile(r"([0-9]+)_([0-9]+)_[0-9]+")
_EXTENSIONS = ("flac", "opus")


class Options(CorpusOptions):
    """Which languages are read."""

    languages: tuple[str, ...] = ()
    """E.g. ``["english", "spanish"]``; all that are there if empty."""


def sources(root: Path, options: Options) -> list[Source]:
    """The transcripts of the split, one file a language."""
    paths = find_files(root, [f"mls_*/{options.split}/transcripts.txt"], corpus=CORPUS)
    chosen = [path for path in paths if not options.languages or _language(path) in options.languages]
    if not chosen:
        raise CorpusError(
            f"{root}: expected the languages {', '.join(options.languages)}, found "
            f"{', '.join(map(_language, paths))}; correct options.languages"
        )
    return list_sources(chosen, count_lines)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Lines ``[start, stop)`` of a transcript file."""
    prefix = f"{CORPUS}/{_language(source.path)}/{options.split}"
    return read_lines(root, source, options, _sample, corpus=CORPUS, prefix=prefix, start=start, stop=stop)


def _sample(root: Path, path: Path, line: Line, options: Options, sample_id: str) -> RawSample:
    utterance, tab, text = decode_utf8(check_line(line), what=f"line {line.number}").partition("\t")
    if not tab:
        raise SampleError("record_malformed", f"line {line.number}: expected ID TAB TEXT, found no tab")
    match = _UTTERANCE.fullmatch(utterance)
    if match is None:
        raise SampleError("id_malformed", f"line {line.number}: expected SPEAKER_BOOK_NUMBER, found {utterance!r}")
    transcript = clean_text(text, what="transcript")
    folder = path.parent / "audio" / match[1] / match[2]
    names = [f"{utterance}.{extension}" for extension in _EXTENSIONS]
    name = next((name for name in names if (folder / name).exists()), names[0])
    return RawSample(
        sample_id,
        CORPUS,
        options.split,
        (RawMedia("speech", Modality.SPEECH, read_media(folder, name, root=root)), RawText("transcript", transcript)),
        Provenance(relative_name(path, root), utterance, line.offset),
    )


def _language(path: Path) -> str:
    return path.parent.parent.name.removeprefix("mls_").removesuffix("_opus")
