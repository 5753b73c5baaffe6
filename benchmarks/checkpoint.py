"""What saving costs the training: how long a step is held up, beside how long the whole save takes.

A backbone of 36 M parameters on this machine (440 MB of float32 master weights and moments), one process, DeepSpeed
ZeRO-2 as in a run. Every round saves twice after a step: once waiting until the checkpoint is published (synchronous), once
going on at once (asynchronous): the next step's passes run beside the copy, its update waits for it. ``stall`` is the time
the training is held up, at both points, over the synchronous time, median over rounds; ``beside`` how much slower that step
is, with copy and writing on the same cores, where a GPU would have its own. Reading back, too, is timed.
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
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.vocabulary import lay_out
from train.checkpoint import newest_checkpoint
from train.checkpoint_run import take_up
from train.config import TrainConfig
from train.plan import Plan, make_plan
from train.stream import RowStream
from train.trainer import Trainer, start, train_step

LENGTH, ROWS, BATCH_ROWS = 128, 8, 1
MODEL = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "intermediate_size": 1408}
MEDIA = [{"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1}]
ROUNDS, LR = 5, 1e-4


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    print(json.dumps(measure()))


def measure() -> Mapping[str, float]:
    """Print the table; return ``stall`` (0.05: a step waits for 5 % of what a synchronous save takes) and more."""
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(Path(folder))
        trainer = start(plan)
        with RowStream(plan.mixture, plan.datasets, batch_rows=BATCH_ROWS, attention="document") as stream:

            def step() -> object:
                return train_step(trainer, stream.next(), LR)

            for _ in range(2):
                step()
            times = _rounds(trainer, step)
        checkpoint = newest_checkpoint(plan.checkpoints)
        assert checkpoint is not None
        read_s = _seconds(lambda: take_up(checkpoint, trainer.engine, trainer.processes))
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
    median = {name: statistics.median(values) for name, values in times.items()}
    stalls = [held / whole for held, whole in zip(times["asynchronous"], times["synchronous"], strict=True)]
    slower = [beside / alone for beside, alone in zip(times["step beside"], times["step"], strict=True)]
    print(
        f"{plan.shape.num_parameters:,} parameters, {size / 1e6:,.0f} MB a checkpoint, {torch.get_num_threads()} threads"
    )
    print(f"{'what waits':<22}{'median s':>10}")
    for name in ("synchronous", "asynchronous", "in the background", "step", "step beside"):
        print(f"{name:<22}{median[name]:>10.3f}")
    print(f"{'reading back':<22}{read_s:>10.3f}")
    return {
        "stall": round(statistics.median(stalls), 4),
        "stall_s": round(median["asynchronous"], 4),
        "synchronous_s": round(median["synchronous"], 4),
        "beside": round(statistics.median(slower) - 1, 4),
        "gb_per_s": round(size / 1e9 / median["synchronous"], 3),
        "read_s": round(read_s, 3),
    }


def _rounds(trainer: Trainer, step: Callable[[], object]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {
        name: [] for name in ("synchronous", "asynchronous", "in the background", "step", "step beside")
    }
    reports: list[dict[str, float]] = []
    with trainer.saver as saver:
        # The first save gets the host memory; every later one finds it there.
        saver.save(1)
        saver.wait()
        saver.log(lambda _, **fields: None)
        for number in range(ROUNDS):
            times["step"].append(_seconds(step))
            times["synchronous"].append(_seconds(lambda number=number: (saver.save(10 * number + 10), saver.wait())))
            step()
            saver.save(10 * number + 20)
            times["step beside"].append(_seconds(step))
            saver.wait()
            saver.log(lambda _, **fields: reports.append(fields))
            times["asynchronous"].append(reports[-1]["stall_s"])
            times["in the background"].append(reports[-1]["seconds"])
    return times


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _plan(folder: Path) -> Plan:
    vocabulary = lay_out("bench", text_size=2000, markers=[], media=MEDIA)
    rng = np.random.default_rng(0)
    rows = [PackedRow(rng.integers(3, vocabulary.size, LENGTH), LENGTH, (0,), ((0, LENGTH),)) for _ in range(ROWS)]
    entry = write_packed_shard(folder / "a" / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=LENGTH)
    extra = {"sequence_length": LENGTH}
    manifest = Manifest("packed", "a", "0" * 16, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder / "a", manifest)
    (folder / "mixture.toml").write_text("[shares]\na = 1.0\n", encoding="utf-8")
    paths = {"output": folder / "run", "data": folder, "mixture": folder / "mixture.toml"}
    config = TrainConfig.model_validate(paths | {"steps": 1000, "batch_rows": BATCH_ROWS, "model": MODEL})
    return make_plan(config, where="benchmarks/checkpoint.py")


if __name__ == "__main__":
    main()
