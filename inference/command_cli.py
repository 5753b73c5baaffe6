"""What the commands of this room have in common: a config, a dry run, errors as exit codes, a model opened in silence."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from configs.load import load_config
from inference.config import InferenceConfig
from shards.errors import AnyGPTError, ConfigError

if TYPE_CHECKING:
    from inference.runtime import Runtime

ConfigT = TypeVar("ConfigT", bound=InferenceConfig)


def run_command(
    program: str,
    args: argparse.Namespace,
    kind: type[ConfigT],
    run: Callable[[ConfigT], int],
    *,
    plan: Callable[[ConfigT], str] | None = None,
) -> int:
    """Do what a command is for.

    Args:
        args: of :func:`configs.load.parse_args`.
        run: gives the exit status.
        plan: what a dry run prints behind the config.

    Returns:
        what ``run`` gives; 0 after a dry run; 1 or 2 after an error, which is told.
    """

    def work() -> int:
        if args.limit is not None and args.limit < 0:
            raise ConfigError(f"--limit: expected a number from 0 on, found {args.limit}; leave it out to take all")
        config = load_config(args.config, kind, args.set)
        if not args.dry_run:
            return run(config)
        print(config.model_dump_json(indent=2))
        if plan is not None:
            print(plan(config))
        return 0

    return exit_status(program, work)


def exit_status(program: str, work: Callable[[], int]) -> int:
    """What ``work`` gives; 1 or 2 after an error, which is told."""
    try:
        return work()
    except AnyGPTError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


def open_in_silence(config: InferenceConfig) -> Runtime:
    """Open a model without the bars and warnings of libraries, which would stand between the answers."""
    from transformers.utils import logging

    from inference.runtime import open_runtime

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_runtime(config)
