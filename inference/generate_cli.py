"""``anygpt-generate CONFIG 'text|image|a red circle'``: ask a model for one thing, or for all of a file."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from configs.load import parse_args
from inference.command_cli import open_in_silence, run_command
from inference.config import InferenceConfig
from inference.generate import Answer, Failure, Plan, answer_tasks, plan_tasks
from inference.results import RESULTS_NAME
from inference.tasks import Task, parse_task, read_tasks
from shards.errors import ConfigError

_PROGRAM = "anygpt-generate"
_WITH_VALUE = frozenset({"--set", "--limit", "--tasks"})


def main(argv: Sequence[str] | None = None) -> int:
    """Answer tasks; the same command again answers only what is not answered yet."""
    arguments = _tasks_first(sys.argv[1:] if argv is None else argv)
    args = parse_args(_PROGRAM, "Ask a model: text to pictures, speech and music, and back.", arguments, add=_add)

    def plan(config: InferenceConfig) -> Plan:
        return plan_tasks(_tasks(args)[: args.limit], config)

    return run_command(
        _PROGRAM, args, InferenceConfig, lambda config: _run(plan(config)), plan=lambda config: _plan_text(plan(config))
    )


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="*", metavar="TASK", help="SOURCE|TARGET|INPUT")
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="a file of tasks: lines, or JSON lines (.jsonl)")


def _tasks_first(argv: Sequence[str]) -> list[str]:
    """The same arguments, options last: argparse wants what is no option in one place, people type it in any."""
    plain: list[str] = []
    options: list[str] = []
    waiting = iter(argv)
    for argument in waiting:
        (options if argument.startswith("-") else plain).append(argument)
        if argument in _WITH_VALUE:
            options += [value for value in (next(waiting, None),) if value is not None]
    return plain + options


def _tasks(args: argparse.Namespace) -> list[Task]:
    tasks = [parse_task(line, where=f"task {number}") for number, line in enumerate(args.task, start=1)]
    if args.tasks is not None:
        tasks += read_tasks(args.tasks)
    if not tasks:
        raise ConfigError(
            "expected a task, found none; give one after CONFIG, e.g. 'text|image|a red circle', or --tasks FILE"
        )
    return tasks


def _run(plan: Plan) -> int:
    answers = list(plan.done.values())
    failures: list[Failure] = []
    outcomes = answer_tasks(plan, functools.partial(open_in_silence, plan.config))
    for outcome in _with_bar(outcomes, len(plan.pending)):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            print(f"{_PROGRAM}: {outcome.task.where}: {outcome.error}", file=sys.stderr)
        else:
            answers.append(outcome)
    if len(plan.tasks) == 1:
        for answer in answers:
            print(answer.text if answer.text is not None else answer.path)
    else:
        given = len(answers) - len(plan.done)
        print(
            f"{given} answered, {len(plan.done)} answered before, {len(failures)} failed; "
            f"{plan.config.output / RESULTS_NAME}"
        )
    return 1 if failures else 0


def _with_bar(outcomes: Iterable[Answer | Failure], count: int) -> Iterable[Answer | Failure]:
    return tqdm(outcomes, total=count, unit="task", disable=count < 2 or not sys.stderr.isatty(), leave=False)


def _plan_text(plan: Plan) -> str:
    directions = ", ".join(f"{count} {name}" for name, count in plan.directions().items()) or "nothing"
    return f"{len(plan.tasks)} tasks, {len(plan.done)} answered before; to answer: {directions}"
