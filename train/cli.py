"""``anygpt-train CONFIG [--set key=value]... [--limit STEP] [--dry-run]``: pretraining and instruction tuning alike.

The same command continues a run that was stopped, and does nothing once it is finished. Under torchrun, srun or the
``deepspeed`` launcher each process runs this command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.load import load_config, parse_args
from shards.errors import AnyGPTError
from train.checkpoint import newest_checkpoint, read_run_state
from train.config import TrainConfig
from train.plan import Plan, config_json, describe, make_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Train one run, or continue it; exit 0 done, 1 failed, 2 wrong usage or config."""
    # The `deepspeed` launcher adds --local_rank; the environment says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    args = parse_args("anygpt-train", "Train a backbone on packed shards; run again to continue.", words)
    try:
        config = load_config(args.config, TrainConfig, args.set)
        plan = make_plan(config, where=str(args.config))
        if args.dry_run:
            print(config_json(config) + describe(plan))
            return 0
        return _run(plan, args.limit)
    except AnyGPTError as error:
        print(f"anygpt-train: {error}", file=sys.stderr)
        return error.exit_code


def is_finished(plan: Plan) -> bool:
    """Whether the last step is done and the model exported."""
    checkpoint = newest_checkpoint(plan.checkpoints)
    if checkpoint is None or not plan.final.is_dir():
        return False
    run = read_run_state(checkpoint)
    return run.step >= plan.config.steps and dict(run.fingerprints) == plan.fingerprints_at(run.step)


def _run(plan: Plan, limit: int | None) -> int:
    if is_finished(plan):
        print(f"{plan.config.output}: all {plan.config.steps:,} steps are done, {plan.final} is there; nothing to do")
        return 0
    # Seconds of imports, which a wrong config should not have to wait for.
    from train.engine import stop_processes
    from train.trainer import train

    try:
        done = train(plan, limit=limit)
    finally:
        stop_processes()
    print(f"{plan.config.output}: {done:,} of {plan.config.steps:,} steps are done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
