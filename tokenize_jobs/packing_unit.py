"""Stage B, one unit: a fixed run of samples -> rendered -> packed -> ONE committed shard and its ledger entry.

A unit is cut from the datasets' own row numbers, never from the cluster, and shares nothing with other units; so its
bytes are the same wherever and however often it runs. Order of commits: sidecar, shard, ledger entry. Killed anywhere,
the unit is simply done again.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import Document
from pipeline.packing import LongDocuments, Piece, cut_to_fit, pack_best_fit
from shards.errors import DatasetError, RejectBudgetExceeded, SampleError
from shards.manifest import Manifest, ShardEntry
from shards.packed import sidecar_path, write_packed_shard
from shards.records import TokenizedSample, table_to_samples
from shards.storage import arrow_source
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes, file_sha256

Render = Callable[[TokenizedSample, int], Document]
"""(sample, draw) -> document; raises SampleError for a sample no template can say."""

LEDGER_FOLDER = "ledger"
VALIDATION_SUFFIX = "-validation"


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``[start, stop)`` of one sample shard of a dataset in ``folder``, drawn for the ``draw``-th time."""

    dataset: str
    folder: Path
    shard: str
    draw: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PackingUnit:
    """What one shard is made of.

    Attributes:
        dataset: its name in the config.
        folder: of the packed dataset; the validation part has a folder of its own.
    """

    dataset: str
    number: int
    folder: Path
    slices: tuple[Slice, ...]
    fingerprint: str
    validation: bool = False

    @property
    def shard(self) -> Path:
        """The file this unit commits."""
        return self.folder / f"shard-{self.number:05d}.arrow"

    @property
    def ledger(self) -> Path:
        """The entry that says it is done."""
        return self.folder / LEDGER_FOLDER / f"{self.number:05d}.json"


@dataclass(frozen=True, slots=True)
class PackingRules:
    """How a unit is packed; the same for every unit of a run.

    Attributes:
        splits: keep samples of these corpus splits only; empty keeps all.
        validation_share: share of sample ids, by hash, that belong to the validation part.
        reject_budget: share of a unit's documents that may be rejected.
    """

    vocabulary: Vocabulary
    sequence_length: int
    long_documents: LongDocuments = "split"
    splits: tuple[str, ...] = ()
    validation_share: float = 0.0
    reject_budget: float = 1.0


@dataclass(frozen=True, slots=True)
class RejectedDocument:
    """A document that was not packed, and why."""

    sample_id: str
    draw: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a unit's ledger entry says.

    Attributes:
        shard: None when nothing was left to write.
        tokens_by_source: ids by the dataset of samples they came from, padding not counted.
        cut: documents that fit a row and were cut; always 0, counted to prove it.
        split: documents longer than a row that were split at segment borders.
    """

    fingerprint: str
    shard: ShardEntry | None
    sidecar_sha256: str
    inputs: int
    written: int
    filtered: dict[str, int] = field(default_factory=dict[str, int])
    rejected: dict[str, int] = field(default_factory=dict[str, int])
    tokens_by_source: dict[str, int] = field(default_factory=dict[str, int])
    tokens_by_direction: dict[str, int] = field(default_factory=dict[str, int])
    documents_by_direction: dict[str, int] = field(default_factory=dict[str, int])
    cut: int = 0
    split: int = 0
    rejects: tuple[RejectedDocument, ...] = ()


def plan_slices(
    sources: Sequence[tuple[Path, Manifest]], *, draws: int, unit_documents: int, limit: int | None = None
) -> list[tuple[Slice, ...]]:
    """Cut ``draws`` x samples, draw after draw, into equal runs of at most ``unit_documents``.

    Args:
        sources: folders of sample shards and their manifests, one after the other.
        limit: use the first so many samples only.
    """
    shards = [(folder, manifest.name, shard) for folder, manifest in sources for shard in manifest.shards]
    starts = [0, *itertools.accumulate(shard.num_rows for _, _, shard in shards)]
    num_samples = starts[-1] if limit is None else min(limit, starts[-1])
    total = num_samples * draws
    num_units = -(-total // unit_documents)
    bounds = [total * number // num_units for number in range(num_units + 1)] if num_units else []

    def slices(begin: int, end: int) -> Iterator[Slice]:
        while begin < end:
            draw, sample = divmod(begin, num_samples)
            at = bisect.bisect_right(starts, sample) - 1
            stop = min(starts[at + 1], num_samples, sample + end - begin)
            folder, name, shard = shards[at]
            yield Slice(name, folder, shard.path, draw, sample - starts[at], stop - starts[at])
            begin += stop - sample

    return [tuple(slices(begin, end)) for begin, end in itertools.pairwise(bounds)]


def is_validation(sample_id: str, share: float) -> bool:
    """Whether a sample belongs to the validation part: by its id alone, so it stays there when samples are added."""
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def pack_unit(unit: PackingUnit, render: Render, rules: PackingRules) -> UnitResult:
    """Render, pack and commit one unit.

    Returns:
        What was committed as its ledger entry.

    Raises:
        RejectBudgetExceeded: nothing is committed then.
    """
    filtered: Counter[str] = Counter()
    rejects: list[RejectedDocument] = []
    pieces = list(_render_pieces(unit, render, rules, filtered, rejects))
    check_budget(rejects, sum(piece.stop - piece.start for piece in unit.slices), rules.reject_budget, unit.shard)
    rows = list(
        pack_best_fit(
            pieces,
            sequence_length=rules.sequence_length,
            pad_id=rules.vocabulary.pad_id,
            dtype=rules.vocabulary.dtype,
            buffer_pieces=max(1, len(pieces)),
        )
    )
    shard = sidecar = None
    if rows:
        shard = write_packed_shard(unit.shard, rows, vocabulary=rules.vocabulary, sequence_length=rules.sequence_length)
        sidecar = file_sha256(sidecar_path(unit.shard))
    result = _tally(unit, pieces, rules, shard, sidecar or "", filtered, rejects)
    commit_bytes(unit.ledger, _entry_bytes(result))
    return result


def read_result(unit: PackingUnit) -> UnitResult | None:
    """The unit's ledger entry, or None when it has to be done (again).

    Raises:
        DatasetError: if the folder holds a dataset made with another config.
    """
    if not unit.ledger.is_file():
        return None
    entry = json.loads(unit.ledger.read_text(encoding="utf-8"))
    if entry["fingerprint"] != unit.fingerprint:
        raise stale_output(unit.folder, entry["fingerprint"], unit.fingerprint)
    shard = ShardEntry(**entry.pop("shard")) if entry["shard"] else entry.pop("shard")
    rejects = tuple(RejectedDocument(**reject) for reject in entry.pop("rejects"))
    if shard is not None and not _is_there(unit, shard):
        return None
    return UnitResult(shard=shard, rejects=rejects, **entry)


def check_budget(rejects: Sequence[RejectedDocument], inputs: int, budget: float, where: Path) -> None:
    """Raise ``RejectBudgetExceeded`` if more than ``budget`` of the inputs were rejected."""
    if len(rejects) <= budget * inputs:
        return
    ((reason, count),) = Counter(reject.reason for reject in rejects).most_common(1)
    example = next(reject.message for reject in rejects if reject.reason == reason)
    raise RejectBudgetExceeded(
        f"{where}: expected at most {budget:.1%} of {inputs} documents to be rejected, found {len(rejects)}, most of them "
        f"{reason} ({count}, e.g. {example}); mend the samples or the directions, or raise reject_budget"
    )


def stale_output(folder: Path, found: str, expected: str) -> DatasetError:
    """The error for an output folder that holds something else."""
    return DatasetError(
        f"{folder}: holds rows packed with fingerprint {found}, this config and these samples give {expected}; "
        "remove that folder or choose another output"
    )


def _is_there(unit: PackingUnit, shard: ShardEntry) -> bool:
    path = unit.shard
    return path.is_file() and path.stat().st_size == shard.num_bytes and sidecar_path(path).is_file()


def _render_pieces(
    unit: PackingUnit, render: Render, rules: PackingRules, filtered: Counter[str], rejects: list[RejectedDocument]
) -> Iterator[Piece]:
    """The only place that catches a document's failure; everything else may stop the unit."""
    for origin, sample in _read_samples(unit):
        reason = _filter_reason(sample, unit, rules)
        if reason:
            filtered[reason] += 1
            continue
        try:
            document = render(sample, origin.draw)
            # Held in the vocabulary's own type: a quarter of the memory of int64.
            slim = replace(document, token_ids=document.token_ids.astype(rules.vocabulary.dtype))
            yield from cut_to_fit(
                slim,
                sequence_length=rules.sequence_length,
                long_documents=rules.long_documents,
                dataset=origin.dataset,
            )
        except SampleError as error:
            rejects.append(RejectedDocument(sample.sample_id, origin.draw, error.reason, str(error)))


def _read_samples(unit: PackingUnit) -> Iterator[tuple[Slice, TokenizedSample]]:
    for piece in unit.slices:
        for table in _read_rows(piece.folder / piece.shard, piece.start, piece.stop):
            for sample in table_to_samples(table):
                yield piece, sample


def _read_rows(path: Path, start: int, stop: int) -> Iterator[pa.Table]:
    """Rows ``[start, stop)`` of a Parquet file, one row group at a time."""
    try:
        opened = pq.ParquetFile(arrow_source(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{path}: expected a shard of samples, found {error}; run anygpt-verify on its folder"
        ) from error
    with opened as file:
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            begin, end = max(start, first), min(stop, first + size)
            if begin < end:
                yield file.read_row_group(group).slice(begin - first, end - begin)
            first += size


def _filter_reason(sample: TokenizedSample, unit: PackingUnit, rules: PackingRules) -> str:
    if rules.splits and sample.split not in rules.splits:
        return "other_split"
    if is_validation(sample.sample_id, rules.validation_share) != unit.validation:
        return "training_part" if unit.validation else "validation_part"
    return ""


def _tally(
    unit: PackingUnit,
    pieces: Sequence[Piece],
    rules: PackingRules,
    shard: ShardEntry | None,
    sidecar_sha256: str,
    filtered: Counter[str],
    rejects: Sequence[RejectedDocument],
) -> UnitResult:
    sources: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    cut = split = 0
    for piece in pieces:
        sources[piece.dataset] += len(piece)
        tokens[piece.document.direction] += len(piece)
        if piece.start == 0:
            documents[piece.document.direction] += 1
            whole = len(piece.document.token_ids)
            cut += len(piece) < whole <= rules.sequence_length
            split += whole > rules.sequence_length
    return UnitResult(
        fingerprint=unit.fingerprint,
        shard=shard,
        sidecar_sha256=sidecar_sha256,
        inputs=sum(piece.stop - piece.start for piece in unit.slices),
        written=sum(documents.values()),
        filtered=dict(sorted(filtered.items())),
        rejected=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        tokens_by_source=dict(sorted(sources.items())),
        tokens_by_direction=dict(sorted(tokens.items())),
        documents_by_direction=dict(sorted(documents.items())),
        cut=cut,
        split=split,
        rejects=tuple(rejects),
    )


def _entry_bytes(result: UnitResult) -> bytes:
    entry: dict[str, Any] = asdict(result)
    return (json.dumps(entry, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
