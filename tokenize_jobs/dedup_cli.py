"""``anygpt-dedup CONFIG``: the leave-out list of several corpora; the same again continues where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from configs.load import load_config, parse_args
from shards.errors import AnyGPTError
from tokenize_jobs.dedup_config import DedupConfig, load_corpora
from tokenize_jobs.dedup_job import LEFT_OUT_NAME, list_fingerprint, missing_units, read_finished, run_dedup
from tokenize_jobs.dedup_units import SignatureTask, plan_signatures


def main(argv: Sequence[str] | None = None) -> int:
    """Sign, match, write ``OUTPUT/left_out.parquet``; or say what there is to do."""
    args = parse_args("anygpt-dedup", "Find copies and leaked evaluation items; write a leave-out list.", argv)
    try:
        config = load_config(args.config, DedupConfig, args.set)
        tasks = plan_signatures(config, load_corpora(config), limit=args.limit)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            print(describe_plan(config, tasks))
            return 0
        report = run_dedup(config, tasks)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(format_report(report))
    print(f"{config.output / LEFT_OUT_NAME}")
    return 0


def describe_plan(config: DedupConfig, tasks: Sequence[SignatureTask]) -> str:
    """What a run would do, as a table for a terminal."""
    lines = [f"{'corpus':<28}{'inputs':>14}{'units':>10}{'to sign':>10}"]
    for task, missing in zip(tasks, missing_units(tasks), strict=True):
        lines.append(f"{task.name:<28}{task.units.num_items:>14,}{len(task.units):>10,}{len(missing):>10,}")
    is_done = read_finished(config, list_fingerprint(config, tasks)) is not None
    return "\n".join([*lines, "the list is done" if is_done else "the list is to be made"])


def format_report(report: Mapping[str, Any]) -> str:
    """Counts by corpus and reason, as a table for a terminal."""
    lines = [f"{'corpus':<28}{'samples':>14}{'left out':>10}  reasons"]
    for name, samples in report["inputs"].items():
        counts = report["left_out"][name]
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
        lines.append(f"{name:<28}{samples:>14,}{sum(counts.values()):>10,}  {reasons or '-'}")
    return "\n".join(lines)
