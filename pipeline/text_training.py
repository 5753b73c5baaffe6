"""``anygpt-text``: from sample shards and templates to a text tokenizer and the vocabulary numbered with it.

The tokenizer's bytes depend on the texts, whatever their order, and on the config. What they were is written beside it as
``origin.json``; when that says what would be done again, nothing is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tokenizers
from pydantic import Field

from configs.load import Config, load_config
from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.samples import RawSample, RawText
from pipeline.templates import Templates, load_templates
from pipeline.text import load_text_tokenizer, train_text_tokenizer
from pipeline.vocabularies import load_vocabulary, vocabulary_facts
from shards.errors import ConfigError
from shards.manifest import fingerprint, read_manifest
from shards.storage import arrow_source
from shards.tokenizer_files import folder_fingerprint
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes

ORIGIN_NAME = "origin.json"
VOCABULARY_NAME = "vocabulary.json"


class TextConfig(Config):
    """``configs/tokenizers/text.toml``."""

    output: Path
    """Folder of the tokenizer; ``vocabulary.json`` is written beside it."""
    vocab_size: int = Field(default=1024, gt=0)
    datasets: tuple[Path, ...] = ()
    """Folders of sample shards whose texts are read."""
    splits: tuple[str, ...] = ("train",)
    """Splits of them that are read; empty reads all."""
    corpora: tuple[Path, ...] = ()
    """Configs of raw corpora whose texts are read, without their media."""
    templates: Path
    vocabulary: Path
    words: tuple[str, ...] = ()
    """Words that must be one piece each."""


def make_text_tokenizer(config: TextConfig) -> tuple[Vocabulary, bool]:
    """Train tokenizer and vocabulary if they are not there yet.

    Returns:
        The vocabulary, and whether anything had to be done.

    Raises:
        ConfigError: a dataset without sample shards, or sizes that do not go together.
    """
    templates = load_templates(config.templates)
    facts = text_facts(config, templates)
    vocabulary_path = config.output.parent / VOCABULARY_NAME
    if _is_done(config.output, facts) and vocabulary_path.is_file():
        vocabulary = load_vocabulary(config.vocabulary, text_tokenizer=load_text_tokenizer(config.output))
        if vocabulary_path.read_bytes() == _json_bytes(vocabulary.to_json()):
            return vocabulary, False
    num_texts = 0

    def texts() -> Iterator[str]:
        nonlocal num_texts
        for text in chain(instruction_texts(templates), sample_texts(config), corpus_texts(config)):
            num_texts += 1
            yield text

    tokenizer = train_text_tokenizer(texts(), config.vocab_size, config.output, words=config.words)
    vocabulary = load_vocabulary(config.vocabulary, text_tokenizer=tokenizer)
    commit_bytes(vocabulary_path, _json_bytes(vocabulary.to_json()))
    # Last, so that a run that was killed before is done again.
    origin = facts | {"tokenizer": tokenizer.fingerprint, "texts": num_texts}
    commit_bytes(config.output / ORIGIN_NAME, _json_bytes(origin))
    return vocabulary, True


def text_plan(config: TextConfig) -> str:
    """What the command would do, in a few lines."""
    templates = load_templates(config.templates)
    done = _is_done(config.output, text_facts(config, templates))
    rows = sum(read_manifest(folder).num_rows for folder in config.datasets)
    lines = [
        f"output: {config.output} ({'done' if done else 'to do'}), {VOCABULARY_NAME} beside it",
        f"texts: {rows} samples of {len(config.datasets)} datasets, {len(config.corpora)} raw corpora, "
        f"{len(instruction_texts(templates))} instructions",
        f"ids: {config.vocab_size} wanted, {len(config.words)} words in one piece each",
    ]
    return "\n".join(lines)


def describe_vocabulary(vocabulary: Vocabulary) -> str:
    """One line: ``tiny: 18,448 ids (text 1,030, image 8,194, ...)``."""
    parts = ", ".join(f"{name} {count:,}" for name, count in vocabulary_facts(vocabulary).items())
    return f"{vocabulary.name}: {vocabulary.size:,} ids ({parts}), fingerprint {vocabulary.fingerprint}"


def text_facts(config: TextConfig, templates: Templates) -> dict[str, Any]:
    """Everything that decides the tokenizer's bytes."""
    return {
        "vocab_size": config.vocab_size,
        "words": list(config.words),
        "splits": list(config.splits),
        "datasets": sorted(fingerprint([s.sha256 for s in read_manifest(folder).shards]) for folder in config.datasets),
        "corpora": sorted(_corpus_facts(path) for path in config.corpora),
        "templates": templates.fingerprint,
        "library": f"tokenizers {tokenizers.__version__}",
    }


def instruction_texts(templates: Templates) -> list[str]:
    """Every sentence of the pools, and the system message, as they stand in a document: behind a space."""
    texts = [f" {templates.preset.system}"]
    for medium in templates.media.values():
        texts += [f" {text}" for text in (*medium.instructions.x_to_text, *medium.instructions.text_to_x)]
    return texts


def sample_texts(config: TextConfig) -> Iterator[str]:
    """Every text of the sample shards, behind a space; media columns are not read."""
    for folder in config.datasets:
        manifest = read_manifest(folder)
        if manifest.kind != "samples":
            raise ConfigError(f"key 'datasets': expected sample shards, found {folder} of kind {manifest.kind!r}")
        for entry in manifest.shards:
            table = pq.ParquetFile(arrow_source(folder / entry.path)).read(
                columns=["split", "segments.list.element.text"]
            )
            rows = zip(table["split"].to_pylist(), table["segments"].to_pylist(), strict=True)
            for split, segments in rows:
                if split in config.splits or not config.splits:
                    yield from (f" {segment['text']}" for segment in segments if segment["text"])


def corpus_texts(config: TextConfig) -> Iterator[str]:
    """Every text of the raw corpora, behind a space; what a reader rejects has none."""
    for path in config.corpora:
        reader = load_corpus(load_config(path, CorpusConfig))
        for source in reader.sources():
            for result in reader.read(source):
                if isinstance(result, RawSample):
                    yield from (f" {part.text}" for part in result.segments if isinstance(part, RawText) and part.text)


def _corpus_facts(path: Path) -> str:
    """Identity of a raw corpus: its config without paths, and names and sizes of its files."""
    config = load_config(path, CorpusConfig)
    files = {s.path.relative_to(config.root).as_posix(): s.path.stat().st_size for s in load_corpus(config).sources()}
    return fingerprint([config.model_dump(mode="json", include={"corpus", "split", "options"}), files])


def _is_done(folder: Path, facts: dict[str, Any]) -> bool:
    path = folder / ORIGIN_NAME
    if not path.is_file():
        return False
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return all(origin.get(key) == value for key, value in facts.items()) and origin.get(
        "tokenizer"
    ) == folder_fingerprint(folder)


def _json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
