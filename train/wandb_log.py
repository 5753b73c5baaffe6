"""Weights & Biases, if the config asks for it: imported nowhere else, and not before.

A run that continues after a kill writes some steps again. W&B takes steps only in ascending order, so charts are drawn
over a number of their own, ``step``. The run's id is kept in its folder, so what is continued is one run there, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.writer import commit_bytes
from train.watch_config import WandbConfig

ID_NAME = "wandb.id"


class WandbRun:
    """A run that was begun."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, figures: Mapping[str, float]) -> None:
        """One point of every chart; ``step`` is among the figures."""
        self._run.log(dict(figures))

    def finish(self, *, failed: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=int(failed))


def start_wandb(wanted: WandbConfig, folder: Path, config: Mapping[str, Any]) -> WandbRun:
    """Begin the run, or continue it; what the library reads from the environment (offline mode, keys) holds.

    Raises:
        ConfigError: the library is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "key 'log.wandb': expected the library wandb, found none; pip install wandb, or leave the key out"
        )
    wandb: Any = importlib.import_module("wandb")
    kept = folder / ID_NAME
    if not kept.is_file():
        commit_bytes(kept, secrets.token_hex(8).encode())
    run = wandb.init(
        project=wanted.project,
        entity=wanted.entity,
        name=wanted.name or folder.name,
        id=kept.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=dict(config),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return WandbRun(run)
