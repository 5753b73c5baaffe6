"""JourneyDB: generated pictures with prompts and captions.

Source: Sun et al. 2023, arXiv:2307.00716; layout of the JourneyDB/JourneyDB distribution, unpacked.
Reads: ``<split>_anno*.jsonl`` and the pictures below the ``imgs`` folder beside it.
Yields: one sample per line, with the slots ``image`` and ``caption``. A sample's id is its line: the annotations may name
a picture twice. Lines without a caption, which the real data has, are rejected as ``text_missing``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, count_lines, iter_lines, json_record
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "journeydb"
# The generator's own switches at the end of a prompt: ``--ar 16:9 --v 4``.
_SWITCHES = re.compile(r"(?:\s+--\w+(?:\s+[^\s-]\S*)*)+\s*$")


class Options(CorpusOptions):
    """Which text tells a picture."""

    text: Literal["caption", "prompt"] = "caption"
    """The caption written for it, or the prompt that made it, without its ``--switches``."""


def sources(root: Path, options: Options) -> list[Source]:
    """The annotation files of the split; blank lines are no inputs."""
    paths = find_files(root, [f"{options.split}_anno*.jsonl"], corpus=CORPUS)
    return [Source(path, count_lines(path)) for path in paths]


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Lines ``[start, stop)`` of an annotation file."""
    name = relative_name(source.path, root)
    for line in islice(iter_lines(source.path), start, stop):
        sample_id = f"{CORPUS}/{name.removesuffix('.jsonl')}/{line.number}"
        yield attempt(
            lambda line=line, sample_id=sample_id: _sample(root, source.path, line, options, sample_id),
            sample_id=sample_id,
            corpus=CORPUS,
            provenance=Provenance(name, offset=line.offset),
        )


def _sample(root: Path, path: Path, line: Line, options: Options, sample_id: str) -> RawSample:
    record = json_record(line)
    text = clean_text(_text(record, options), what=options.text)
    img_path = record.get("img_path")
    picture = read_media(path.parent / "imgs", img_path, root=root)
    return RawSample(
        sample_id,
        CORPUS,
        options.split,
        (RawMedia("image", Modality.IMAGE, picture), RawText("caption", text)),
        Provenance(relative_name(path, root), str(img_path), line.offset),
    )


def _text(record: dict[str, Any], options: Options) -> Any:
    if options.text == "prompt":
        prompt = record.get("prompt")
        return _SWITCHES.sub("", prompt) if isinstance(prompt, str) else prompt
    task = record.get("Task2")
    return task.get("Caption") if isinstance(task, dict) else None
