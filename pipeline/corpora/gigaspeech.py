"""GigaSpeech: 10,000 hours of transcribed English speech, cut out of long recordings by time.

Source: Chen et al. 2021, arXiv:2106.06909; SpeechColab/GigaSpeech (README, toolkits).
Reads: ``GigaSpeech*.json`` and the opus files it names. One source is one recording, which is decoded once for all of its
segments.
Yields: one sample per segment, with the slots ``speech`` and ``transcript``. Overlapping segments are independent.

Text, as the corpus's own documentation asks: punctuation tags become punctuation, glued to the word before; segments of
one garbage tag (silence, music, noise, other) carry no speech and are filtered as ``garbage_tag``; any other tag is a
reject. Words come in upper case; in lower case they fit a text tokenizer and AnyGPT's published rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reading.files import find_files, relative_name, resolve_media
from pipeline.reading.json_array import Element, iter_array, read_bytes, read_element, recover_cut_object
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt, number, refuse
from pipeline.reading.text import clean_text
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "gigaspeech"
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
# Tags the annotators put in place of words; such segments carry no speech.
GARBAGE_TAGS = frozenset({"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"})
_TAG = re.compile(r"<[^<>\s]*>")
# Times in the metadata are rounded.
_TIME_TOLERANCE_S = 0.05


class Options(CorpusOptions):
    """Which segments are read, and how their text is written."""

    metadata: str = "GigaSpeech*.json"
    subsets: tuple[str, ...] = ()
    """E.g. ``["{XL}"]``; segments in none of them are filtered as ``subset_not_chosen``. All if empty."""
    lower_case: bool = True
    punctuation: bool = True
    """Write punctuation; if false, its tags are dropped."""
    verify_md5: bool = True
    """Compare every recording with the metadata's md5; costs reading it once more."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a recording lies in the metadata, and what is wrong with all of it."""

    offset: int
    num_bytes: int
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.offset}:{self.num_bytes}:{self.problem}"

    @classmethod
    def parse(cls, text: str) -> _Part:
        offset, num_bytes, problem = text.split(":")
        return cls(int(offset), int(num_bytes), problem)


def sources(root: Path, options: Options) -> list[Source]:
    """Every recording, in the order of the metadata; a recording that comes twice is one input, which is rejected."""
    found: list[Source] = []
    seen: set[str] = set()
    for path in find_files(root, [options.metadata], corpus=CORPUS):
        for element in iter_array(path, "audios", element_key="segments"):
            part, num_items = _listed(path, element, seen)
            found.append(Source(path, num_items, str(part)))
    return found


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Segments ``[start, stop)`` of a recording."""
    part = _Part.parse(source.part)
    name = relative_name(source.path, root)
    recording, segments = _load(source.path, part)
    if part.problem:
        segments = segments[: source.num_items - 1]
    stop = source.num_items if stop is None else min(stop, source.num_items)
    problem = _recording_problem(root, recording, options) if segments and start < stop else None
    for index in range(start, stop):
        if index >= len(segments):
            # What is wrong with the recording as a whole, after the segments that are not lost with it.
            sample_id = f"{CORPUS}/{recording.get('aid') or name}@{part.offset}"
            where = Provenance(name, offset=part.offset)
            message = f"{name}, byte {part.offset}: the recording cannot be read from here on"
            yield refuse(part.problem, message, sample_id=sample_id, corpus=CORPUS, provenance=where)
            continue
        segment = segments[index]
        sid = segment.get("sid") if isinstance(segment, dict) else None
        sample_id = f"{CORPUS}/{recording.get('aid')}/{sid if isinstance(sid, str) and sid else index}"
        provenance = Provenance(name, str(recording.get("path", "")), part.offset, url=str(recording.get("url") or ""))
        yield attempt(
            lambda segment=segment, sample_id=sample_id, provenance=provenance: _sample(
                root, recording, segment, problem, options, sample_id, provenance
            ),
            sample_id=sample_id,
            corpus=CORPUS,
            provenance=provenance,
        )


def write_text(text: str, *, lower_case: bool = True, punctuation: bool = True) -> str:
    """``text_tn`` as a sentence: ``ASK NOT <COMMA> ASK`` becomes ``ask not, ask``.

    Raises:
        SampleError: ``unknown_tag``.
    """
    words: list[str] = []
    for word in text.split():
        if word in PUNCTUATION:
            # At the very beginning there is no word to glue it to.
            if punctuation and words:
                words[-1] += PUNCTUATION[word]
            continue
        tag = _TAG.search(word)
        if tag:
            raise SampleError(
                "unknown_tag", f"text_tn: expected words and {' '.join(PUNCTUATION)}, found {tag.group()!r}"
            )
        words.append(word.lower() if lower_case else word)
    return " ".join(words)


def _listed(path: Path, element: Element, seen: set[str]) -> tuple[_Part, int]:
    """The part that an element of ``audios`` is, and the number of inputs in it."""
    recording, problem = element.value, element.problem
    if problem == "file_truncated":
        head, segments = recover_cut_object(read_bytes(path, element.offset, element.num_bytes), "segments")
        known = 0 if str(head.get("aid")) in seen else len(segments)
        return _Part(element.offset, element.num_bytes, problem), known + 1
    aid = recording.get("aid") if isinstance(recording, dict) else None
    if not problem and not (isinstance(aid, str) and aid and isinstance(recording.get("segments"), list)):
        problem = "record_malformed"
    if not problem and aid in seen:
        problem = "duplicate_recording"
    if problem:
        return _Part(element.offset, element.num_bytes, problem), 1
    seen.add(str(aid))
    return _Part(element.offset, element.num_bytes), len(recording["segments"])


def _load(path: Path, part: _Part) -> tuple[dict[str, Any], Sequence[Any]]:
    """The recording's own fields, and the segments that can be read."""
    if part.problem == "file_truncated":
        return recover_cut_object(read_bytes(path, part.offset, part.num_bytes), "segments")
    if part.problem:
        return {}, []
    recording = read_element(path, part.offset, part.num_bytes)
    return recording, recording["segments"]


def _recording_problem(root: Path, recording: Mapping[str, Any], options: Options) -> SampleError | None:
    """Why none of a recording's segments can be read, or None."""
    try:
        path = resolve_media(root, recording.get("path"), root=root)
    except SampleError as error:
        return error
    md5 = recording.get("md5")
    if options.verify_md5 and isinstance(md5, str) and md5:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5.lower():
            return SampleError("checksum_mismatch", f"{recording['path']}: expected md5 {md5}, found {found}")
    return None


def _sample(
    root: Path,
    recording: Mapping[str, Any],
    segment: Any,
    problem: SampleError | None,
    options: Options,
    sample_id: str,
    provenance: Provenance,
) -> RawSample | Filtered:
    if not isinstance(segment, dict):
        raise SampleError("record_malformed", f"expected a segment object, found {type(segment).__name__}")
    text = clean_text(segment.get("text_tn"), what="text_tn")
    if text in GARBAGE_TAGS:
        return Filtered(sample_id, CORPUS, "garbage_tag", f"{text} stands in place of words", provenance)
    if not _is_chosen(segment, options):
        return Filtered(sample_id, CORPUS, "subset_not_chosen", f"in {segment.get('subsets')} only", provenance)
    transcript = write_text(text, lower_case=options.lower_case, punctuation=options.punctuation)
    begin_s, end_s = _times(recording, segment)
    if problem is not None:
        raise SampleError(problem.reason, str(problem).partition(": ")[2])
    speech = RawMedia("speech", Modality.SPEECH, path=root / str(recording["path"]), begin_s=begin_s, end_s=end_s)
    transcript = clean_text(transcript, what="text_tn")
    return RawSample(sample_id, CORPUS, options.split, (speech, RawText("transcript", transcript)), provenance)


def _is_chosen(segment: Mapping[str, Any], options: Options) -> bool:
    subsets = segment.get("subsets")
    return not options.subsets or (isinstance(subsets, list) and any(name in options.subsets for name in subsets))


def _times(recording: Mapping[str, Any], segment: Mapping[str, Any]) -> tuple[float, float]:
    begin_s, end_s = number(segment.get("begin_time")), number(segment.get("end_time"))
    if begin_s is None or end_s is None or not 0 <= begin_s < end_s:
        raise SampleError(
            "segment_times_invalid",
            f"expected 0 <= begin_time < end_time, found {segment.get('begin_time')!r}, {segment.get('end_time')!r}",
        )
    duration_s = number(recording.get("duration"))
    if duration_s is not None and end_s > duration_s + _TIME_TOLERANCE_S:
        raise SampleError("segment_times_invalid", f"expected an end within {duration_s} s, found {end_s} s")
    return begin_s, end_s
