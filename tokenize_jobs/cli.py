"""Commands that run jobs. Each one loads, plans, runs; the same command again continues where it stopped."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config, parse_args
from pipeline.tokenizers.default_fit import ensure_codecs
from shards.errors import AnyGPTError, ConfigError
from tokenize_jobs.bill import bill_from_file, is_bill
from tokenize_jobs.bill_text import format_bill
from tokenize_jobs.expectations import bill_of_jobs
from tokenize_jobs.job import Choice, Job, prepare_job, run_jobs
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.report import format_reports

_SHOWN_UNITS = 1000


def tokenize(argv: Sequence[str] | None = None) -> int:
    """``anygpt-tokenize CONFIG...``: corpora to sample shards, all of them in one Ray session."""
    args = parse_args("anygpt-tokenize", "Tokenize corpora into sample shards.", argv, several=True, add=_add_arguments)
    try:
        if any(is_bill(path) for path in args.config):
            return _bill_of_sizes(args)
        choice = Choice(only=tuple(_unit_number(name) for name in args.only), retry=args.retry_rejects)
        configs = [load_config(path, TokenizeConfig, args.set) for path in args.config]
        check_outputs(configs)
        if choice.only and len(configs) > 1:
            raise ConfigError(f"--only: expected one config, whose units it names, found {len(configs)}")
        if not args.dry_run:
            for config in configs:
                ensure_codecs(config, say=functools.partial(print, flush=True))
        jobs = [prepare_job(config, limit=args.limit, choice=choice) for config in configs]
        if args.dry_run:
            for job in jobs:
                print(job.config.model_dump_json(indent=1))
                print(describe_plan(job))
            if args.gpus is not None:
                print(format_bill(bill_of_jobs(jobs, gpus=args.gpus, kind=args.kind, usd_per_hour=args.hourly)))
            return 0
        reports = run_jobs(jobs)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    names = {job.config.output: job.config.dataset_name for job in jobs}
    print(format_reports({names[output]: report for output, report in reports.items()}))
    for job in jobs:
        if not job.is_whole:
            left = len(job.units) - int(job.is_done.sum())
            print(
                f"{job.config.dataset_name}: {left:,} of {len(job.units):,} units are left; run without --only for them"
            )
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="UNIT",
        help="do exactly these units, done or not (names as --dry-run has them)",
    )
    which.add_argument(
        "--retry-rejects", action="store_true", help="besides what is missing, do again the inputs that were rejected"
    )
    bill = parser.add_argument_group("the bill, with --dry-run")
    bill.add_argument("--gpus", type=int, metavar="N", help="print hours and cost on so many devices")
    bill.add_argument("--kind", default="A100", metavar="DEVICE", help="a device of configs/rates.toml, or cpu (A100)")
    bill.add_argument("--hourly", type=float, metavar="USD", help="price of one device for an hour")


def _bill_of_sizes(args: argparse.Namespace) -> int:
    """What corpora of published sizes would take: configs/bills."""
    if len(args.config) > 1 or not args.dry_run:
        raise ConfigError(
            f"{args.config[0]}: a bill of sizes, which nothing can be made of; give it alone, with --dry-run"
        )
    print(format_bill(bill_from_file(args.config[0], gpus=args.gpus or 1, kind=args.kind, usd_per_hour=args.hourly)))
    return 0


def _unit_number(name: str) -> int:
    digits = name.removeprefix("unit-")
    if not digits.isdecimal():
        raise ConfigError(f"--only {name}: expected the name of a unit, as unit-000003; --dry-run lists them")
    return int(digits)


def check_outputs(configs: Sequence[TokenizeConfig]) -> None:
    """Raise ``ConfigError`` if two corpora of one call would write into the same folder."""
    seen: set[Path] = set()
    for config in configs:
        output = config.output.resolve()
        if output in seen:
            raise ConfigError(
                f"output = {config.output}: expected one folder a corpus, found it twice; give each config its own output, "
                "and use --set output=DIR with one config only"
            )
        seen.add(output)


def describe_plan(job: Job) -> str:
    """What a dry run says about one corpus."""
    todo = set(job.todo.tolist())
    lines = [
        f"{job.config.dataset_name}: {job.units.num_items:,} inputs in {len(job.units):,} units of at most "
        f"{job.config.unit_items:,}, {int(job.is_done.sum()):,} done, {len(todo):,} to do; fingerprint {job.fingerprint}"
    ]
    for unit in itertools.islice(job.units, _SHOWN_UNITS):
        state = "to do" if unit.number in todo else "done" if job.is_done[unit.number] else "not now"
        where = f"{unit.source.path.relative_to(job.config.root)}"
        lines.append(
            f"  {unit.shard(job.config.output)}  {where} {unit.source.part}[{unit.start}:{unit.stop}]  {state}"
        )
    if len(job.units) > _SHOWN_UNITS:
        lines.append(f"  ... and {len(job.units) - _SHOWN_UNITS:,} more")
    return "\n".join(lines)
