"""``anygpt-submit``: a command on a Ray cluster, with its log and its exit code here.

anygpt-submit --address http://head:8265 -- anygpt-tokenize configs/corpora/laion2b.toml --set root=s3://...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.errors import AnyGPTError
from tokenize_jobs.submit import (
    CHECKED_COMMAND,
    RUNTIME_ENV,
    Submission,
    check_address,
    check_command,
    connect,
    exit_code,
    follow,
    read_runtime_env,
    send,
)


def main(argv: Sequence[str] | None = None) -> int:
    """``anygpt-submit --address URL -- anygpt-tokenize CONFIG...``; the exit code is the job's."""
    args = _parse(argv)
    submission = Submission(args.address, args.runtime_env, tuple(args.command))
    job = ""
    try:
        check_address(submission.address)
        runtime_env = read_runtime_env(submission.runtime_env)
        check_command(submission.command, runtime_env)
        if args.dry_run:
            print(submission.call)
            return 0
        client = connect(submission.address)
        job = send(client, submission, runtime_env)
        _show(f"{job}: sent to {submission.address}; it goes on there whatever becomes of this terminal\n")
        if args.no_wait:
            return 0
        details = follow(client, job, address=submission.address, say=_show)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        where = f"--address {submission.address} {job}"
        print(f"\n{job}: still running; ray job logs --follow {where} shows it, ray job stop {where} ends it")
        return 130
    code = exit_code(details)
    if code:
        print(f"{job}: {details.status}: {details.message or 'no reason given'}", file=sys.stderr)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anygpt-submit", description="Run a command on a Ray cluster, and show its log.", allow_abbrev=False
    )
    parser.add_argument("--address", required=True, metavar="URL", help="the cluster's dashboard, http://HOST:8265")
    parser.add_argument(
        "--runtime-env",
        type=Path,
        default=RUNTIME_ENV,
        metavar="FILE",
        help=f"what the job takes along ({RUNTIME_ENV})",
    )
    parser.add_argument("--no-wait", action="store_true", help="return when the job is sent")
    parser.add_argument("--dry-run", action="store_true", help="print the call of `ray job submit`, send nothing")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help=f"after --: {CHECKED_COMMAND} CONFIG ...")
    return parser.parse_args(argv)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
