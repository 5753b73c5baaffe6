"""Stage B, one unit: a fixed run of samples -> rendered -> packed -> ONE committed shard and its ledger entry.

A unit is cut from the datasets' own row numbers (:mod:`tokenize_jobs.packing_slices`), never from the cluster, and shares
nothing with other units; so its bytes are the same wherever and however often it runs. Order of commits: sidecar, shard,
ledger entry. Killed anywhere, the unit is simply done again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.documents import Document
from pipeline.packing import LongDocuments, Piece, cut_to_fit, pack_best_fit
from shards.errors import DatasetError, RejectBudgetExceeded, SampleError
from shards.manifest import ShardEntry, to_entry
from shards.packed import PackedRow, sidecar_path, write_packed_shard
from shards.records import TokenizedSample
from shards.vocabulary import Vocabulary
from shards.writer import commit_bytes, file_sha256
from tokenize_jobs.packing_parts import SplitBy, is_validation
from tokenize_jobs.packing_result import RejectedDocument, UnitResult, count_rows
from tokenize_jobs.packing_slices import Slice, num_documents, read_samples

Render = Callable[[TokenizedSample, int], Document]
"""(sample, draw) -> document; raises SampleError for a sample no template can say."""

LEDGER_FOLDER = "ledger"
VALIDATION_SUFFIX = "-validation"


@dataclass(frozen=True, slots=True)
class PackingUnit:
    """What one shard is made of.

    Attributes:
        dataset: its name in the config.
        folder: of the packed dataset; the validation part has a folder of its own.
        filler: samples that may top up rows; no other unit has them.
    """

    dataset: str
    number: int
    folder: Path
    slices: tuple[Slice, ...]
    fingerprint: str
    validation: bool = False
    filler: tuple[Slice, ...] = ()

    @property
    def shard(self) -> Path:
        """The file this unit commits."""
        return self.folder / f"shard-{self.number:05d}.arrow"

    @property
    def ledger(self) -> Path:
        """The entry that says it is done."""
        return self.folder / LEDGER_FOLDER / f"{self.number:05d}.json"


@dataclass(frozen=True, slots=True)
class Telling:
    """How samples become documents.

    Attributes:
        splits: keep samples of these corpus splits only; empty keeps all.
        draws: of a filler, how often its samples may be told; of other samples their slice says which draw it is.
        long_documents: what becomes of one that is longer than a row; a filler's are left alone.
    """

    render: Render
    splits: tuple[str, ...] = ()
    draws: int = 1
    long_documents: LongDocuments | Literal["leave"] = "split"


@dataclass(frozen=True, slots=True)
class PackingRules:
    """How a unit is packed; the same for every unit of a dataset.

    Attributes:
        validation_share: share of the samples, by hash, that belong to the validation part.
        validation_by: what of a sample is hashed.
        reject_budget: share of a unit's documents that may be rejected.
    """

    vocabulary: Vocabulary
    sequence_length: int
    told: Telling
    filler: Telling | None = None
    validation_share: float = 0.0
    validation_by: SplitBy = "content"
    reject_budget: float = 1.0


def pack_unit(unit: PackingUnit, rules: PackingRules) -> UnitResult:
    """Render, pack and commit one unit.

    Returns:
        What was committed as its ledger entry.

    Raises:
        RejectBudgetExceeded: nothing is committed then.
    """
    main, spare = _Read(), _Read()
    pieces = list(_tell(unit.slices, rules.told, unit.validation, rules, main))
    rows = list(
        pack_best_fit(
            pieces,
            sequence_length=rules.sequence_length,
            pad_id=rules.vocabulary.pad_id,
            dtype=rules.vocabulary.dtype,
            buffer_pieces=max(1, len(pieces)),
            filler=_tell_filler(unit, rules, spare),
        )
    )
    inputs = num_documents(unit.slices) + spare.num_samples
    rejects = (*main.rejects, *spare.rejects)
    check_budget(rejects, inputs, rules.reject_budget, unit.shard)
    counts = count_rows(rows, rules.vocabulary, fillers={run.dataset for run in unit.filler})
    filtered = main.filtered + spare.filtered + Counter(filler_unused=spare.num_told - counts.filler["documents"])
    shard, sidecar = _commit_rows(unit.shard, rows, rules)
    cut, split = _count_cuts(pieces, rules.sequence_length)
    result = UnitResult(
        fingerprint=unit.fingerprint,
        shard=shard,
        sidecar_sha256=sidecar,
        inputs=inputs,
        written=sum(counts.documents_by_direction.values()),
        filtered=dict(sorted(filtered.items())),
        rejected=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        rejects=rejects,
        cut=cut,
        split=split,
        **asdict(counts),
    )
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
    shard = to_entry(entry.pop("shard")) if entry["shard"] else entry.pop("shard")
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


@dataclass(slots=True)
class _Read:
    """Samples read so far, and which of them became no document."""

    num_samples: int = 0
    filtered: Counter[str] = field(default_factory=Counter[str])
    rejects: list[RejectedDocument] = field(default_factory=list[RejectedDocument])

    @property
    def num_told(self) -> int:
        """Samples that became documents."""
        return self.num_samples - self.filtered.total() - len(self.rejects)


def _tell_filler(unit: PackingUnit, rules: PackingRules, read: _Read) -> Iterator[Piece]:
    """Every sample of the unit's filler once, then all of them again with the next draw: only as far as rows ask for it."""
    if rules.filler is None:
        return
    for draw in range(rules.filler.draws):
        slices = [replace(run, draw=draw) for run in unit.filler]
        yield from _tell(slices, rules.filler, unit.validation, rules, read)


def _tell(
    slices: Iterable[Slice], telling: Telling, validation: bool, rules: PackingRules, read: _Read
) -> Iterator[Piece]:
    """The only place that catches a document's failure; everything else may stop the unit."""
    for origin, sample in read_samples(slices):
        read.num_samples += 1
        if reason := _filter_reason(sample, telling, validation, rules):
            read.filtered[reason] += 1
            continue
        try:
            document = telling.render(sample, origin.draw)
            if telling.long_documents == "leave" and len(document.token_ids) > rules.sequence_length:
                read.filtered["filler_unused"] += 1
                continue
            # Held in the vocabulary's own type: a quarter of the memory of int64.
            slim = replace(document, token_ids=document.token_ids.astype(rules.vocabulary.dtype))
            pieces = cut_to_fit(
                slim,
                sequence_length=rules.sequence_length,
                long_documents="reject" if telling.long_documents == "reject" else "split",
                dataset=origin.dataset,
            )
        except SampleError as error:
            read.rejects.append(RejectedDocument(sample.sample_id, origin.draw, error.reason, str(error)))
            continue
        yield from pieces


def _filter_reason(sample: TokenizedSample, telling: Telling, validation: bool, rules: PackingRules) -> str:
    if telling.splits and sample.split not in telling.splits:
        return "other_split"
    share = rules.validation_share
    if share and is_validation(sample, share, by=rules.validation_by) != validation:
        return "training_part" if validation else "validation_part"
    return ""


def _commit_rows(path: Path, rows: Sequence[PackedRow], rules: PackingRules) -> tuple[ShardEntry | None, str]:
    """The shard's entry and its sidecar's sha256; no files when there are no rows."""
    if not rows:
        return None, ""
    shard = write_packed_shard(path, rows, vocabulary=rules.vocabulary, sequence_length=rules.sequence_length)
    return shard, file_sha256(sidecar_path(path))


def _count_cuts(pieces: Iterable[Piece], sequence_length: int) -> tuple[int, int]:
    """Documents cut although they fit a row, and documents split because they do not."""
    first = [(len(piece), len(piece.document.token_ids)) for piece in pieces if piece.start == 0]
    cut = sum(length < whole <= sequence_length for length, whole in first)
    return cut, sum(whole > sequence_length for _, whole in first)


def _entry_bytes(result: UnitResult) -> bytes:
    entry: dict[str, Any] = asdict(result)
    return (json.dumps(entry, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
