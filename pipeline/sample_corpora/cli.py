"""``anygpt-sample-corpora CONFIG``: render the sample corpora, in the formats of the real ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.load import load_config, parse_args
from pipeline.sample_corpora.build import Plan, build, plan_build
from pipeline.sample_corpora.config import SampleCorporaConfig
from shards.errors import AnyGPTError


def main(argv: Sequence[str] | None = None) -> int:
    """Render the corpora; the same command again finds them and changes nothing."""
    args = parse_args("anygpt-sample-corpora", "Render the sample corpora, in the formats of the real ones.", argv)
    try:
        config = load_config(args.config, SampleCorporaConfig, args.set)
        plan = plan_build(config, limit=args.limit)
        if args.dry_run:
            _show(plan, config)
            return 0
        build(plan, show_progress=True)
    except AnyGPTError as error:
        print(f"anygpt-sample-corpora: {error}", file=sys.stderr)
        return error.exit_code
    num_items = sum(task.count for task in plan.tasks)
    print(f"{plan.output}: {'already there, ' if plan.is_done else ''}{num_items:,} items in {len(plan.tasks)} corpora")
    return 0


def _show(plan: Plan, config: SampleCorporaConfig) -> None:
    print(config.model_dump_json(indent=2))
    for task in plan.tasks:
        print(f"{task.folder.as_posix():28} {task.count:6,} items")
    print(f"{plan.output}: {'already there' if plan.is_done else 'to be written'} ({plan.fingerprint})")


if __name__ == "__main__":
    sys.exit(main())
