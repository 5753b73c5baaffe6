"""``anygpt-train CONFIG [--set key=value]... [--limit STEP] [--dry-run | --preflight | --export STEP]``: every stage.

The same command continues a run that was stopped, and does nothing once it is finished. CONFIG may be a curriculum, whose
stages are such runs (:mod:`train.stages`). Under torchrun, srun or the ``deepspeed`` launcher each process runs this.

``--dry-run`` prints the plan and the bill, whether data and weights are there yet or not; ``--gpus N --kind H200 --hourly 3
--mfu 0.5`` say for which machines. ``--preflight`` looks at everything a run needs and takes one step that is thrown away.

``--export latest`` writes the newest checkpoint, ``--export 200`` that of a step, as a Hugging Face folder; also while the
run goes on, on any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config, parse_args
from shards.errors import AnyGPTError, ConfigError
from train.bill import USUAL_MFU
from train.bill_text import format_bill, format_outline, format_sum
from train.config import TrainConfig
from train.outline import outline_run
from train.plan import Plan, config_json, describe, make_plan
from train.run import is_finished, leave, preflight, run
from train.stages import is_curriculum, load_stages, run_stages

__all__ = ["is_finished", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train one run or a curriculum, or continue it; exit 0 done, 1 failed, 2 wrong usage or config."""
    # The `deepspeed` launcher adds --local_rank; the environment says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    description = "Train a backbone on packed shards; run again to continue."
    args = parse_args("anygpt-train", description, words, add=_add_options)
    try:
        return _curriculum(args) if is_curriculum(args.config) else _one_run(args)
    except AnyGPTError as error:
        print(f"anygpt-train: {error}", file=sys.stderr)
        return error.exit_code


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--export", metavar="STEP", help="write a checkpoint (a step, or latest) as a model others load"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="of --export; OUTPUT/exports/step-N if not given")
    parser.add_argument("--preflight", action="store_true", help="look at all a run needs, take one step, keep nothing")
    bill = parser.add_argument_group("the bill", "with --dry-run")
    bill.add_argument("--gpus", type=int, metavar="N", help="on so many GPUs")
    bill.add_argument(
        "--kind", metavar="DEVICE", help="a device of configs/rates.toml, or cpu; all of them if not given"
    )
    bill.add_argument("--hourly", type=float, metavar="USD", help="price of one device for an hour")
    bill.add_argument("--mfu", type=float, default=USUAL_MFU, help="expected part of the peak (%(default)s)")


def _one_run(args: argparse.Namespace) -> int:
    config = load_config(args.config, TrainConfig, args.set)
    if args.dry_run:
        print(_dry_run(config, args, where=args.config))
        return 0
    plan = make_plan(config, where=str(args.config))
    if args.export is not None:
        print(f"exported to {_export(plan, args.export, args.to)}")
        return 0
    try:
        if args.preflight:
            preflight(plan, print)
        else:
            run(plan, print, limit=args.limit)
    finally:
        _leave()
    return 0


def _export(plan: Plan, step: str, folder: Path | None) -> Path:
    if not (step.isdecimal() or step == "latest"):
        raise ConfigError(f"--export: expected the number of a step, or latest, found {step!r}")
    from train.export import export_checkpoint  # torch and transformers, which a wrong word should not have to wait for

    return export_checkpoint(plan, step=None if step == "latest" else int(step), folder=folder)


def _curriculum(args: argparse.Namespace) -> int:
    stages = load_stages(args.config, args.set)
    if args.export is not None:
        raise ConfigError(
            f"--export: expected the config of one run, found the curriculum {args.config}; give a stage's"
        )
    if args.dry_run:
        for number, stage in enumerate(stages, start=1):
            print(f"stage {number} of {len(stages)}: {stage.path}" + (f", from {stage.after}" if stage.after else ""))
            print(_dry_run(stage.config, args, where=stage.path) + "\n")
        outlines = [outline_run(stage.config, where=str(stage.path)) for stage in stages]
        print(format_sum(outlines, gpus=args.gpus, kind=args.kind, mfu=args.mfu, usd_per_hour=args.hourly))
        return 0
    try:
        run_stages(stages, print, limit=args.limit, only_look=args.preflight)
    finally:
        _leave()
    return 0


def _leave() -> None:
    """Leave the other processes; a command that found nothing to do has not met them, and need not import torch."""
    if "train.processes" in sys.modules:
        leave()


def _dry_run(config: TrainConfig, args: argparse.Namespace, *, where: Path) -> str:
    outline = outline_run(config, where=str(where))
    plan = format_outline(outline) if outline.missing else describe(make_plan(config, where=str(where)))
    bill = format_bill(outline, gpus=args.gpus, kind=args.kind, mfu=args.mfu, usd_per_hour=args.hourly)
    return config_json(config) + plan + ("\n" + bill if bill else "")


if __name__ == "__main__":
    sys.exit(main())
