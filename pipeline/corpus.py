"""One corpus as a config names it: which reader, which folder, which choices.

``corpus = "mls"`` means :mod:`pipeline.corpora.mls`; there is no registry. A reader module has three names::

    class Options(CorpusOptions): ...
    def sources(root, options) -> list[Source]
    def read(root, source, options, *, start=0, stop=None) -> Iterator[RawSample | Filtered | Reject]

``sources`` lists raw files in a fixed order and counts what is in them without touching media. ``read`` yields exactly
one result for every input of a slice, so a unit of work is a slice of one source and nothing is ever lost silently.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from pydantic import Field

import pipeline.corpora
from configs.load import Config, StoredPath, validate
from pipeline.filters.config import FilterConfig
from pipeline.media import MediaConfig, WindowConfig
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import storable
from pipeline.samples import Filtered, RawSample, Reject, Source
from shards.errors import ConfigError, CorpusError
from shards.vocabulary import Modality


class BudgetConfig(Config):
    """How many inputs may be rejected before the job stops; filtered ones do not count."""

    unit_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Of one unit; a unit above it is not committed."""
    run_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Of all inputs of a run."""


class CorpusConfig(Config):
    """Everything about tokenizing one corpus; paths are relative to the working directory."""

    corpus: str
    """Name of a file in ``pipeline/corpora``."""
    root: StoredPath
    """The corpus folder; here or in an object store (``s3://BUCKET/FOLDER``)."""
    output: StoredPath
    """Where the dataset of sample shards goes; likewise."""
    name: str | None = None
    """Name of the dataset; the corpus if none is given."""
    split: str = "train"
    """Which split is read, where the corpus has several, and what every sample is labelled with."""
    licence: str = ""
    """Recorded with every sample whose corpus gives none itself."""
    unit_items: int = Field(default=1000, ge=1)
    """Inputs a unit of work; part of the output's identity, because one unit is one file."""
    tokenizers: dict[Modality, Path] = Field(default_factory=dict[Modality, Path])
    fit: Path | None = None
    """Config of the fit that makes the tokenizers when they are not there; None: a missing file is an error."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keys of the reader's own ``Options``."""
    media: MediaConfig = MediaConfig()
    windows: WindowConfig = WindowConfig()
    filters: FilterConfig = FilterConfig()
    leave_out: tuple[Path, ...] = ()
    """Lists of samples that are passed over before a medium is decoded, as ``anygpt-dedup`` writes them."""
    budget: BudgetConfig = BudgetConfig()
    workers: int = Field(default=2, ge=0)
    """Ray workers that tokenize; 0: this process, without Ray. Then a sample that hangs ends the command, and the same
    command again rejects it and goes on."""

    @property
    def dataset_name(self) -> str:
        """The dataset's name in manifests and mixtures."""
        return self.name or self.corpus


class CorpusReader(Protocol):
    """A reader bound to its folder and options; can be pickled."""

    def sources(self) -> list[Source]:
        """Raw files in a fixed order, with the number of inputs in each."""
        ...

    def read(
        self, source: Source, *, start: int = 0, stop: int | None = None
    ) -> Iterator[RawSample | Filtered | Reject]:
        """One result for every input in ``[start, stop)`` of a source, in file order."""
        ...


@dataclass(frozen=True, slots=True)
class BoundReader:
    """The reader module of one config; see :class:`CorpusReader`."""

    corpus: str
    root: Path
    options: CorpusOptions
    licence: str = ""

    def sources(self) -> list[Source]:
        """Raw files in a fixed order; ``CorpusError`` if the folder holds none."""
        return _module(self.corpus).sources(self.root, self.options)

    def read(
        self, source: Source, *, start: int = 0, stop: int | None = None
    ) -> Iterator[RawSample | Filtered | Reject]:
        """The module's results, with the config's licence where the corpus gives none."""
        for result in _module(self.corpus).read(self.root, source, self.options, start=start, stop=stop):
            if self.licence and not result.provenance.licence:
                result = replace(result, provenance=replace(result.provenance, licence=self.licence))
            yield storable(result)


def load_corpus(config: CorpusConfig) -> BoundReader:
    """Bind the reader that a config names to its folder and options.

    Raises:
        ConfigError: no such reader, an option it does not know, or a split given twice.
        ConfigError: the bucket of ``root`` is missing, denied or out of reach.
        CorpusError: ``root`` is not there.
    """
    known = corpus_names()
    if config.corpus not in known:
        near = difflib.get_close_matches(config.corpus, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"corpus = {config.corpus!r}: expected the name of a file in pipeline/corpora; {hint}")
    if "split" in config.options:
        raise ConfigError("options.split: set the key split of the config itself; it labels the samples too")
    kind = cast(type[CorpusOptions], _module(config.corpus).Options)
    options = validate({**config.options, "split": config.split}, kind, where=f"options of corpus {config.corpus}")
    if not config.root.is_dir():
        raise CorpusError(
            f"root = {config.root}: expected the folder of the corpus {config.corpus}, found "
            f"{'a file' if config.root.exists() else 'nothing'}; give its path with --set root=DIR"
        )
    return BoundReader(config.corpus, config.root, options, config.licence)


def corpus_names() -> list[str]:
    """Every corpus there is a reader for, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(pipeline.corpora.__path__))


def _module(corpus: str) -> ModuleType:
    return import_module(f"pipeline.corpora.{corpus}")
