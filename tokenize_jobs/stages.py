"""The two stages of a unit, as plain callables: decode it (CPU), encode and commit it (CPU or GPU).

Ray Data maps rows through them, one row per unit, so the transaction stays whole whatever Ray does with its blocks.
Nothing here knows Ray. A mistake of the input or the config travels back as a row, because the message is what the
user needs and a worker's traceback is not; every other exception is a mistake of ours and stops the job with one.
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from pipeline.corpus import load_corpus
from pipeline.filters.apply import filter_decoded, filter_raw
from pipeline.leave_out import LeaveOut
from pipeline.media import make_decoder
from pipeline.samples import Filtered, RawSample, Reject
from pipeline.tokenization import Decoded, Encoded, count_tokens, decode_samples, encode_samples
from pipeline.tokenizers.codecs import open_tokenizers
from shards.errors import AnyGPTError, CorpusError, DatasetError, SampleError
from shards.ledger import Entry, commit_entry, read_entry
from shards.left_out import REMOVED
from shards.lookup import input_id
from shards.manifest import ShardEntry
from shards.records import TokenizedSample, samples_to_table
from shards.removal import removed_samples
from shards.vocabulary import Modality
from shards.writer import commit_table
from tokenize_jobs.ledger import source_bytes, source_name
from tokenize_jobs.live_metrics import record_unit
from tokenize_jobs.plan import TokenizeConfig, Unit, Units
from tokenize_jobs.rejects import check_budget, count_reasons, left_out_table
from tokenize_jobs.retry import ids_to_retry, merge
from tokenize_jobs.watchdog import Watchdog, remove_note

Row = dict[str, Any]
Raw = RawSample | Filtered | Reject
Result = TypeVar("Result")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Task:
    """What workers must know about one corpus of a call.

    Attributes:
        fingerprint: what its entries carry.
        units: of the whole plan without its arrays; a row says the rest.
        redo: do a unit although it has an entry.
        retry: of a unit that has an entry, do again what was rejected only.
    """

    config: TokenizeConfig
    fingerprint: str
    units: Units
    redo: bool = False
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Payload:
    """A decoded unit on its way to an encoder, in the order of its inputs.

    Attributes:
        order: ids of all its inputs, where ``items`` are the retried ones only.
    """

    items: tuple[Decoded, ...] = field(default_factory=tuple)
    order: tuple[str, ...] = ()


def decode_row(row: Row, tasks: Sequence[Task]) -> Row:
    """Stage one: row of a unit -> the same row with its decoded media as ``payload``.

    A unit that a lost worker had committed already goes on without one: its entry is all that is missing from the row.
    """
    started = time.monotonic()
    use_one_thread()
    task = tasks[int(row["task"])]
    unit = task.units.from_row(row)
    done = not (task.redo or row["again"]) and read_entry(task.config.output, unit.number) is not None
    payload, error = (
        (b"", b"") if done else _attempt(lambda: pickle.dumps(decode_unit(task, unit), protocol=5), unit, task)
    )
    return {**row, "done": done, "payload": payload or b"", "error": error, "decode_s": time.monotonic() - started}


class EncodeRow:
    """Stage two: row with decoded media -> row of counts, the unit's files committed. One codec load per process.

    With several units in hand, one encodes at a time; payloads are unpacked and files committed beside it.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        self._encoding = threading.Lock()
        self._idle_since = time.monotonic()
        use_one_thread()

    def __call__(self, row: Row) -> Row:
        """Encode and commit one unit, unless decoding it failed or it is done."""
        task = self._tasks[int(row["task"])]
        unit = task.units.from_row(row)
        times = {"encode_s": 0.0, "wait_s": 0.0}
        error = row["error"]
        if not error and not row["done"]:
            entry, error = _attempt(lambda: self._encode(task, unit, row["payload"], times), unit, task)
            if entry is not None:
                record_unit(task.config.dataset_name, entry, **times)
        kept = {name: row[name] for name in ("task", "number", "decode_s")}
        return {**kept, **times, "error": error, "device": _device(), "worker": f"{platform.node()}/{os.getpid()}"}

    def _encode(self, task: Task, unit: Unit, data: bytes, times: dict[str, float]) -> Entry:
        payload: Payload = pickle.loads(data)
        codecs = open_tokenizers(task.config.tokenizers)
        with self._encoding:
            started = time.monotonic()
            times["wait_s"] = started - self._idle_since
            encoded = list(encode_samples(payload.items, codecs))
            self._idle_since = time.monotonic()
            times["encode_s"] = self._idle_since - started
        if task.retry:
            encoded = merge(unit, task.config.output, encoded, payload.order)
        return commit_unit(task, unit, without_removed(encoded, task.config.output, unit))


def decode_unit(task: Task, unit: Unit) -> Payload:
    """Read a unit's slice and decode its media.

    Raises:
        CorpusError: the reader gave fewer or more items than the plan counted.
    """
    config = task.config
    raw = _Counted(_reader(config).read(unit.source, start=unit.start, stop=unit.stop))
    chosen: Iterable[Raw] = raw
    if task.retry:
        again = ids_to_retry(unit, config.output)
        chosen = (item for item in raw if item.sample_id in again)
    sifted = (_sift(item, config) if isinstance(item, RawSample) else item for item in chosen)
    with Watchdog(config.output, unit.number, timeout_s=config.cluster.sample_timeout_s) as watchdog:
        decoded = decode_samples(watchdog.watch(sifted), make_decoder(config.media, config.windows))
        items = tuple(filter_decoded(decoded, config.filters))
    if len(raw.ids) != unit.num_items:
        raise CorpusError(
            f"{unit.source.path}: expected {unit.num_items} items from {unit.start} on, found {len(raw.ids)}; "
            "the file changed while it was read, or its reader counts wrongly"
        )
    return Payload(items, tuple(raw.ids) if task.retry else ())


def _sift(sample: RawSample, config: TokenizeConfig) -> RawSample | Filtered:
    reason = _leave_out(config.leave_out).reason(config.dataset_name, sample.sample_id) if config.leave_out else None
    if reason is None:
        return filter_raw(sample, config.filters)
    message = f"left out by a list of leave_out: {reason}"
    return Filtered(sample.sample_id, sample.corpus, reason, message, sample.provenance)


@functools.lru_cache(maxsize=4)
def _leave_out(paths: tuple[Path, ...]) -> LeaveOut:
    return LeaveOut.load(paths)


def without_removed(encoded: Sequence[Encoded], output: Path, unit: Unit) -> list[Encoded]:
    """The outcomes without those that a take-down (``anygpt-remove``) named earlier; these come last, left out, by id.

    Where they were in the unit is forgotten, so that its files are those that :mod:`shards.removal` writes.
    """
    removed = removed_samples(output, unit.name)
    kept: list[Encoded] = []
    gone: list[Filtered] = []
    for item in encoded:
        message = removed.get(item.sample_id, removed.get(input_id(item.sample_id)))
        if message is None:
            kept.append(item)
        else:
            gone.append(Filtered(item.sample_id, item.corpus, REMOVED, message, item.provenance))
    place = attrgetter("sample_id", "provenance.source_file", "provenance.member", "provenance.offset")
    return [*kept, *sorted(gone, key=place)]


def commit_unit(task: Task, unit: Unit, encoded: Sequence[Encoded]) -> Entry:
    """Commit what became of a unit: shard, then what was left out, then the ledger entry.

    Raises:
        RejectBudgetExceeded: nothing is committed then.
    """
    output = task.config.output
    samples = [item for item in encoded if isinstance(item, TokenizedSample)]
    rejected = count_reasons(item for item in encoded if isinstance(item, Reject))
    share = task.config.budget.unit_share
    check_budget(rejected, len(encoded), share=share, where=f"{output}: {unit.name}", key="budget.unit_share")
    # A worker of a run that was killed may still be writing the same unit: same bytes, but not the same temporary file.
    writer = f".{platform.node()}.{os.getpid()}"
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
        inputs=len(encoded),
        written=len(samples),
        filtered=count_reasons(item for item in encoded if isinstance(item, Filtered)),
        rejected=rejected,
        tokens=count_tokens(samples),
        seconds=_seconds(samples),
        images=_count_images(samples),
        shard=shard,
        left_out_sha256=left_out_sha256,
    )
    commit_entry(output, entry, writer=writer)
    remove_note(output, unit.number)
    # After the entry, which is what counts: what a retry has emptied.
    if shard is None:
        unit.shard(output).unlink(missing_ok=True)
    if not left_out_sha256:
        unit.left_out(output).unlink(missing_ok=True)
    return entry


def use_one_thread() -> None:
    """Sums of floats depend on how many threads share them; codes must not.

    Torch takes seconds to import, and not every unit needs it: where it is not there yet, it is told for when it comes.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    else:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def _device() -> str:
    """What encoded: the GPU that torch has, or ``cpu``; also where torch was not needed."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"


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
    """An iterable that remembers the ids of what it has given."""

    def __init__(self, items: Iterable[Raw]) -> None:
        self._items = items
        self.ids: list[str] = []

    def __iter__(self) -> Iterator[Raw]:
        for item in self._items:
            self.ids.append(item.sample_id)
            yield item


def _attempt(work: Callable[[], Result], unit: Unit, task: Task) -> tuple[Result | None, bytes]:
    """The actor boundary: what ``work`` returns, or the error of input, config or disk that stopped it, pickled."""
    config = task.config
    try:
        return work(), b""
    except AnyGPTError as error:
        if not isinstance(error, SampleError):
            return None, pickle.dumps(error)
        raise  # a sample's failure has its own place; here it is a mistake of ours
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{config.output}: {unit.name}: expected room for its files, found {os.strerror(error.errno)}"
        advice = "nothing of it was committed; make room and run the same command again"
        return None, pickle.dumps(DatasetError(f"{where}; {advice}"))
    except Exception as error:
        error.add_note(f"in {unit.name} of {config.dataset_name}: {unit.source.path} [{unit.start}:{unit.stop}]")
        raise


@functools.lru_cache(maxsize=2)
def _cached_reader(config_json: str) -> Any:
    return load_corpus(TokenizeConfig.model_validate_json(config_json))


def _reader(config: TokenizeConfig) -> Any:
    """The corpus's reader; kept, because some read an index of the whole corpus first."""
    return _cached_reader(config.model_dump_json())
