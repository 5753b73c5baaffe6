"""Loss on rows that are never trained on: of each dataset of the mixture, those of ``NAME-validation`` beside it.

A fixed set of rows, drawn once from the run's seed and the dataset's name, from a few shards (so that of a dataset in a
bucket little is fetched); read once, kept in memory, the same every time and for any number of processes. Each process
computes its part, losses are summed over processes and divided by the number of all targets.

Such a dataset is no part of a mixture: a run that would train on one is refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shards.errors import ConfigError
from shards.manifest import MANIFEST_NAME
from shards.reader import PackedDataset, open_packed, same_vocabulary
from shards.shard_cache import ShardCache
from train.collate import Attention, HostBatch, allocate, document_positions, mark_targets, micro_batches
from train.engine import Engine, Processes
from train.loss_table import Axes, LossTable
from train.masking import Masking
from train.metrics import ValidationFigures
from train.objectives import Objective
from train.plan import Plan

SUFFIX = "-validation"
_SHARDS = 8
"""Rows of a dataset are from this many of its files at most."""

Row = tuple[int, int]
"""Number of a dataset, and a row of it."""


def refuse_validation_rows(plan: Plan) -> None:
    """Raise ``ConfigError`` if the mixture has a dataset that validation is for, and the config does not allow it."""
    pairs = zip(plan.mixture.names, plan.datasets, strict=True)
    found = [name for name, dataset in pairs if name.endswith(SUFFIX) or dataset.folder.name.endswith(SUFFIX)]
    if found and not plan.config.validation.allow_training:
        raise ConfigError(
            f"{plan.config.mixture}: expected datasets to train on, found {', '.join(found)}, kept apart "
            "to measure what was not learnt; leave them out, or set validation.allow_training = true"
        )


class Validation:
    """The rows of one process, in memory; :meth:`measure` any number of times."""

    def __init__(
        self,
        plan: Plan,
        objective: Objective,
        network: nn.Module,
        engine: Engine,
        processes: Processes,
        *,
        micro_rows: int,
    ) -> None:
        self._plan, self._network, self._engine, self._processes = plan, network, engine, processes
        self._masking, self._micro_rows = objective.masking, micro_rows
        self._modality_of_id = objective.loss_groups.index
        cache = ShardCache(plan.config.cache_dir, max_bytes=int(plan.config.cache_gib * (1 << 30)))
        datasets = held_out(plan, cache) if plan.config.validation.every else {}
        axes = Axes(tuple(datasets), ("all",), tuple(objective.loss_groups.names))
        self._table = LossTable(axes, processes.device)
        rows = [
            (number, row)
            for number, (name, dataset) in enumerate(datasets.items())
            for row in draw_rows(dataset, plan.config.validation.rows, key=f"{plan.config.seed} {name}")
        ]
        self._batch: HostBatch | None = None
        if rows:
            shares = share_out(rows, processes, multiple=micro_rows)
            self._batch = _read(list(datasets.values()), shares, objective.attention, self._masking)
        cache.close()

    def is_due(self, step: int) -> bool:
        """Whether to measure after a step."""
        every = self._plan.config.validation.every
        return self._batch is not None and every > 0 and (step % every == 0 or step == self._plan.config.steps)

    @torch.no_grad()
    def measure(self, step: int) -> ValidationFigures:
        """Losses of the weights as they are. All processes must call."""
        assert self._batch is not None, "measured when it is due"
        start, batch, table = time.perf_counter(), self._batch, self._table
        rows, places = np.nonzero(batch.is_target[:, 1:])
        modalities = self._modality_of_id[batch.token_ids[rows, places + 1]]
        self._network.eval()
        losses = [
            self._engine.forward(micro)[1]
            for micro in micro_batches(batch, self._micro_rows, self._processes.device, masking=self._masking)
        ]
        self._network.train()
        table.clear()
        table.add(torch.cat(losses), table.cells_of(batch.datasets[rows], np.zeros_like(rows), modalities))
        found = table.unpack(self._engine.sum(table.packed()))
        return ValidationFigures(
            step=step,
            loss=found.mean,
            by_modality=found.means(2),
            by_dataset=found.means(0),
            targets=found.targets,
            seconds=time.perf_counter() - start,
        )


def held_out(plan: Plan, cache: ShardCache) -> dict[str, PackedDataset]:
    """Validation datasets that are there, by the names of those that are trained on.

    Raises:
        FingerprintMismatch: one has another vocabulary.
        ConfigError: one has rows of another length.
    """
    found: dict[str, PackedDataset] = {}
    for name, trained in zip(plan.mixture.names, plan.datasets, strict=True):
        folder = trained.folder.with_name(trained.folder.name + SUFFIX)
        if trained.folder.name.endswith(SUFFIX) or not (folder / MANIFEST_NAME).is_file():
            continue
        dataset = open_packed(folder, cache=cache)
        same_vocabulary({name: trained, name + SUFFIX: dataset})
        if dataset.sequence_length != plan.sequence_length:
            raise ConfigError(
                f"{folder}: expected rows of {plan.sequence_length}, found {dataset.sequence_length}; "
                "pack both again, or set validation.every = 0"
            )
        if dataset.num_rows:
            found[name] = dataset
    return found


def draw_rows(dataset: PackedDataset, count: int, *, key: str) -> list[int]:
    """``count`` rows of a dataset, ascending, from a few of its shards; all where there are fewer. Decided by the key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"validation").digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    sizes = np.array([shard.num_rows for shard in dataset.manifest.shards])
    stops = np.cumsum(sizes)
    order = random.permutation(len(sizes))
    # As many shards as have enough rows, and no fewer than the usual few.
    enough = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
    chosen = order[: max(_SHARDS, enough)]
    rows = np.concatenate([np.arange(int(stops[shard] - sizes[shard]), int(stops[shard])) for shard in chosen.tolist()])
    return sorted(random.permutation(rows)[:count].tolist())


def share_out(rows: Sequence[Row], processes: Processes, *, multiple: int) -> list[tuple[Row, bool]]:
    """A process's rows, and whether each counts; every process has as many, a multiple of what one forward pass takes."""
    size = -(-len(rows) // (processes.world_size * multiple)) * multiple
    own = [(row, True) for row in rows[processes.rank :: processes.world_size]]
    return own + [(rows[0], False)] * (size - len(own))


def _read(
    datasets: Sequence[PackedDataset],
    rows: Sequence[tuple[Row, bool]],
    attention: Attention,
    masking: Masking | None,
) -> HostBatch:
    length, dtype = datasets[0].sequence_length, datasets[0].vocabulary.dtype
    batch = allocate(len(rows), length, dtype, attention, hides=masking is not None)
    for place, ((number, row), counts) in enumerate(rows):
        dataset = datasets[number]
        dataset.gather([row], batch.token_ids[place : place + 1])
        batch.datasets[place], batch.positions[place] = number, row
        starts: npt.NDArray[np.int32] = dataset.document_starts(row)
        if masking is not None and batch.is_hidden is not None:
            batch.is_target[place], batch.is_hidden[place] = masking.mark(batch.token_ids[place], row)
        else:
            mark_targets(batch.is_target[place], dataset.loss_spans(row), starts)
        if batch.position_ids is not None:
            batch.position_ids[place] = document_positions(starts, length)
        if not counts:
            batch.is_target[place] = False
    return batch
