"""Pass one of ``anygpt-dedup``: a unit of a corpus to ``OUTPUT/signatures/<dataset>/unit-NNNNNN.parquet``.

A file carries the fingerprint of what decided its bytes; one that is there with the right fingerprint is not made again,
so a run that was killed goes on where it was. A file is committed whole, or not at all.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import load_corpus
from pipeline.filters.apply import filter_raw
from pipeline.samples import Filtered, RawSample, Reject
from pipeline.signatures import Signature, sign
from pipeline.sounds import RecordingCache
from shards.errors import CorpusError
from shards.manifest import fingerprint
from shards.writer import commit_table
from tokenize_jobs.dedup_config import DedupConfig, signature_facts
from tokenize_jobs.ledger import source_bytes, source_name
from tokenize_jobs.plan import TokenizeConfig, Unit, Units, plan_units
from tokenize_jobs.watchdog import Watchdog

FINGERPRINT = b"fingerprint"
_MEDIUM = pa.struct(
    [
        pa.field("slot", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("decoded_sha256", pa.binary(32)),
        pa.field("picture", pa.uint64()),
        pa.field("colours", pa.binary(12)),
    ]
)
SIGNATURE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("media", pa.list_(_MEDIUM), nullable=False),
        pa.field("texts", pa.list_(pa.binary(32)), nullable=False),
        pa.field("joined_sha256", pa.binary(32)),
        pa.field("minhash", pa.binary()),
        pa.field("names", pa.list_(pa.uint64()), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class SignatureTask:
    """One corpus of a call.

    Attributes:
        facts: fingerprint of what decides the signatures of all its units.
        units: of the whole plan; workers get it without its arrays.
    """

    config: DedupConfig
    corpus: TokenizeConfig
    facts: str
    units: Units

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.corpus.dataset_name

    @property
    def folder(self) -> Path:
        """Where the signatures of this corpus go."""
        return self.config.output / "signatures" / self.name

    def path(self, unit: Unit) -> Path:
        """The file of one unit."""
        return self.folder / f"{unit.name}.parquet"

    def for_workers(self) -> SignatureTask:
        """The same without the arrays of the plan."""
        return replace(self, units=self.units.sources_only())


def plan_signatures(
    config: DedupConfig, corpora: Sequence[TokenizeConfig], *, limit: int | None
) -> list[SignatureTask]:
    """The units of every corpus, done or not.

    Raises:
        ConfigError, CorpusError: a corpus cannot be read.
    """
    return [
        SignatureTask(config, corpus, fingerprint(signature_facts(config, corpus)), plan_units(corpus, limit=limit))
        for corpus in corpora
    ]


def unit_fingerprint(task: SignatureTask, unit: Unit) -> str:
    """Of everything that decides the signatures of one unit."""
    return fingerprint([task.facts, source_name(unit, task.corpus.root), source_bytes(unit), unit.start, unit.stop])


def is_signed(task: SignatureTask, unit: Unit) -> bool:
    """Whether the file of a unit is there, whole, and made from the same."""
    path = task.path(unit)
    if not path.is_file():
        return False
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return found.get(FINGERPRINT, b"").decode() == unit_fingerprint(task, unit)


def sign_unit(task: SignatureTask, unit: Unit, *, watched: bool) -> None:
    """Make and commit the signatures of one unit.

    Args:
        watched: end this process, to be replaced, when a sample hangs; never in a process that nobody replaces.

    Raises:
        CorpusError: the reader gave fewer or more items than the plan counted.
    """
    items = _Counted(_reader(task.corpus.model_dump_json()).read(unit.source, start=unit.start, stop=unit.stop))
    sifted = (filter_raw(item, task.corpus.filters) if isinstance(item, RawSample) else item for item in items)
    timeout_s = task.corpus.cluster.sample_timeout_s
    watchdog = Watchdog(task.folder, unit.number, timeout_s=timeout_s) if watched else None
    cache = RecordingCache()
    with watchdog or nullcontext():
        watch = watchdog.watch(sifted) if watchdog else sifted
        samples = (item for item in watch if isinstance(item, RawSample))
        found = [sign(sample, task.config, task.corpus.media, cache=cache) for sample in samples]
    if items.count != unit.num_items:
        raise CorpusError(
            f"{unit.source.path}: expected {unit.num_items} items from {unit.start} on, found {items.count}; "
            "the file changed while it was read, or its reader counts wrongly"
        )
    table = signatures_to_table(found).replace_schema_metadata({FINGERPRINT: unit_fingerprint(task, unit)})
    commit_table(task.path(unit), table, writer=f".{platform.node()}.{os.getpid()}")


def signatures_to_table(signatures: Iterable[Signature]) -> pa.Table:
    """Rows of :data:`SIGNATURE_SCHEMA`; what a signature has not is null."""
    return pa.Table.from_pylist([_row(signature) for signature in signatures], schema=SIGNATURE_SCHEMA)


def _row(signature: Signature) -> dict[str, Any]:
    media = [
        {
            "slot": medium.slot,
            "modality": str(medium.modality),
            "sha256": medium.sha256 or None,
            "decoded_sha256": medium.decoded_sha256 or None,
            "picture": medium.picture,
            "colours": medium.colours or None,
        }
        for medium in signature.media
    ]
    return {
        "sample_id": signature.sample_id,
        "media": media,
        "texts": list(signature.texts),
        "joined_sha256": signature.joined_sha256 or None,
        "minhash": signature.minhash or None,
        "names": list(signature.names),
    }


class _Counted:
    def __init__(self, items: Iterable[RawSample | Filtered | Reject]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[RawSample | Filtered | Reject]:
        for item in self._items:
            self.count += 1
            yield item


@functools.lru_cache(maxsize=2)
def _reader(corpus: str) -> Any:
    """The corpus's reader; kept, because some read an index of the whole corpus first."""
    return load_corpus(TokenizeConfig.model_validate_json(corpus))
