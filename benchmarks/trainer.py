"""The trainer against a bare torch loop: the same model, rows, dtype and optimizer; float32 master weights in both.

Ours: stream, collation, DeepSpeed ZeRO-2, losses by modality. Bare: the rows are already tensors, and the loop is
forward, backward, clip, AdamW. Steps of the two take turns, so that a busy machine slows both; the overhead is the
median over rounds of the ratio of two neighbouring steps.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from shards.manifest import Manifest, write_manifest
from shards.mixed_rows import MixedRows
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out
from train.backbone import build_backbone
from train.collate import MicroBatch, allocate, fill, micro_batches
from train.config import TrainConfig
from train.plan import Plan, make_plan
from train.stream import RowStream
from train.trainer import start, train_step

LENGTH, ROWS, BATCH_ROWS, DOCUMENT = 512, 64, 4, 60
ROUNDS, WARM_UP = 30, 3
LR = 1e-3
MEDIA = [{"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1}]


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    print(json.dumps(measure()))


def measure() -> Mapping[str, float]:
    """Print the table; return ``overhead`` (0.02: two per cent slower than bare torch) and ``data_wait``."""
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(Path(folder))
        trainer = start(plan)
        bare = _bare_loop(plan)
        with RowStream(plan.mixture, plan.datasets, batch_rows=BATCH_ROWS, attention="document") as stream:
            for _ in range(WARM_UP):
                bare(), train_step(trainer, stream.next(), LR)
            stream.wait_s, ours_s, bare_s = 0.0, [], []
            for _ in range(ROUNDS):
                bare_s.append(_seconds(bare))
                ours_s.append(_seconds(lambda: train_step(trainer, stream.next(), LR)))
            data_wait = stream.wait_s / sum(ours_s)
    overhead = statistics.median(ours / other for ours, other in zip(ours_s, bare_s, strict=True)) - 1
    slots = BATCH_ROWS * LENGTH
    print(f"{plan.shape.num_parameters:,} parameters, {slots} ids a step, {torch.get_num_threads()} threads, bf16")
    print(f"{'loop':<22}{'median s/step':>14}{'ids/s':>10}")
    for name, seconds in (("bare torch", bare_s), ("ours, DeepSpeed ZeRO-2", ours_s)):
        median = statistics.median(seconds)
        print(f"{name:<22}{median:>14.4f}{slots / median:>10,.0f}")
    return {"overhead": round(overhead, 4), "data_wait": round(data_wait, 5)}


def _bare_loop(plan: Plan) -> Callable[[], None]:
    """One step of the least there is to do, on rows that are in memory."""
    model = build_backbone(plan)
    masters = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(masters, lr=LR, fused=True)
    batches = [_batch(plan, number) for number in range(4)]
    turn = iter(range(1 << 30))

    def step() -> None:
        batch, targets = batches[next(turn) % len(batches)]
        loss, _ = model(batch)
        (loss / targets).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)

    return step


def _batch(plan: Plan, number: int) -> tuple[MicroBatch, int]:
    host = allocate(BATCH_ROWS, LENGTH, plan.vocabulary.dtype, "document")
    mixed = MixedRows(plan.mixture, plan.datasets)
    fill(host, mixed, mixed.plan(plan.mixture.batch(number, BATCH_ROWS)))
    return next(micro_batches(host, BATCH_ROWS, torch.device("cpu"))), host.num_targets


def _seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _plan(folder: Path) -> Plan:
    vocabulary = lay_out("bench", text_size=2000, markers=[], media=MEDIA)
    for number, name in enumerate(("a", "b")):
        _write_dataset(folder / name, vocabulary, np.random.default_rng(number))
    (folder / "mixture.toml").write_text("[shares]\na = 0.5\nb = 0.5\n", encoding="utf-8")
    paths = {"output": folder / "run", "data": folder, "mixture": folder / "mixture.toml"}
    config = TrainConfig.model_validate(paths | {"steps": 1000, "batch_rows": BATCH_ROWS})
    return make_plan(config, where="benchmarks/trainer.py")


def _write_dataset(folder: Path, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    starts = tuple(range(0, LENGTH, DOCUMENT))
    rows = [PackedRow(rng.integers(3, vocabulary.size, LENGTH), LENGTH, starts, ((0, LENGTH),)) for _ in range(ROWS)]
    entry = write_packed_shard(folder / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=LENGTH)
    extra = {"sequence_length": LENGTH}
    manifest = Manifest("packed", folder.name, "0" * 16, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder, manifest)


if __name__ == "__main__":
    main()
