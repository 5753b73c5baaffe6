"""One run from a command: whether there is anything left to do, what is looked at first, and the training itself."""

from __future__ import annotations

from collections.abc import Callable

from train.checkpoint import newest_checkpoint, read_run_state
from train.plan import Plan
from train.preflight import Finding, Place, check_before_start, look, refuse

Say = Callable[[str], object]
"""What is told to whoever started the command; ``print`` there."""


def is_finished(plan: Plan) -> bool:
    """Whether the last step is done and the model exported."""
    checkpoint = newest_checkpoint(plan.checkpoints)
    if checkpoint is None or not plan.final.is_dir():
        return False
    run = read_run_state(checkpoint)
    return run.step >= plan.config.steps and dict(run.fingerprints) == plan.fingerprints_at(run.step)


def run(plan: Plan, say: Say, *, limit: int | None = None) -> int:
    """Train what is left of a run, up to step ``limit``.

    Returns:
        The last step that is done.
    """
    if is_finished(plan):
        say(f"{plan.config.output}: all {plan.config.steps:,} steps are done, {plan.final} is there; nothing to do")
        return plan.config.steps
    check_before_start(plan, say)
    # Seconds of imports, which a wrong config should not have to wait for.
    from train.trainer import train

    done = train(plan, limit=limit)
    say(f"{plan.config.output}: {done:,} of {plan.config.steps:,} steps are done")
    return done


def preflight(plan: Plan, say: Say) -> None:
    """All checks, and one step with the real engine that is thrown away; a line each.

    Raises:
        ConfigError: a check failed.
    """
    findings = look(plan, Place.from_environment(), thorough=True)
    for finding in findings:
        say(str(finding))
    refuse(plan, findings)
    from train.trial import try_one_step

    say(str(Finding("step", "ok", try_one_step(plan))))


def leave() -> None:
    """Leave the other processes, if there are any; nothing can be trained in this process after it."""
    from train.engine import stop_processes

    stop_processes()
