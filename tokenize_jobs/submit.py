"""One command, run on a Ray cluster instead of here.

This is ``ray job submit`` (:attr:`Submission.call`) with what a tokenization needs around it: the command is
checked here before anything is sent, the address that was given counts whatever ``RAY_ADDRESS`` says, the log is shown
from where it broke off when the connection is lost, and the exit code is that of the job. The driver then runs on the
head, in a copy of this checkout, so whoever submitted may leave; an interrupt stops the showing, not the job.

A cluster that asks for a token gets it from Ray's own settings (``RAY_AUTH_MODE=token`` with ``RAY_AUTH_TOKEN_PATH`` or
``~/.ray/auth_token``), never from a config.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from configs.load import load_config
from shards.errors import AnyGPTError, ConfigError
from shards.storage import is_remote
from tokenize_jobs.bill import is_bill
from tokenize_jobs.plan import TokenizeConfig

RUNTIME_ENV = Path("configs/cluster/runtime_env.yaml")
CHECKED_COMMAND = "anygpt-tokenize"
PAUSE_S = 5.0
"""Between two attempts at most; the first come sooner."""
ATTEMPTS = 24
"""Lost connections in a row before the showing is given up; the job is not."""

_ADDRESS = "RAY_API_SERVER_ADDRESS"
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Submission:
    """A command on its way to a cluster.

    Attributes:
        address: of the dashboard, which is also the job server: ``http://HOST:8265``.
        runtime_env: file that says what the job takes along.
        command: its words, ``anygpt-tokenize`` first.
    """

    address: str
    runtime_env: Path
    command: tuple[str, ...]

    @property
    def call(self) -> str:
        """The same as a command line of Ray's."""
        words = ["ray", "job", "submit", "--address", self.address, "--runtime-env", str(self.runtime_env), "--"]
        return shlex.join([*words, *self.command])


def check_address(address: str) -> None:
    """Raise ``ConfigError`` unless it is the address of a dashboard."""
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address}: expected the dashboard of a cluster, as http://HOST:8265, found another kind of "
            "address; cluster.address and RAY_ADDRESS are for a driver that runs inside the cluster's network"
        )


def read_runtime_env(path: Path) -> dict[str, Any]:
    """What a job takes along.

    Raises:
        ConfigError: no such file, or not a table in YAML.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--runtime-env {path}: expected a file as {RUNTIME_ENV}, found: {error}; run in the root of a checkout, or "
            "give its path"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"--runtime-env {path}: expected a table of keys, found {found!r}; see {RUNTIME_ENV}")
    return found


def check_command(command: Sequence[str], runtime_env: Mapping[str, Any]) -> None:
    """Find here what would fail there, minutes later: wrong keys, and paths that only this machine knows.

    Raises:
        ConfigError: a config of ``anygpt-tokenize`` is wrong, or names a relative path that does not travel.
    """
    if command[0] != CHECKED_COMMAND:
        return
    configs, overrides = split_command(command)
    if not configs:
        raise ConfigError(f"{shlex.join(command)}: expected a config, found none; e.g. configs/corpora/laion2b.toml")
    left_here = {str(pattern).strip("/") for pattern in runtime_env.get("excludes", [])}
    for path in configs:
        if not is_bill(path):
            _check_paths(path, load_config(path, TokenizeConfig, overrides), left_here)


def split_command(command: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The configs and the ``--set`` overrides of a command line of ours."""
    configs: list[Path] = []
    overrides: list[str] = []
    for before, word in itertools.pairwise(command):
        if before == "--set":
            overrides.append(word)
        elif word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        elif word.endswith(".toml") and not word.startswith("-"):
            configs.append(Path(word))
    return configs, overrides


def _check_paths(config_path: Path, config: TokenizeConfig, left_here: set[str]) -> None:
    for key, path in (("root", config.root), ("output", config.output)):
        if not is_remote(path) and not path.is_absolute():
            raise ConfigError(
                f"{config_path}: {key} = {path}: expected a folder that every node of the cluster sees, found a relative "
                f"path; give --set {key}=s3://BUCKET/FOLDER, or a folder that all nodes mount at the same place"
            )
    tokenizers = [(f"tokenizers.{modality}", path) for modality, path in config.tokenizers.items()]
    for key, path in [*tokenizers, *(("leave_out", path) for path in config.leave_out)]:
        if not path.is_absolute() and path.parts[0] in left_here:
            raise ConfigError(
                f"{config_path}: {key} = {path}: expected a file that every node sees, found one that stays here "
                f"({path.parts[0]}/ does not travel); put it in a folder that all nodes mount and give --set {key}=PATH"
            )


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at ``address``.

    Raises:
        ConfigError: nothing answers there, it is no job server, or it does not let us in.
    """
    try:
        with _only(address):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"--address {address}: expected a cluster that lets us in, found one that asks for a token: {error}; set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the token of that cluster"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--address {address}: expected the dashboard of a Ray cluster, found: {error}; is the head up, with "
            'ray[default] installed ("ray start --head" then prints the address), and does the port reach here ("ray '
            'dashboard CLUSTER.yaml", or ssh -L 8265:127.0.0.1:8265 HEAD)?'
        ) from error


def send(client: JobSubmissionClient, submission: Submission, runtime_env: Mapping[str, Any]) -> str:
    """Upload what the job takes along, start it, and return its id.

    Raises:
        AnyGPTError: the cluster did not take it.
    """
    try:
        return client.submit_job(entrypoint=shlex.join(submission.command), runtime_env=dict(runtime_env))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise AnyGPTError(
            f"{submission.address}: expected it to take the job, found: {error}; if the upload is too large, name what "
            f"need not travel under `excludes` of {submission.runtime_env}"
        ) from error


def follow(
    client: JobSubmissionClient,
    job: str,
    *,
    address: str,
    say: Say,
    pause_s: float = PAUSE_S,
    attempts: int = ATTEMPTS,
) -> JobDetails:
    """Show the log of a job until it ends; after a lost connection, from where it broke off.

    Raises:
        AnyGPTError: the cluster has not answered for ``attempts`` times.
    """
    shown = _Shown(say)
    lost = 0
    while True:
        before = shown.characters
        try:
            asyncio.run(shown.tail(client, job))
            details = client.get_job_info(job)
            if JobStatus(details.status).is_terminal():
                return details
            lost = 0
        except (OSError, RuntimeError, aiohttp.ClientError, requests.RequestException) as error:
            lost = 1 if shown.characters > before else lost + 1
            if lost >= attempts:
                raise AnyGPTError(
                    f"{job}: expected its log from {address}, found: {error}; the job may go on without us: "
                    f"ray job status --address {address} {job}. If the head is gone, start it and send the same again; "
                    "only what is missing is done"
                ) from error
        time.sleep(min(pause_s, 0.1 * 2**lost))


class _Shown:
    """How much of a log was shown already; the server tells it from the start each time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.characters = 0

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        told = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self.characters - told) :]
            told += len(text)
            if new:
                self._say(new)
                self.characters += len(new)


def exit_code(details: JobDetails) -> int:
    """Of a job that ended: 0, what its command returned, or 1."""
    return 0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code or 1


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray lets RAY_ADDRESS win over the address it is called with; a command line's word is later and counts."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
