"""The trainer on one GPU: LLaMA-2-7B with random weights, 53,516 ids, packed rows of 4,500; tokens a second, MFU, memory.

The real thing but for the data's content: packed shards, stream, collation, the plain-torch engine with its AdamW on
float32 masters, losses by modality, guard. Each step is a real update. Documents apart and whole rows take turns.

What fits on one device of 139 GiB, in GiB for 6.92 G parameters: masters and moments 77.3, bfloat16 weights 12.9, gradients
12.9 in bfloat16 or 25.8 in float32; so 36 or 23 remain for activations. A layer keeps about 0.8 for one row, or 0.035 if it
is computed twice (trainer-facts, by formula), the loss 2.5. The defaults, one row a pass, sums in bfloat16 and half of the
layers computed twice, need some 17 of these 36; ``--recompute 0.25`` is faster and needs 23 or more.

MFU in the PaLM convention (every id of a row meets every id) against the dense bfloat16 peak, also where documents are
apart and most of that attention is not computed; beside it, with causal attention. Recomputed layers are not counted.

    python -m benchmarks.gpu_trainer                          # defaults
    python -m benchmarks.gpu_trainer --compile --recompute 0.25 --cudnn --profile

It needs what the trainer needs, but neither DeepSpeed nor Ray. Without a GPU it says so and measures nothing; ``--small``
runs every line of it on a tiny network on whatever device there is, to prove the script before a machine is paid for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Weights, moments and activations fill the device to the last gigabytes; without it, gaps between them would be lost.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch

from shards.errors import ConfigError
from shards.manifest import Manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out
from train.config import TrainConfig
from train.devices import find_device
from train.flops import flops_per_token
from train.plan import Plan, make_plan
from train.shape import Shape
from train.stream import RowStream
from train.trainer import Trainer, start, train_step

WARM_UP = 2
MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 1024, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 2048, "levels": 4},
]


@dataclass(frozen=True, slots=True)
class Size:
    """Of the run."""

    model: dict[str, int]
    num_ids: int
    length: int
    documents: tuple[int, int]
    """Shortest and longest, in ids; as many short ones as long ones by orders of magnitude."""

    passes: int
    steps: int


FULL = Size(
    {
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "intermediate_size": 11_008,
        # A multiple of 128: rows of logits start where the matrix units want them.
        "pad_vocabulary_to": 128,
    },
    num_ids=53_516,
    length=4500,
    documents=(60, 2000),
    passes=16,
    steps=5,
)
SMALL = Size(
    {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "pad_vocabulary_to": 64},
    num_ids=17_700,
    length=120,
    documents=(10, 60),
    passes=2,
    steps=2,
)


def main(argv: Sequence[str] = ()) -> None:
    """Print a table, then the figures as one JSON object."""
    args = _parse(argv)
    if not torch.cuda.is_available() and not args.small:
        print("no GPU here: nothing measured (python -m benchmarks.gpu_trainer --small proves that the script runs)")
        print(json.dumps({"measured": False}))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SMALL if args.small else FULL
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(Path(folder), size, args)
        begin = time.perf_counter()
        # Seven thousand million random numbers are a matter of a second on the device, of minutes on a host.
        with device if args.init == "device" else nullcontext():
            trainer = start(plan)
        _synchronize()
        print(f"{_name(device)}, torch {torch.__version__}; ready after {time.perf_counter() - begin:.0f} s")
        figures = _measure(trainer, size, args)
    print(json.dumps({"device": _name(device), "arguments": vars(args)} | figures))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The trainer on one GPU.")
    parser.add_argument("--small", action="store_true", help="tiny network, any device: does the script run")
    parser.add_argument("--steps", type=int, help="measured updates of each kind of attention")
    parser.add_argument("--passes", type=int, help="passes of an update")
    parser.add_argument("--rows", type=int, default=1, help="rows of a pass")
    parser.add_argument("--recompute", type=float, default=0.5, help="part of the layers that are computed twice")
    parser.add_argument("--gradients", choices=("bf16", "fp32"), default="bf16", help="in what passes are added up")
    parser.add_argument("--attention", choices=("row", "document"), action="append", help="both by default")
    parser.add_argument("--kernel", default="auto", help="engine.attention_kernel")
    parser.add_argument("--head-chunk", type=int, default=2048, help="engine.head_chunk")
    parser.add_argument("--cudnn", action="store_true", help="engine.cudnn_attention")
    parser.add_argument("--compile", action="store_true", help="engine.compile")
    parser.add_argument("--liger", action="store_true", help="engine.liger")
    parser.add_argument("--init", choices=("device", "host"), default="device", help="where weights are drawn")
    parser.add_argument("--profile", action="store_true", help="print where the time of one more update goes")
    return parser.parse_args(list(argv))


def _measure(trainer: Trainer, size: Size, args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        kinds = args.attention or ["row", "document"]
        streams = {kind: stack.enter_context(_stream(trainer.plan, kind)) for kind in kinds}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(WARM_UP + (args.steps or size.steps)):
            for kind in kinds:
                if number == WARM_UP:
                    streams[kind].wait_s = 0.0
                taken = _seconds(lambda kind=kind: train_step(trainer, streams[kind].next(), 1e-5))
                if number >= WARM_UP:
                    seconds[kind].append(taken)
        print(f"{'attention':<12}{'s/step':>9}{'tokens/s':>12}{'MFU':>8}{'causal':>8}{'data wait':>11}")
        for kind in kinds:
            found = _figures(trainer.plan, seconds[kind]) | {
                "data_wait": round(streams[kind].wait_s / sum(seconds[kind]), 5)
            }
            figures[kind] = found
            print(
                f"{kind:<12}{found['seconds']:>9.3f}{found['tokens_per_s']:>12,.0f}{found['mfu']:>8.1%}"
                f"{found['mfu_causal']:>8.1%}{found['data_wait']:>11.2%}"
            )
        if args.profile:
            _profile(lambda: train_step(trainer, streams[kinds[0]].next(), 1e-5))
    if torch.cuda.is_available():
        figures["memory_gib"] = round(torch.cuda.max_memory_reserved() / (1 << 30), 2)
        figures["memory_used_gib"] = round(torch.cuda.max_memory_allocated() / (1 << 30), 2)
        print(
            f"memory: {figures['memory_used_gib']} GiB used at most, {figures['memory_gib']} GiB taken from the device"
        )
    return figures


def _figures(plan: Plan, seconds: list[float]) -> dict[str, float]:
    """Medians; the utilisation is 0 on a device whose peak nobody wrote down."""
    assert isinstance(plan.shape, Shape), "a language model"
    median = statistics.median(seconds)
    tokens_per_s = plan.config.batch_rows * plan.sequence_length / median
    peak = _peak()
    flops = (flops_per_token(plan.shape, plan.sequence_length, causal=causal) for causal in (False, True))
    dense, causal = (tokens_per_s * each / peak if peak else 0.0 for each in flops)
    return {
        "seconds": round(median, 4),
        "tokens_per_s": round(tokens_per_s, 1),
        "mfu": round(dense, 4),
        "mfu_causal": round(causal, 4),
    }


def _peak() -> float:
    if not torch.cuda.is_available():
        return 0.0
    try:
        return find_device(torch.cuda.get_device_name())[1].peak
    except ConfigError:
        return 0.0


def _profile(step: Callable[[], object]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        _synchronize()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70))


def _seconds(step: Callable[[], object]) -> float:
    _synchronize()
    begin = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - begin


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def _stream(plan: Plan, attention: Any) -> RowStream:
    return RowStream(plan.mixture, plan.datasets, batch_rows=plan.config.batch_rows, attention=attention)


def _plan(folder: Path, size: Size, args: argparse.Namespace) -> Plan:
    text = size.num_ids - lay_out("bench", text_size=1000, markers=[], media=MEDIA).size + 1000
    vocabulary = lay_out("bench", text_size=text, markers=[], media=MEDIA)
    rows = args.rows * (args.passes or size.passes)
    _write_dataset(folder / "random", size, vocabulary, num_rows=2 * rows)
    (folder / "mixture.toml").write_text("[shares]\nrandom = 1.0\n", encoding="utf-8")
    engine = {
        "kind": "torch",
        "dtype": "bf16",
        "micro_batch_rows": args.rows,
        "gradients": args.gradients,
        "activation_checkpointing": args.recompute,
        "attention_kernel": args.kernel,
        "cudnn_attention": args.cudnn,
        "compile": args.compile,
        "liger": args.liger,
        "head_chunk": args.head_chunk,
    }
    config = TrainConfig.model_validate(
        {
            "output": folder / "run",
            "data": folder,
            "mixture": folder / "mixture.toml",
            "steps": 1000,
            "batch_rows": rows,
            "model": size.model,
            "engine": engine,
            "checkpoint": {"on_signal": "die"},
        }
    )
    return make_plan(config, where="benchmarks/gpu_trainer.py")


def _write_dataset(folder: Path, size: Size, vocabulary: Vocabulary, *, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    rows = [_row(rng, size, vocabulary) for _ in range(num_rows)]
    entry = write_packed_shard(folder / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=size.length)
    extra = {"sequence_length": size.length}
    manifest = Manifest("packed", folder.name, "0" * 16, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder, manifest)


def _row(rng: np.random.Generator, size: Size, vocabulary: Vocabulary) -> PackedRow:
    shortest, longest = np.log(size.documents)
    lengths = np.exp(rng.uniform(shortest, longest, size.length // size.documents[0] + 1)).astype(np.int64)
    starts = np.cumsum(np.append(0, lengths))
    starts = starts[starts < size.length]
    ids = rng.integers(3, vocabulary.size, size.length)
    return PackedRow(ids, size.length, tuple(starts.tolist()), ((0, size.length),))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
