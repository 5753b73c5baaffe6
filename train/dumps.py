"""The batch of a step that was left out, so that somebody can look at it: ``OUTPUT/dumps/step-N/``.

A small packed dataset with its sidecar, one row for each row of the global batch, in the order of their positions; so
``anygpt-inspect OUTPUT/dumps/step-N`` shows it as any other. Beside it ``step.json`` (why, loss, norm, learning rate; of
each row its position, dataset, row there, mean loss and sample ids) and ``losses.npy``, (rows, length) float32: the loss of
every target, 0 elsewhere.

Rows are read again, by position, from the datasets: what a step reads is a function of its number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from shards.manifest import Manifest, fingerprint, write_manifest
from shards.packed import FORMAT_VERSION, SIDECAR_SCHEMA, PackedRow, Placement, sidecar_path, write_packed_shard
from shards.reader import PackedDataset, open_packed
from shards.shard_cache import ShardCache
from shards.storage import arrow_source
from train.checkpoint import publish_folder
from train.collate import HostBatch
from train.guards import Judgement
from train.plan import Plan

FOLDER = "dumps"
_SHARD = "shard-00000.arrow"


def gather_losses(
    plan: Plan, batch: HostBatch, losses: torch.Tensor, *, step: int, total: Callable[[torch.Tensor], torch.Tensor]
) -> npt.NDArray[np.float32]:
    """(batch_rows, length) loss of every target of the global batch, by position. All processes must call.

    Args:
        losses: (targets,) of this process's rows, in their order.
        total: sums a tensor over the processes.
    """
    own = np.zeros((len(batch.positions), plan.sequence_length), np.float32)
    own[:, 1:][batch.is_target[:, 1:]] = losses.detach().float().cpu().numpy()
    whole = np.zeros((plan.config.batch_rows, plan.sequence_length), np.float32)
    whole[batch.positions - (step - 1) * plan.config.batch_rows] = own
    return total(torch.from_numpy(whole).to(losses.device)).cpu().numpy()


def dump_folder(output: Path, step: int) -> Path:
    """Where the batch of a step goes."""
    return output / FOLDER / f"step-{step}"


def write_dump(
    final: Path, plan: Plan, losses: npt.NDArray[np.float32], judged: Judgement, *, step: int, lr: float
) -> None:
    """Write the global batch of a step; for the first process.

    Args:
        losses: as :func:`gather_losses` gives them.
    """
    size = plan.config.batch_rows
    positions = np.arange((step - 1) * size, step * size)
    rows, places = _read_rows(plan, positions)
    facts: dict[str, Any] = {
        "step": step,
        "reason": judged.refused,
        "loss": _plain(judged.loss),
        "grad_norm": _plain(judged.grad_norm),
        "lr": lr,
        "rows": [
            place | _loss_of(row_losses) | {"samples": [placement.sample_id for placement in row.placements]}
            for place, row, row_losses in zip(places, rows, losses, strict=True)
        ],
    }

    def write(folder: Path) -> None:
        _write_dataset(folder, rows, plan, step)
        np.save(folder / "losses.npy", losses)
        (folder / "step.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    publish_folder(final, write)


def _read_rows(plan: Plan, positions: npt.NDArray[np.int64]) -> tuple[list[PackedRow], list[dict[str, Any]]]:
    """Rows with their placements, and where each is from."""
    numbers, wanted = plan.mixture.locate_many(positions)
    # Readers of their own: those of the run belong to the thread that fills the next batch.
    cache = ShardCache(plan.config.cache_dir, max_bytes=int(plan.config.cache_gib * (1 << 30)))
    opened = {number: open_packed(plan.datasets[number].folder, cache=cache) for number in set(numbers.tolist())}
    rows: list[PackedRow] = []
    places: list[dict[str, Any]] = []
    for position, number, row in zip(positions.tolist(), numbers.tolist(), wanted.tolist(), strict=True):
        rows.append(_packed_row(opened[number], row))
        places.append({"position": position, "dataset": plan.mixture.names[number], "row": row})
    cache.close()
    return rows, places


def _packed_row(dataset: PackedDataset, row: int) -> PackedRow:
    shards, local = dataset.locate([row])
    shard = dataset.folder / dataset.manifest.shards[int(shards[0])].path
    return PackedRow(
        dataset.gather([row])[0],
        int(dataset.num_tokens([row])[0]),
        tuple(dataset.document_starts(row).tolist()),
        tuple((start, stop) for start, stop in dataset.loss_spans(row).tolist()),
        tuple(_placements(sidecar_path(shard), int(local[0]))),
    )


def _placements(path: Path, row: int) -> Iterator[Placement]:
    """Of one row; none without a sidecar."""
    try:
        table = pq.read_table(arrow_source(path), filters=[("row", "=", row)])
    except FileNotFoundError:
        return
    for record in table.sort_by("position").to_pylist():
        yield Placement(**{name: record[name] for name in SIDECAR_SCHEMA.names if name not in ("row", "position")})


def _write_dataset(folder: Path, rows: list[PackedRow], plan: Plan, step: int) -> None:
    length = plan.sequence_length
    entry = write_packed_shard(folder / _SHARD, rows, vocabulary=plan.vocabulary, sequence_length=length)
    documents, tokens = Counter[str](), Counter[str]()
    for placement in (placement for row in rows for placement in row.placements):
        documents[placement.direction] += 1
        tokens[placement.direction] += placement.stop - placement.start
    extra = {
        "sequence_length": length,
        "fill": sum(row.num_tokens for row in rows) / (len(rows) * length),
        "tokens_by_direction": dict(tokens),
        "documents_by_direction": dict(documents),
    }
    name, digest = f"{plan.config.name}-step-{step}", fingerprint([plan.fingerprints, step])
    manifest = Manifest("packed", name, digest, (entry,), FORMAT_VERSION, vocabulary=plan.vocabulary, extra=extra)
    write_manifest(folder, manifest)


def _loss_of(losses: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Mean and largest of the losses of a row that are not 0."""
    found = losses[losses != 0]
    return (
        {"loss": _plain(float(found.mean())), "largest": _plain(float(found.max()))} if found.size else {"loss": None}
    )


def _plain(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
