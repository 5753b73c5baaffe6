"""Commands that run jobs. Each one loads, plans, runs; the same command again continues where it stopped."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config, parse_args
from pipeline.tokenizers.default_fit import ensure_codecs
from shards.errors import AnyGPTError, ConfigError
from tokenize_jobs.job import Job, prepare_job, run_jobs
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.report import format_reports


def tokenize(argv: Sequence[str] | None = None) -> int:
    """``anygpt-tokenize CONFIG...``: corpora to sample shards, all of them in one Ray session."""
    args = parse_args("anygpt-tokenize", "Tokenize corpora into sample shards.", argv, several=True)
    try:
        configs = [load_config(path, TokenizeConfig, args.set) for path in args.config]
        check_outputs(configs)
        if not args.dry_run:
            for config in configs:
                ensure_codecs(config, say=functools.partial(print, flush=True))
        jobs = [prepare_job(config, limit=args.limit) for config in configs]
        if args.dry_run:
            for job in jobs:
                print(job.config.model_dump_json(indent=1))
                print(describe_plan(job))
            return 0
        reports = run_jobs(jobs)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    names = {job.config.output: job.config.dataset_name for job in jobs}
    print(format_reports({names[output]: report for output, report in reports.items()}))
    return 0


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
    inputs = sum(unit.num_items for unit in job.units)
    lines = [
        f"{job.config.dataset_name}: {inputs:,} inputs in {len(job.units):,} units of at most {job.config.unit_items:,}, "
        f"{len(job.done):,} done, {len(job.missing):,} to do; fingerprint {job.fingerprint}"
    ]
    for unit in job.units:
        state = "done" if unit.number in job.done else "to do"
        where = f"{unit.source.path.relative_to(job.config.root)}"
        lines.append(
            f"  {unit.shard(job.config.output)}  {where} {unit.source.part}[{unit.start}:{unit.stop}]  {state}"
        )
    return "\n".join(lines)
