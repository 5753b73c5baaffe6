"""LAION-COCO: pictures from the web with generated captions.

Source: laion.ai "LAION-COCO" (2022); downloaded with rom1504/img2dataset (dataset_examples/laion-coco.md).
Reads: ``*.tar`` (see :mod:`pipeline.reading.img2dataset`).
Yields: one sample per picture, with the slots ``image`` and ``caption``. The caption is the best generated one
(``top_caption``); several captions are alternatives, of which a template draws one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.reading import img2dataset
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
from pipeline.reading.text import clean_text
from pipeline.samples import Source
from shards.errors import SampleError

CORPUS = "laion_coco"


class Options(CorpusOptions):
    """Which of its texts tells a picture."""

    caption: Literal["top", "all", "alt"] = "top"
    """``top_caption``, every one of ``all_captions``, or the alt text of the page."""


def sources(root: Path, options: Options) -> list[Source]:
    """Every shard, in the order of the names."""
    return img2dataset.list_shards(root, CORPUS)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Samples ``[start, stop)`` of a shard."""
    captions = partial(_captions, which=options.caption)
    return img2dataset.read_shard(root, source, captions, corpus=CORPUS, split=options.split, start=start, stop=stop)


def _captions(alt_text: str | None, fields: Mapping[str, Any], *, which: str) -> list[str]:
    if which == "alt":
        return [clean_text(alt_text, what="caption")]
    if which == "top":
        return [clean_text(fields.get("top_caption"), what="top_caption")]
    texts = fields.get("all_captions")
    if not isinstance(texts, list) or not texts:
        raise SampleError("text_missing", f"all_captions: expected a list of captions, found {texts!r}")
    return [clean_text(text, what="all_captions") for text in texts]
