"""MMC4-core-ff: web pages as interleaved text and pictures, "fewer faces".

Source: Zhu et al. 2023, arXiv:2304.06939; fields as in allenai/mmc4 (README).
Reads: ``docs_*.jsonl.gz`` (or ``.jsonl``) and the pictures below ``images`` beside them.
Yields: one sample per document: a ``text`` segment per sentence, in order, and each picture as an ``image`` segment right
before the sentence it was matched to (several at one sentence in the order of ``image_info``). That is the paper's own
placement, and what a reader of a page sees: the picture, then the words about it.

A picture that cannot be had (not downloaded, outside the folder, matched to a sentence that is not there) is left out,
counted in the quality field ``pictures_dropped``; the document is rejected when none is left. ``similarity_matrix`` is not
used; ``matched_sim`` may be null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, count_lines, json_record, read_lines
from pipeline.reading.listing import list_sources
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, number
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawSegment, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "mmc4_core_ff"


class Options(CorpusOptions):
    """How strict to be about missing pictures."""

    drop_missing_pictures: bool = True
    """Keep a document with the pictures that are there; if false, one missing picture rejects it."""
    min_matched_sim: float = 0.0
    """Pictures that fit their sentence less than this are left out; those without a number stay."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A picture and the sentence it stands before."""

    sentence: int
    data: bytes
    similarity: float | None


def sources(root: Path, options: Options) -> list[Source]:
    """Every file of documents, in the order of the names."""
    return list_sources(find_files(root, ["docs_*.jsonl.gz", "docs_*.jsonl"], corpus=CORPUS), count_lines)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Documents ``[start, stop)`` of a file."""
    return read_lines(root, source, options, _sample, corpus=CORPUS, start=start, stop=stop)


def _sample(root: Path, path: Path, line: Line, options: Options, sample_id: str) -> RawSample:
    record = json_record(line)
    sentences, infos = record.get("text_list"), record.get("image_info")
    if not isinstance(sentences, list) or not isinstance(infos, list):
        raise SampleError("record_malformed", "expected the lists text_list and image_info, found them missing")
    if not sentences:
        raise SampleError("text_missing", "expected sentences in text_list, found none")
    if not infos:
        raise SampleError("media_missing", "expected pictures in image_info, found none")
    pictures, dropped = _pictures(root, path, infos, len(sentences), options)
    similarities = [picture.similarity for picture in pictures if picture.similarity is not None]
    quality = {"pictures_dropped": float(dropped)}
    if similarities:
        quality["similarity"] = min(similarities)
    url = record.get("url")
    provenance = Provenance(relative_name(path, root), offset=line.offset, url=url if isinstance(url, str) else "")
    return RawSample(sample_id, CORPUS, options.split, _interleave(sentences, pictures), provenance, quality)


def _pictures(
    root: Path, path: Path, infos: list[Any], num_sentences: int, options: Options
) -> tuple[list[_Placed], int]:
    """The pictures that can be had, and how many cannot; raises the first reason if that leaves none."""
    placed: list[_Placed] = []
    problems: list[SampleError] = []
    for info in infos:
        try:
            picture = _picture(root, path, info, num_sentences)
        except SampleError as error:
            problems.append(error)
            continue
        if picture.similarity is None or picture.similarity >= options.min_matched_sim:
            placed.append(picture)
    if problems and (not placed or not options.drop_missing_pictures):
        raise problems[0]
    if not placed:
        raise SampleError(
            "media_missing", f"expected a picture with a similarity of at least {options.min_matched_sim}"
        )
    return placed, len(problems)


def _picture(root: Path, path: Path, info: Any, num_sentences: int) -> _Placed:
    if not isinstance(info, dict):
        raise SampleError("record_malformed", f"expected an object in image_info, found {type(info).__name__}")
    sentence = info.get("matched_text_index")
    if not isinstance(sentence, int) or isinstance(sentence, bool) or not 0 <= sentence < num_sentences:
        raise SampleError(
            "picture_position_invalid", f"expected matched_text_index in [0, {num_sentences}), found {sentence!r}"
        )
    data = read_media(path.parent / "images", info.get("image_name"), root=root)
    return _Placed(sentence, data, number(info.get("matched_sim")))


def _interleave(sentences: list[Any], pictures: list[_Placed]) -> tuple[RawSegment, ...]:
    before: dict[int, list[_Placed]] = defaultdict(list)
    for picture in pictures:
        before[picture.sentence].append(picture)
    segments: list[RawSegment] = []
    for index, sentence in enumerate(sentences):
        segments += [RawMedia("image", Modality.IMAGE, picture.data) for picture in before[index]]
        # A sentence of nothing but white space says nothing, and its picture keeps its place.
        if not isinstance(sentence, str) or sentence.strip():
            segments.append(RawText("text", clean_text(sentence, what=f"sentence {index}")))
    if not any(isinstance(segment, RawText) for segment in segments):
        raise SampleError("text_empty", "expected sentences, found only white space")
    return tuple(segments)
