"""The raw files of a corpus with the number of inputs in each; counted once, for counting reads every archive's headers.

A run keeps the listing as ``OUTPUT.sources.parquet``, beside the dataset, for it has times. It holds as long as every
file it names has the size and time it had, and so have the folders these lie in and the files at the top of the corpus: a
file that is added changes the time of its folder. Where a store has no times for folders (an object store), every object
of the corpus is compared by name and size instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.samples import Source
from shards.manifest import fingerprint
from shards.writer import commit_table
from tokenize_jobs.log import beside

_SUFFIX = ".sources.parquet"
_STATE = b"state"


def list_sources(config: CorpusConfig) -> list[Source]:
    """The reader's sources: from the listing of an earlier run where it still holds, else counted.

    Raises:
        ConfigError, CorpusError: as the reader does.
    """
    kept = _read(config)
    return load_corpus(config).sources() if kept is None else kept


def keep_listing(config: CorpusConfig, sources: Sequence[Source]) -> None:
    """Store a listing for the next run; does nothing where it is stored already."""
    if _read(config) is not None or not all(source.path.is_relative_to(config.root) for source in sources):
        return
    columns = {
        "name": [source.path.relative_to(config.root).as_posix() for source in sources],
        "num_items": pa.array([source.num_items for source in sources], pa.int64()),
        "part": [source.part for source in sources],
    }
    table = pa.table(columns)
    state = _state(config, [source.path for source in sources])
    commit_table(beside(config.output, _SUFFIX), table.replace_schema_metadata({_STATE: state}))


def _read(config: CorpusConfig) -> list[Source] | None:
    path = beside(config.output, _SUFFIX)
    if not path.is_file():
        return None
    try:
        # ParquetFile, for pq.read_table imports pandas.
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowInvalid):
        return None  # it is only a shortcut
    rows = zip(*(table[name].to_pylist() for name in ("name", "num_items", "part")), strict=True)
    sources = [Source(config.root / name, items, part) for name, items, part in rows]
    try:
        state = _state(config, [source.path for source in sources])
    except OSError:
        return None
    return sources if (table.schema.metadata or {}).get(_STATE) == state else None


def _state(config: CorpusConfig, paths: Sequence[Path]) -> bytes:
    """What the listing depends on, as a digest."""
    reader = [config.corpus, config.split, config.options]
    return fingerprint([reader, sorted(_marks(config.root, paths))]).encode()


def _marks(root: Path, paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    if not isinstance(root, Path):
        for name, facts in root.fs.find(root.path, detail=True).items():
            yield name.removeprefix(root.path), int(facts["size"]), 0
        return
    folders = {parent for path in set(paths) for parent in path.relative_to(root).parents}
    top = [path for path in root.iterdir() if path.is_file()]
    for path in {*paths, *top, *(root / folder for folder in folders)}:
        status = path.stat()
        yield path.relative_to(root).as_posix(), 0 if path.is_dir() else status.st_size, status.st_mtime_ns
