"""Submission: what is sent, what is shown and what comes back, against a job server on loopback.

Ray's own job server needs the packages of ``ray[default]``; where they are installed, one test starts it. The server of the
other tests speaks the same requests, unpacks what is uploaded, and really runs the command.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSCloseCode, web
from ray.cluster_utils import Cluster

from shards.errors import AnyGPTError, ConfigError
from tokenize_jobs import submit
from tokenize_jobs.session import LOCAL_ENVIRONMENT
from tokenize_jobs.submit_cli import main

HAS_JOB_SERVER = all(importlib.util.find_spec(name) for name in ("aiohttp_cors", "opencensus", "prometheus_client"))
SHARED = ["--set", "root=/shared/laion2b", "--set", "output=/shared/tokens"]


class JobServer:
    """The part of Ray's dashboard that submission talks to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.token = ""
        self.break_off_after = 0
        """Characters of the log after which the first connection is lost."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=64 << 20, middlewares=[self._let_in])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._put_package)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        return await handler(request)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"})

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        sent = await request.json()
        self.requests.append(sent)
        job = f"raysubmit_{len(self.jobs)}"
        self.jobs[job] = sent | {"log": "", "status": "RUNNING", "driver_exit_code": None}
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return web.json_response({"job_id": job, "submission_id": job})

    def _run(self, job: str) -> None:
        details = self.jobs[job]
        package = self.packages[Path(details["runtime_env"]["working_dir"]).name]
        where = self.folder / job
        zipfile.ZipFile(io.BytesIO(package)).extractall(where)
        environment = os.environ | details["runtime_env"]["env_vars"] | {"PYTHONPATH": str(where)}
        done = subprocess.run(
            shlex.split(details["entrypoint"]), cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        details["log"] = done.stdout + done.stderr
        details["driver_exit_code"] = done.returncode
        details["status"] = "FAILED" if done.returncode else "SUCCEEDED"

    async def _info(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        kept = {key: self.jobs[job][key] for key in ("status", "entrypoint", "driver_exit_code")}
        return web.json_response({"type": "SUBMISSION", "submission_id": job, "message": "as it ended", **kept})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        details = self.jobs[request.match_info["job"]]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while details["status"] == "RUNNING":
            await asyncio.sleep(0.02)
        if self.break_off_after:
            await socket.send_str(details["log"][: self.break_off_after])
            self.break_off_after = 0
            assert request.transport is not None
            request.transport.abort()
            return socket
        for start in range(0, len(details["log"]), 7):
            await socket.send_str(details["log"][start : start + 7])
        await socket.close(code=WSCloseCode.OK)
        return socket


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JobServer]:
    server = JobServer(tmp_path / "head")
    yield server
    server.close()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from: a runtime environment, a file that travels and one that does not."""
    folder = tmp_path / "checkout"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "big.bin").write_bytes(b"stays here")
    (folder / "work.py").write_text("import sys; print('counting 1 2 3'); sys.exit(int(sys.argv[1]))", encoding="utf-8")
    (folder / "env.yaml").write_text(
        "working_dir: '.'\nexcludes: ['/data/']\nenv_vars: {OMP_NUM_THREADS: '1'}\n", encoding="utf-8"
    )
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return folder


def run(server: JobServer, *command: str) -> int:
    return main(["--address", server.address, "--runtime-env", "env.yaml", "--", *command])


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_that_of_the_command_on_the_cluster(
    server: JobServer, checkout: Path, capsys: pytest.CaptureFixture[str], code: int
):
    assert run(server, sys.executable, "work.py", str(code)) == code
    shown = capsys.readouterr()
    assert shown.out.endswith("counting 1 2 3\n")
    assert ("FAILED" in shown.err) == bool(code)


def test_the_checkout_travels_without_what_is_excluded(server: JobServer, checkout: Path):
    assert run(server, sys.executable, "work.py", "0") == 0
    (package,) = server.packages.values()
    names = zipfile.ZipFile(io.BytesIO(package)).namelist()
    assert "work.py" in names
    assert not [name for name in names if name.startswith("data")]
    assert server.requests[0]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


def test_words_with_spaces_and_quotes_arrive_as_they_were(
    server: JobServer, checkout: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["a b", "it's", "{ decode = 1 }", "$HOME", "*"]
    assert run(server, sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == words


@pytest.mark.parametrize("lost_after", [1, 5, 14])
def test_a_lost_connection_loses_and_repeats_nothing_of_the_log(
    server: JobServer, checkout: Path, capsys: pytest.CaptureFixture[str], lost_after: int
):
    server.break_off_after = lost_after
    assert run(server, sys.executable, "work.py", "0") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["counting 1 2 3"]


def test_the_address_of_the_command_line_wins_over_the_environment(
    server: JobServer, checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert run(server, sys.executable, "work.py", "0") == 0
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_a_job_that_is_not_waited_for_goes_on(server: JobServer, checkout: Path):
    words = [
        "--address",
        server.address,
        "--runtime-env",
        "env.yaml",
        "--no-wait",
        "--",
        sys.executable,
        "work.py",
        "0",
    ]
    assert main(words) == 0
    deadline = time.monotonic() + 20
    while server.jobs["raysubmit_0"]["status"] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.jobs["raysubmit_0"]["status"] == "SUCCEEDED"


def test_a_cluster_that_asks_for_a_token_says_how_to_give_one(
    server: JobServer, checkout: Path, capsys: pytest.CaptureFixture[str]
):
    server.token = "0123456789abcdef"
    assert run(server, sys.executable, "work.py", "0") == 2
    assert "RAY_AUTH_MODE=token" in capsys.readouterr().err


def test_a_head_that_is_gone_is_named_and_the_job_is_not_given_up(server: JobServer, checkout: Path):
    client = submit.connect(server.address)
    server.close()
    with pytest.raises(AnyGPTError, match=r"may go on without us.*only what is missing"):
        submit.follow(client, "raysubmit_0", address=server.address, say=print, pause_s=0.0, attempts=2)


def test_no_dashboard_at_the_address_says_what_to_do(checkout: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--address", "http://127.0.0.1:9", "--runtime-env", "env.yaml", "--", "anygpt-pack", "x.toml"]
    assert main(words) == 2
    assert "ray[default]" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto"])
def test_an_address_of_another_kind_is_refused(address: str):
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        submit.check_address(address)


def test_a_dry_run_prints_the_very_call(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(repository)
    command = ["anygpt-tokenize", "configs/cluster/laion2b.toml", "--set", "cluster.decode_resources={ decode = 1 }"]
    assert main(["--address", "http://head:8265", "--dry-run", "--", *command]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    assert words[words.index("--") + 1 :] == command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/corpora/laion2b.toml"], "root = data/sample/laion2b.*--set root=s3://"),
        (["configs/corpora/laion2b.toml", *SHARED], "tokenizers.image = data/.*--set tokenizers.image=PATH"),
        (["configs/cluster/laion2b.toml", "--set", "cluster.encode_gpu=1"], "did you mean 'encode_gpus'"),
        (["configs/cluster/laion2b.toml", "--set", "leave_out=['runs/list.parquet']"], "leave_out = runs/"),
        (["configs/corpora/laion3b.toml"], "did you mean .*laion2b.toml"),
        (["--dry-run"], "expected a config, found none"),
    ],
)
def test_what_would_fail_there_fails_here_first(
    repository: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.chdir(repository)
    runtime_env = submit.read_runtime_env(submit.RUNTIME_ENV)
    with pytest.raises(ConfigError, match=message):
        submit.check_command(["anygpt-tokenize", *words], runtime_env)


def test_a_runtime_environment_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a table"):
        submit.read_runtime_env(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="root of a checkout"):
        submit.read_runtime_env(tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A real head on this machine, with the job server where its packages are installed."""
    os.environ.update({name: value for name, value in LOCAL_ENVIRONMENT.items() if name not in os.environ})
    options = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": HAS_JOB_SERVER}
    cluster: Any = Cluster(initialize_head=True, head_node_args=options)
    yield cluster
    cluster.shutdown()


DRIVER = """
import os, ray
from tokenize_jobs.session import ray_session
with ray_session(workers=1):
    print(ray.get(ray.remote(lambda: os.environ["OMP_NUM_THREADS"] + os.environ["SAID_BY_THE_JOB"]).remote()))
"""


def test_the_job_s_own_ray_session_goes_with_the_runtime_environment(head: Any, repository: Path):
    """Both set OMP_NUM_THREADS; Ray called that a conflict, and every submitted job ended before it began."""
    env_vars = submit.read_runtime_env(repository / submit.RUNTIME_ENV)["env_vars"] | {"SAID_BY_THE_JOB": "!"}
    job = {
        "RAY_ADDRESS": head.address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": env_vars}}),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        env=os.environ | env_vars | job,
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1!"


@pytest.mark.skipif(not HAS_JOB_SERVER, reason="no job server without the packages of ray[default]")
def test_a_real_head_runs_what_is_submitted(head: Any, checkout: Path, capsys: pytest.CaptureFixture[str]):
    address = f"http://{head.head_node.address_info['webui_url']}"
    words = ["--address", address, "--runtime-env", "env.yaml", "--", sys.executable, "work.py", "2"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "counting 1 2 3" in shown.out
    assert "FAILED" in shown.err


@pytest.mark.skipif(HAS_JOB_SERVER, reason="this head has a job server")
def test_a_head_without_the_packages_of_a_dashboard_is_told_apart(
    head: Any, repository: Path, capsys: pytest.CaptureFixture[str]
):
    """The head is up, its own port answers, and yet nothing takes jobs there: the message names what is missing."""
    runtime_env = str(repository / submit.RUNTIME_ENV)
    assert (
        main(["--address", f"http://{head.address}", "--runtime-env", runtime_env, "--", "anygpt-pack", "x.toml"]) == 2
    )
    assert "ray[default]" in capsys.readouterr().err
