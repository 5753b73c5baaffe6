"""The two stages of a unit, as plain callables: decode it (CPU), encode and commit it (CPU or GPU).

Ray Data maps rows through them, one row per unit, so the transaction stays whole whatever Ray does with its blocks.
Nothing here knows Ray. A mistake of the input or the config travels back as a row, because the message is what the
user needs and a worker's traceback is not; every other exception is a mistake of ours and stops the job with one.
"""

from __future__ import annotations

import functools
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.corpus import load_corpus
from pipeline.filters import filter_decoded, filter_raw
from pipeline.media import make_decoder
from pipeline.samples import Filtered, RawSample, Reject
from pipeline.tokenization import Decoded, count_tokens, decode_samples, encode_samples
from pipeline.tokenizers.base import MediaTokenizer
from pipeline.tokenizers.codecs import open_tokenizers
from shards.errors import AnyGPTError, CorpusError, SampleError
from shards.manifest import ShardEntry
from shards.records import TokenizedSample, samples_to_table
from shards.vocabulary import Modality
from shards.writer import commit_table
from tokenize_jobs.ledger import Entry, commit_entry, source_bytes, source_name
from tokenize_jobs.plan import TokenizeConfig, Unit
from tokenize_jobs.rejects import check_budget, count_reasons, left_out_table

Row = dict[str, Any]
Raw = RawSample | Filtered | Reject
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Task:
    """What workers must know about one corpus of a call: its config and the fingerprint its entries carry."""

    config: TokenizeConfig
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Payload:
    """A decoded unit on its way to an encoder, in the order of its inputs."""

    items: tuple[Decoded, ...] = field(default_factory=tuple)


def decode_row(row: Row, tasks: Sequence[Task]) -> Row:
    """Stage one: row of a unit -> the same row with its decoded media as ``payload``."""
    started = time.monotonic()
    torch.set_num_threads(1)
    config = tasks[int(row["task"])].config
    unit = Unit.from_row(row)
    payload, error = _attempt(lambda: pickle.dumps(decode_unit(config, unit), protocol=5), unit, config)
    return {**row, "payload": payload or b"", "error": error, "busy_s": time.monotonic() - started}


class EncodeRow:
    """Stage two: row with decoded media -> row of counts, the unit's files committed. One codec load per process."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        # Sums of floats depend on how many threads share them; codes must not.
        torch.set_num_threads(1)

    def __call__(self, row: Row) -> Row:
        """Encode and commit one unit, unless decoding it failed."""
        started = time.monotonic()
        inputs, error = 0, row["error"]
        if not error:
            unit, task = Unit.from_row(row), self._tasks[int(row["task"])]
            entry, error = _attempt(lambda: self._encode(task, unit, row["payload"]), unit, task.config)
            inputs = entry.inputs if entry else 0
        busy_s = float(row["busy_s"]) + time.monotonic() - started
        return {"task": row["task"], "number": row["number"], "inputs": inputs, "error": error, "busy_s": busy_s}

    def _encode(self, task: Task, unit: Unit, payload: bytes) -> Entry:
        return encode_unit(task, unit, pickle.loads(payload), open_tokenizers(task.config.tokenizers))


def decode_unit(config: TokenizeConfig, unit: Unit) -> Payload:
    """Read a unit's slice and decode its media.

    Raises:
        CorpusError: the reader gave fewer or more items than the plan counted.
    """
    raw = _Counted(_reader(config).read(unit.source, start=unit.start, stop=unit.stop))
    sifted = (filter_raw(item, config.filters) if isinstance(item, RawSample) else item for item in raw)
    decoded = decode_samples(sifted, make_decoder(config.media, config.windows))
    items = tuple(filter_decoded(decoded, config.filters))
    if raw.count != unit.num_items:
        raise CorpusError(
            f"{unit.source.path}: expected {unit.num_items} items from {unit.start} on, found {raw.count}; "
            "the file changed while it was read, or its reader counts wrongly"
        )
    return Payload(items)


def encode_unit(task: Task, unit: Unit, payload: Payload, codecs: Mapping[Modality, MediaTokenizer]) -> Entry:
    """Encode a decoded unit and commit it: shard, then what was left out, then the ledger entry.

    Raises:
        RejectBudgetExceeded: nothing is committed then.
    """
    output = task.config.output
    encoded = list(encode_samples(payload.items, codecs))
    samples = [item for item in encoded if isinstance(item, TokenizedSample)]
    rejects = [item for item in encoded if isinstance(item, Reject)]
    filtered = [item for item in encoded if isinstance(item, Filtered)]
    rejected = count_reasons(rejects)
    share = task.config.budget.unit_share
    check_budget(rejected, len(encoded), share=share, where=f"{output}: {unit.name}", key="budget.unit_share")
    # A worker of a run that was killed may still be writing the same unit: same bytes, but not the same temporary file.
    writer = f".{os.getpid()}"
    shard = _commit_shard(unit.shard(output), output, samples, writer) if samples else None
    left_out = left_out_table([item for item in encoded if not isinstance(item, TokenizedSample)], unit.name)
    left_out_sha256 = commit_table(unit.left_out(output), left_out, writer=writer) if len(left_out) else ""
    entry = Entry(
        unit=unit.name,
        fingerprint=task.fingerprint,
        source=source_name(unit, task.config.root),
        source_bytes=source_bytes(unit),
        start=unit.start,
        stop=unit.stop,
        inputs=len(payload.items),
        written=len(samples),
        filtered=count_reasons(filtered),
        rejected=rejected,
        tokens=count_tokens(samples),
        seconds=_seconds(samples),
        images=_count_images(samples),
        shard=shard,
        left_out_sha256=left_out_sha256,
    )
    commit_entry(entry, unit.entry(output), writer=writer)
    return entry


def _commit_shard(path: Path, output: Path, samples: Sequence[TokenizedSample], writer: str) -> ShardEntry:
    sha256 = commit_table(path, samples_to_table(samples), writer=writer)
    relative = path.relative_to(output).as_posix()
    return ShardEntry(relative, len(samples), path.stat().st_size, sha256, count_tokens(samples))


def _seconds(samples: Sequence[TokenizedSample]) -> dict[str, float]:
    total: dict[str, float] = {}
    for sample in samples:
        for segment in sample.segments:
            if segment.duration_s is not None:
                total[str(segment.modality)] = total.get(str(segment.modality), 0.0) + segment.duration_s
    return dict(sorted(total.items()))


def _count_images(samples: Sequence[TokenizedSample]) -> int:
    return sum(segment.modality is Modality.IMAGE for sample in samples for segment in sample.segments)


class _Counted:
    """An iterable that knows how many items it has given."""

    def __init__(self, items: Iterable[Raw]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[Raw]:
        for item in self._items:
            self.count += 1
            yield item


def _attempt(work: Callable[[], Result], unit: Unit, config: TokenizeConfig) -> tuple[Result | None, bytes]:
    """The actor boundary: what ``work`` returns, or the error of input or config that stopped it, pickled."""
    try:
        return work(), b""
    except AnyGPTError as error:
        if not isinstance(error, SampleError):
            return None, pickle.dumps(error)
        raise  # a sample's failure has its own place; here it is a mistake of ours
    except Exception as error:
        error.add_note(f"in {unit.name} of {config.dataset_name}: {unit.source.path} [{unit.start}:{unit.stop}]")
        raise


@functools.lru_cache(maxsize=2)
def _cached_reader(config_json: str) -> Any:
    return load_corpus(TokenizeConfig.model_validate_json(config_json))


def _reader(config: TokenizeConfig) -> Any:
    """The corpus's reader; kept, because some read an index of the whole corpus first."""
    return _cached_reader(config.model_dump_json())
