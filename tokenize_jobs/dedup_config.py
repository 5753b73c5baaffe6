"""What ``anygpt-dedup`` reads: corpora in order of precedence, how alike is too alike, and lists of evaluation items.

The corpora are the configs that ``anygpt-tokenize`` reads: the same reader, options and filters, so that what a filter
leaves out never counts as the copy that is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from configs.load import Config, load_config
from pipeline.signatures import SIGNATURES_VERSION, SignatureConfig
from shards.errors import ConfigError
from tokenize_jobs.plan import ClusterConfig, TokenizeConfig

By = Literal["id", "text", "media"]


class ColumnsConfig(Config):
    """Where an evaluation list has what; a jsonl value may be a list of strings."""

    id: str = "id"
    text: str = "text"
    media: str = "sha256"
    """sha256 of the encoded file, in hex."""


class ListConfig(Config):
    """One list of evaluation items that no training sample may be."""

    name: str
    file: Path
    """jsonl, csv, tsv, or txt. A line of a txt is one value; with ``by = ["id", "text"]``, an id, a space and its text, as
    in LibriSpeech's ``*.trans.txt``."""
    by: tuple[By, ...] = Field(min_length=1)
    columns: ColumnsConfig = ColumnsConfig()
    min_chars: int = Field(default=20, ge=1)
    """Texts that are shorter once normalised leak nothing: "yes" is everywhere."""


class DecontaminateConfig(Config):
    """The lists."""

    lists: tuple[ListConfig, ...] = ()


class DedupConfig(SignatureConfig):
    """Everything about one leave-out list; paths are relative to the working directory."""

    corpora: tuple[Path, ...] = Field(min_length=1)
    """Configs of corpora; of two copies, the one in the corpus named first is kept. An evaluation set that has a reader may
    stand first: then its near copies are found too, not only what a list can say."""
    roots: dict[str, Path] = Field(default_factory=dict[str, Path])
    """Folders of corpora, by the dataset's name, where a config names another."""
    output: Path
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    workers: int = Field(default=2, ge=0)
    """Ray workers that make signatures; 0: this process, without Ray."""
    cluster: ClusterConfig = ClusterConfig()
    memory_gib: float = Field(default=4.0, gt=0)
    """Of the database that groups equal digests; beyond it, it works on disk, in ``output``."""


def load_corpora(config: DedupConfig) -> list[TokenizeConfig]:
    """The corpora's own configs, in order.

    Raises:
        ConfigError: one is wrong, two datasets have one name, or a root is of none of them.
    """
    loaded = [load_config(path, TokenizeConfig) for path in config.corpora]
    names = [corpus.dataset_name for corpus in loaded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"corpora: expected every dataset once, found {name!r} twice; give one another name")
    strangers = sorted(set(config.roots) - set(names))
    if strangers:
        raise ConfigError(f"roots.{strangers[0]}: expected one of the corpora {', '.join(names)}; correct the name")
    return [corpus.model_copy(update={"root": config.roots.get(corpus.dataset_name, corpus.root)}) for corpus in loaded]


def signature_facts(config: DedupConfig, corpus: TokenizeConfig) -> dict[str, Any]:
    """Everything that decides the signatures of a corpus; not how alike two must be, which is asked later."""
    return {
        "version": SIGNATURES_VERSION,
        "decoded_sounds": config.exact.decoded_sounds,
        "pictures": config.pictures.model_dump(include={"on", "hash", "hash_size", "min_spread"}),
        "text": config.text.model_dump(exclude={"threshold"}) if config.text.on else None,
        "corpus": corpus.model_dump(
            mode="json", include={"corpus", "split", "options", "unit_items", "filters", "media"}
        ),
    }


def match_facts(config: DedupConfig) -> dict[str, Any]:
    """Everything of the config that decides which signatures are too alike; names of files are not among it."""
    facts = config.model_dump(mode="json", include={"exact", "pictures", "text"})
    lists = [given.model_dump(mode="json", exclude={"file"}) for given in config.decontaminate.lists]
    return facts | {"lists": lists}
