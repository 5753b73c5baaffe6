"""What ``anygpt-pack`` reads, and the text tokenizer, vocabulary and templates it opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.load import Config, LocalPath, StoredPath, load_config
from pipeline.code_documents import code_document, only_block
from pipeline.documents import Document
from pipeline.packing import LongDocuments
from pipeline.rendering import render_document
from pipeline.templates import Templates, load_templates
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.vocabularies import VocabularyLayout, load_vocabulary, vocabulary_from_checkpoint
from shards.errors import ConfigError
from shards.records import TokenizedSample
from shards.vocabulary import Vocabulary
from tokenize_jobs.packing_parts import SplitBy
from tokenize_jobs.packing_result import UnitResult
from tokenize_jobs.packing_unit import PackingRules, PackingUnit, Telling, pack_unit


class Source(Config):
    """Samples, and how they are told."""

    path: StoredPath | tuple[StoredPath, ...]
    """Folder of sample shards, here or in an object store, or several whose documents share rows."""
    directions: dict[str, float] | None = None
    """Direction -> share; absent takes what the templates say about the sample's corpus."""
    draws: int = Field(default=1, ge=1)
    """How often every sample is told, each time anew; an oversampled corpus needs several."""
    splits: tuple[str, ...] = ()
    """Keep samples of these corpus splits only; empty keeps all."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders, be it one or several."""
        return self.path if isinstance(self.path, tuple) else (self.path,)


class Filler(Source):
    """Samples whose short documents top up the rows of another dataset."""

    draws: int = Field(default=1, ge=1)
    """How often a sample may be told; for the second time when all were told once and rows still have room."""


class PackedSource(Source):
    """One packed dataset: which samples are in it and how they are told."""

    filler: Filler | None = None
    """For documents that cannot fill a row among themselves: music alone leaves 8 % of 4,500 ids empty."""


class PackingConfig(Config):
    """What ``anygpt-pack`` reads."""

    output: LocalPath
    """One folder per dataset is made in it."""
    datasets: dict[str, PackedSource]
    templates: Path = Path("configs/templates")
    vocabulary: Path = Path("configs/vocabulary/tiny.toml")
    """The layout: which markers and media follow the text."""
    documents: Literal["told", "codes"] = "told"
    """Samples told by templates; or codes alone, without text (see :mod:`pipeline.code_documents`)."""
    text_tokenizer: Path | None = None
    """A Hugging Face folder; gives the text ids."""
    checkpoint: Path | None = None
    """Instead of ``text_tokenizer``: a checkpoint's folder, whose own files give every id."""
    dialogue_preset: str | None = None
    """Chat form, one of ``presets`` in the templates' ``dialogue.toml``; None takes the one that file names."""
    sequence_length: int = Field(default=4500, gt=1)
    """Ids per row, padding included."""
    long_documents: LongDocuments = "split"
    """A document longer than a row: ``split`` where its segments meet (a dialogue: between two exchanges), or ``reject``."""
    seed: int = 0
    unit_documents: int = Field(default=50_000, ge=1)
    """Documents per shard, packed together; the bytes depend on it, so it is no matter of how many workers there are."""
    validation_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the samples, by hash, packed apart into ``<dataset>-validation``."""
    validation_by: SplitBy = "content"
    """What is hashed: the media and texts, so that no content is in both parts, or the sample's id."""
    reject_budget: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of documents, of a unit and of a dataset, that may be rejected."""
    workers: int = Field(default=0, ge=0)
    """Ray actors; 0 packs in this process, which is faster until there are some 100,000 documents."""


@dataclass(frozen=True, slots=True)
class Language:
    """What turns a sample into ids; documents of codes alone need the vocabulary only."""

    text_tokenizer: TextTokenizer | None
    vocabulary: Vocabulary
    templates: Templates | None


def load_language(config: PackingConfig) -> Language:
    """Open text tokenizer, vocabulary and templates.

    Raises:
        ConfigError: if not exactly one of ``text_tokenizer`` and ``checkpoint`` is given, or one of them for documents
            without text.
    """
    if config.documents == "codes":
        return _load_codes_only(config)
    preset = [] if config.dialogue_preset is None else [f"preset={config.dialogue_preset}"]
    templates = load_templates(config.templates, preset)
    if (config.text_tokenizer is None) == (config.checkpoint is None):
        raise ConfigError(
            "packing: expected either text_tokenizer or checkpoint, found both or none; give the one you have"
        )
    if config.checkpoint is not None:
        layout = load_config(config.vocabulary, VocabularyLayout)
        vocabulary, text_tokenizer = vocabulary_from_checkpoint(config.checkpoint, layout)
    else:
        assert config.text_tokenizer is not None
        text_tokenizer = load_text_tokenizer(config.text_tokenizer)
        vocabulary = load_vocabulary(config.vocabulary, text_tokenizer=text_tokenizer)
    return Language(text_tokenizer, vocabulary, templates)


def _load_codes_only(config: PackingConfig) -> Language:
    if config.text_tokenizer is not None or config.checkpoint is not None:
        raise ConfigError(
            "packing: expected no text_tokenizer and no checkpoint with documents = 'codes', which have no text; "
            "remove the key"
        )
    vocabulary = load_vocabulary(config.vocabulary)
    only_block(vocabulary)
    return Language(None, vocabulary, None)


def pack_with(unit: PackingUnit, config: PackingConfig, language: Language) -> UnitResult:
    """Pack one unit as its config says; the same here and in a Ray actor."""
    source = config.datasets[unit.dataset]
    rules = PackingRules(
        vocabulary=language.vocabulary,
        sequence_length=config.sequence_length,
        told=_telling(source, config, language, config.long_documents),
        filler=_telling(source.filler, config, language, "leave") if source.filler else None,
        validation_share=config.validation_share,
        validation_by=config.validation_by,
        reject_budget=config.reject_budget,
    )
    return pack_unit(unit, rules)


def _telling(
    source: Source, config: PackingConfig, language: Language, long_documents: LongDocuments | Literal["leave"]
) -> Telling:
    """How the samples of one source are written as documents."""
    text_tokenizer, templates = language.text_tokenizer, language.templates

    def render(sample: TokenizedSample, draw: int) -> Document:
        if text_tokenizer is None or templates is None:
            return code_document(sample, language.vocabulary, draw=draw)
        return render_document(
            sample,
            templates,
            language.vocabulary,
            text_tokenizer,
            draw=draw,
            seed=config.seed,
            directions=source.directions,
        )

    return Telling(render, source.splits, source.draws, long_documents)
