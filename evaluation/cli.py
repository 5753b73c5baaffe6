"""``anygpt-route`` and ``anygpt-report``: walk a route, and prove what came out of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from configs.load import load_config, parse_args
from evaluation.report import ReportConfig, format_report, make_report
from evaluation.route import RouteConfig, walk
from shards.errors import AnyGPTError


def route(argv: Sequence[str] | None = None) -> int:
    """Run the stages of a route in order; the same command again does only what is missing."""
    args = parse_args("anygpt-route", "Walk a route: commands one after the other.", argv)

    def run() -> None:
        config = load_config(args.config, RouteConfig, args.set)
        if args.dry_run:
            print("\n".join(f"{stage.name}: {' '.join(stage.command)}" for stage in config.stages))
            return
        stages = config.stages[: args.limit] if args.limit else config.stages
        walk(config.model_copy(update={"stages": stages}), announce=functools.partial(print, flush=True))

    return _exit_code(run)


def report(argv: Sequence[str] | None = None) -> int:
    """Ask the trained model what it has never met, and write the report page."""
    args = parse_args("anygpt-report", "Held-out generations and the report page of a run.", argv)

    def run() -> None:
        config = load_config(args.config, ReportConfig, args.set)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            return
        print(format_report(make_report(config), config.run))

    return _exit_code(run)


def _exit_code(run: Callable[[], None]) -> int:
    try:
        run()
    except AnyGPTError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
