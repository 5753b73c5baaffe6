"""The trainer against a bare torch loop: the same model, rows, passes, dtype and optimizer; float32 masters in both.

Ours: stream, collation, an engine, losses by modality. Bare: the batches are already tensors, and the loop is forward and
backward pass by pass (torch adds up the gradients in the dtype of the weights), clip, AdamW, weights from masters. Steps of
the loops take turns, so that a busy machine slows all of them; the overhead is the median over rounds of the ratio of two
neighbouring steps, by the clock and by the CPU time of the process, which others on the machine disturb less.

``large`` is a step as a run has it, small in the model but with its vocabulary; ``small`` holds so few ids that what
is done once a step weighs the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

LR, ROWS_OF_A_DATASET, WARM_UP = 1e-3, 64, 2
ENGINES = ("torch", "deepspeed")


@dataclass(frozen=True, slots=True)
class Case:
    """What a step holds."""

    text_size: int
    length: int
    batch_rows: int
    micro_rows: int
    document: int
    """Ids of a document."""

    rounds: int


CASES = {
    "large": Case(text_size=32_000, length=1024, batch_rows=4, micro_rows=1, document=200, rounds=9),
    "small": Case(text_size=2000, length=512, batch_rows=4, micro_rows=4, document=60, rounds=30),
}
MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 1024, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 2048, "levels": 4},
]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one step."""

    wall: float
    cpu: float


def main(argv: Sequence[str] = ()) -> None:
    """Print a table of every case, then the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", choices=CASES, action="append", help="may be repeated; all by default")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args(list(argv))
    print(json.dumps({name: measure(CASES[name], rounds=args.rounds) for name in args.case or CASES}))


def measure(case: Case, *, rounds: int | None = None) -> Mapping[str, float]:
    """Print the table; return ``overhead``, ``overhead_cpu`` and ``data_wait`` of each engine.

    An overhead of 0.02 is two per cent slower than bare torch; a wait is a part of the step.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in ("bare", *ENGINES)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plans = {kind: _plan(Path(folder), case, kind) for kind in ENGINES}
        steps: dict[str, Callable[[], object]] = {"bare": _bare_loop(plans["torch"], case)}
        streams: dict[str, RowStream] = {}
        for kind, plan in plans.items():
            streams[kind] = stack.enter_context(_stream(plan))
            steps[kind] = _our_loop(plan, streams[kind])
        for number in range(WARM_UP + (rounds or case.rounds)):
            if number == WARM_UP:
                for stream in streams.values():
                    stream.wait_s = 0.0
                seconds = {name: [] for name in seconds}
            for name in sorted(steps, reverse=bool(number % 2)):  # nobody always goes first
                seconds[name].append(_seconds(steps[name]))
    _print(plans["torch"], case, seconds)
    figures: dict[str, float] = {}
    for kind in ENGINES:
        figures[f"overhead_{kind}"] = _overhead(seconds, kind, "wall")
        figures[f"overhead_cpu_{kind}"] = _overhead(seconds, kind, "cpu")
        figures[f"data_wait_{kind}"] = round(streams[kind].wait_s / sum(one.wall for one in seconds[kind]), 5)
    return figures


def _overhead(seconds: Mapping[str, Sequence[Seconds]], kind: str, clock: str) -> float:
    pairs = zip(seconds[kind], seconds["bare"], strict=True)
    return round(statistics.median(getattr(ours, clock) / getattr(bare, clock) for ours, bare in pairs) - 1, 4)


def _print(plan: Plan, case: Case, seconds: Mapping[str, Sequence[Seconds]]) -> None:
    slots = case.batch_rows * case.length
    passes = case.batch_rows // case.micro_rows
    print(
        f"{plan.shape.num_parameters:,} parameters, {plan.vocabulary.size:,} ids, {slots:,} ids a step in {passes} "
        f"passes, documents of {case.document}, {torch.get_num_threads()} threads, bf16, {len(seconds['bare'])} rounds"
    )
    print(f"{'loop':<12}{'median s/step':>14}{'least':>9}{'CPU s/step':>12}{'least':>9}{'ids/s':>10}")
    for name, found in seconds.items():
        wall, cpu = ([getattr(one, clock) for one in found] for clock in ("wall", "cpu"))
        middle = statistics.median(wall)
        print(
            f"{name:<12}{middle:>14.4f}{min(wall):>9.4f}{statistics.median(cpu):>12.4f}{min(cpu):>9.4f}"
            f"{slots / middle:>10,.0f}"
        )


def _our_loop(plan: Plan, stream: RowStream) -> Callable[[], object]:
    trainer = start(plan)
    return lambda: train_step(trainer, stream.next(), LR)


def _stream(plan: Plan) -> RowStream:
    return RowStream(plan.mixture, plan.datasets, batch_rows=plan.config.batch_rows, attention="document")


def _bare_loop(plan: Plan, case: Case) -> Callable[[], None]:
    """One step of the least there is to do, on rows that are in memory."""
    model = build_backbone(plan)
    masters = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(masters, lr=LR, fused=True)
    batches = [_batch(plan, case, number) for number in range(4)]
    turn = iter(range(1 << 30))

    def step() -> None:
        passes, targets = batches[next(turn) % len(batches)]
        for micro in passes:
            loss, _ = model(micro)
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


def _batch(plan: Plan, case: Case, number: int) -> tuple[list[MicroBatch], int]:
    host = allocate(case.batch_rows, case.length, plan.vocabulary.dtype, "document")
    mixed = MixedRows(plan.mixture, plan.datasets)
    fill(host, mixed, mixed.plan(plan.mixture.batch(number, case.batch_rows)))
    return list(micro_batches(host, case.micro_rows, torch.device("cpu"))), host.num_targets


def _seconds(step: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _plan(folder: Path, case: Case, kind: str) -> Plan:
    vocabulary = lay_out("bench", text_size=case.text_size, markers=[], media=MEDIA)
    for number, name in enumerate(("a", "b")):
        if not (folder / name).exists():
            _write_dataset(folder / name, case, vocabulary, np.random.default_rng(number))
    (folder / "mixture.toml").write_text("[shares]\na = 0.5\nb = 0.5\n", encoding="utf-8")
    paths: dict[str, Any] = {"output": folder / kind, "data": folder, "mixture": folder / "mixture.toml"}
    # All three loops add up the passes in bf16.
    engine = {"kind": kind, "micro_batch_rows": case.micro_rows, "gradients": "bf16"}
    numbers = {"steps": 1000, "batch_rows": case.batch_rows, "engine": engine}
    return make_plan(TrainConfig.model_validate(paths | numbers), where="benchmarks/trainer.py")


def _write_dataset(folder: Path, case: Case, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
    length, starts = case.length, tuple(range(0, case.length, case.document))
    ids = [rng.integers(3, vocabulary.size, length) for _ in range(ROWS_OF_A_DATASET)]
    rows = [PackedRow(row, length, starts, ((0, length),)) for row in ids]
    entry = write_packed_shard(folder / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=length)
    extra = {"sequence_length": length}
    manifest = Manifest("packed", folder.name, "0" * 16, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder, manifest)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
