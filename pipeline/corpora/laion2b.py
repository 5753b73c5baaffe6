"""LAION-2B: pictures from the web with their alt texts.

Source: Schuhmann et al. 2022, arXiv:2210.08402; downloaded with rom1504/img2dataset (dataset_examples/laion5B.md).
Reads: ``*.tar`` (see :mod:`pipeline.reading.img2dataset`).
Yields: one sample per picture, with the slots ``image`` and ``caption``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.reading import img2dataset
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
from pipeline.reading.text import clean_text
from pipeline.samples import Source

CORPUS = "laion2b"


class Options(CorpusOptions):
    """Nothing to choose."""


def sources(root: Path, options: Options) -> list[Source]:
    """Every shard, in the order of the names."""
    return img2dataset.list_shards(root, CORPUS)


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Samples ``[start, stop)`` of a shard."""
    return img2dataset.read_shard(root, source, _captions, corpus=CORPUS, split=options.split, start=start, stop=stop)


def _captions(alt_text: str | None, fields: Mapping[str, Any]) -> list[str]:
    return [clean_text(alt_text, what="caption")]
