"""JourneyDB: generated pictures with prompts and captions.

Source: Sun et al. 2023, arXiv:2307.00716; layout of the JourneyDB/JourneyDB distribution, unpacked.
Reads: ``<split>_anno*.jsonl`` and the pictures below the ``imgs`` folder beside it.
Yields: one sample per line, with the slots ``image`` and ``caption``. A sample's id is its line: the annotations may name
a picture twice. Lines without a caption, which the real data has, are rejected as ``text_missing``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, count_lines, json_record, read_lines
from pipeline.reading.listing import list_sources
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
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
    return list_sources(find_files(root, [f"{options.split}_anno*.jsonl"], corpus=CORPUS), count_lines)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Lines ``[start, stop)`` of an annotation file."""
    return read_lines(root, source, options, _sample, corpus=CORPUS, start=start, stop=stop)


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
