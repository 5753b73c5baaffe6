"""``anygpt-pack``, apart from the other commands: it starts in half a second, without torch and without Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.load import load_config, parse_args
from shards.errors import AnyGPTError
from tokenize_jobs.packing_config import PackingConfig, load_language
from tokenize_jobs.packing_job import format_plan, plan_packing, run_packing
from tokenize_jobs.packing_report import format_report


def pack(argv: Sequence[str] | None = None) -> int:
    """``anygpt-pack CONFIG``: sample shards to packed shards; the same again continues where it stopped."""
    args = parse_args("anygpt-pack", "Pack sample shards into rows to train on.", argv)
    try:
        config = load_config(args.config, PackingConfig, args.set)
        language = load_language(config)
        plans = plan_packing(config, language, limit=args.limit)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            print(format_plan(plans))
            return 0
        print(format_report(run_packing(config, plans, language)))
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
