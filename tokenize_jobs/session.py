"""One local Ray for everything a command does, small and quiet; or the cluster it is pointed at.

A laptop run must not pay for a cluster's comforts: no dashboard, no workers started ahead of need, a small object store
(payloads stay inside one worker when decoding and encoding are fused), no usage figures sent, no log lines on the
terminal. ``RAY_ADDRESS``, or ``cluster.address`` in the config, connects to a running cluster instead and changes
nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from shards.errors import ConfigError

OBJECT_STORE_BYTES = 256 << 20

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # The C++ core writes warnings about itself to the terminal; what matters reaches us as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}


_STORES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Where an object store is; who may use it is the nodes' own business, and no secret travels."""


@contextmanager
def ray_session(*, workers: int, address: str = "") -> Iterator[None]:
    """Start Ray with ``workers`` CPUs, or connect to ``address``; a session that is open already is used as it is.

    Args:
        address: of a cluster; ``RAY_ADDRESS`` is used when it is empty. A cluster that asks for a token gets it from
            Ray's own settings (``RAY_AUTH_MODE=token``), never from a config.

    Raises:
        ConfigError: no cluster at ``address``, or none that lets us in.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS", "")
    local: dict[str, Any] = (
        {} if address else {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    )
    # On a cluster the workers' environment is not ours; one thread each, so that sums never depend on the machine.
    environment = {"OMP_NUM_THREADS": "1"} | {name: os.environ[name] for name in _STORES if name in os.environ}
    remote: dict[str, Any] = {"runtime_env": {"env_vars": environment}} if address else {}
    try:
        with _silent_stderr():
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local, **remote)
    except ConnectionError as error:
        raise ConfigError(
            f"cluster.address = {address}: expected a Ray cluster that lets us in, found: {error.__cause__ or error}; "
            "start it, correct the address (RAY_ADDRESS counts too), or unset both to run on this machine"
        ) from error
    _keep_quiet()
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what the C++ core prints while it starts; a failure to start is an exception all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _keep_quiet() -> None:
    """Our own progress bar and log say what Ray Data's would."""
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
