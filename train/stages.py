"""A curriculum: runs that follow each other, each from the model of the one before.

    stages = ["../train/a.toml", "../train/b.toml", "../train/c.toml"]

    [set.c]               # on top of that stage's file
    optimizer.lr = 1e-5

Paths are relative to the curriculum, and a stage is called as its file is. ``anygpt-train CURRICULUM.toml`` runs them in
order, each in an output of its own; the same command skips what is finished and continues what is not. ``--set key=value``
is for every stage, ``--set STAGE.key=value`` for one.

A stage starts from the model that the stage before exports, unless its own file, ``[set]`` or ``--set`` names ``init.from``
(what a file only has from its ``base`` does not count). To name the model of an earlier stage is to name that stage, even if
its output was moved. Optimizer and schedule begin anew in every stage.

What a stage began from is kept in its ``stage.json``: a digest of the settings and the data that made the stage before, and
of what that one began from. So an earlier stage that was changed, or trained again with other settings, is noticed before
anything is trained on top of it.
"""

from __future__ import annotations

import gc
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from configs.load import Config, load_config, read_toml
from shards.errors import ConfigError, FingerprintMismatch
from shards.manifest import fingerprint
from shards.writer import commit_bytes
from train.checkpoint import RunState, newest_checkpoint, read_run_state
from train.config import TrainConfig
from train.plan import FINAL_FOLDER, config_json, make_plan
from train.preflight import Place
from train.run import Say, is_finished, preflight, run

RECORD_NAME = "stage.json"
LEARNT = (
    *("steps", "batch_rows", "attention", "objective", "seed", "model", "soundstorm"),
    *("init.new_embeddings", "lora", "optimizer", "schedule"),
)
"""Keys that say what a run learns, besides its data, which has fingerprints."""


class CurriculumConfig(Config):
    """A file in ``configs/curricula/``."""

    stages: tuple[Path, ...] = Field(min_length=1)
    """Training configs, in order."""

    set: dict[str, dict[str, Any]] = {}
    """Stage -> keys on top of its file."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of a curriculum.

    Attributes:
        after: the stage whose model it starts from; None: from what its config names.
    """

    name: str
    path: Path
    config: TrainConfig
    after: str | None

    @property
    def checkpoints(self) -> Path:
        """Where its states are."""
        return self.config.output / "checkpoints"

    @property
    def final(self) -> Path:
        """The model it exports."""
        return self.checkpoints / FINAL_FOLDER


def is_curriculum(path: Path) -> bool:
    """Whether a config lists stages."""
    return "stages" in read_toml(path)


def load_stages(path: Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """Read a curriculum and all its stages.

    Raises:
        ConfigError: a file is wrong, two stages have one name or one output, or a key is for a stage that is not there.
    """
    curriculum = load_config(path, CurriculumConfig)
    files = [Path(os.path.normpath(path.parent / file)) for file in curriculum.stages]
    names = [file.stem for file in files]
    doubles = sorted({name for name in names if names.count(name) > 1})
    strange = sorted(set(curriculum.set) - set(names))
    if doubles or strange:
        raise ConfigError(
            f"{path}: expected stages of different names, and keys of [set] among them, found {(doubles or strange)[0]!r} "
            f"{'twice' if doubles else f'beside {names}'}; rename it"
        )
    stages: list[Stage] = []
    for name, file in zip(names, files, strict=True):
        chosen = _overrides_of(name, names, overrides)
        stages.append(_load_stage(name, file, stages, curriculum.set.get(name, {}), chosen))
    outputs = [stage.config.output for stage in stages]
    if len(set(outputs)) < len(outputs):
        raise ConfigError(
            f"{path}: expected an output of its own for every stage, found {', '.join(map(str, outputs))}; "
            "set STAGE.output for one of them"
        )
    return stages


def run_stages(stages: Sequence[Stage], say: Say, *, limit: int | None = None, only_look: bool = False) -> None:
    """Run what is not finished, in order, until a stage stops before its last step.

    Args:
        limit: last step of any stage.
        only_look: no more than the preflight of the first stage that is not finished.

    Raises:
        FingerprintMismatch: an earlier stage is not what a later one began from.
    """
    for number, stage in enumerate(stages):
        _check_unchanged(stage, stages[number + 1 :])
        plan = make_plan(stage.config, where=str(stage.path))
        parent = next((one for one in stages[:number] if one.name == stage.after), None)
        begun = _check_parent(stage, parent)
        say(f"stage {number + 1} of {len(stages)}: {stage.name}")
        if only_look and not is_finished(plan):
            preflight(plan, say)
            return
        if not begun and Place.from_environment().rank == 0:
            _write_record(stage, parent)
        if run(plan, say, limit=limit) < stage.config.steps:
            return
        del plan
        _wait_for_all()


def _overrides_of(name: str, names: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those for this stage, without its name, and those for all."""
    of_one = [override for override in overrides if any(override.startswith(f"{one}.") for one in names)]
    own = [override.removeprefix(f"{name}.") for override in of_one if override.startswith(f"{name}.")]
    return [override for override in overrides if override not in of_one] + own


def _load_stage(
    name: str, path: Path, before: Sequence[Stage], above: Mapping[str, Any], overrides: Sequence[str]
) -> Stage:
    own = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = above.get("init", {}).get("from") or own.get("init", {}).get("from")
    for override in overrides:
        if override.startswith("init.from="):
            named = override.removeprefix("init.from=").strip("\"'")
    after = _stage_of(named, before) if named else (before[-1] if before else None)
    if after is not None:
        overrides = [*overrides, f"init.from={json.dumps(str(after.final))}"]
    config = load_config(path, TrainConfig, overrides, above=above)
    return Stage(name, path, config, after.name if after else None)


def _stage_of(folder: str, before: Sequence[Stage]) -> Stage | None:
    """The earlier stage whose model that is, where it lies or where its file says it would."""
    for stage in reversed(before):
        declared = Path(read_toml(stage.path)["output"]) / "checkpoints" / FINAL_FOLDER
        if Path(folder) in (declared, stage.final):
            return stage
    return None


def _check_unchanged(stage: Stage, later: Sequence[Stage]) -> None:
    """Refuse settings that differ from those a stage was finished with, when something was trained on top of it."""
    state = _state(stage)
    if state is None or state.step < state.config["steps"] or not stage.final.is_dir():
        return
    begun = next((one.name for one in later if _state(one) is not None), None)
    was, now = _learnt(state.config), _learnt(json.loads(config_json(stage.config)))
    changes = [f"{key} was {was[key]}, is {now[key]}" for key in now if key in was and was[key] != now[key]]
    # More steps for a stage that nothing was trained on top of: it goes on.
    if begun is None and (not changes or stage.config.steps > state.step):
        return
    if changes:
        raise FingerprintMismatch(
            f"{stage.path}: stage {stage.name} was finished with other settings: {'; '.join(changes)}; "
            + (f"stage {begun} began from its model; " if begun else "")
            + f"put them back, or give this stage and the later ones other outputs, or remove {stage.config.output} and "
            "theirs to train them again"
        )


def _check_parent(stage: Stage, parent: Stage | None) -> bool:
    """Whether a stage has begun, from the model that is there now."""
    record = stage.config.output / RECORD_NAME
    if _state(stage) is None or not record.is_file():
        return False
    found, expected = json.loads(record.read_text(encoding="utf-8")), _record(stage, parent)
    if found != expected:
        raise FingerprintMismatch(
            f"{record}: {stage.name} began from {found['from'] or 'no stage'} as it was then ({found['fingerprint']}), "
            f"now {expected['from'] or 'no stage'} ({expected['fingerprint']}): its settings, its data or what it "
            f"began from changed; remove {stage.config.output} to train this stage again, or {RECORD_NAME} in it to keep it"
        )
    return True


def _write_record(stage: Stage, parent: Stage | None) -> None:
    stage.config.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_record(stage, parent), indent=1) + "\n"
    commit_bytes(stage.config.output / RECORD_NAME, text.encode())


def _record(stage: Stage, parent: Stage | None) -> dict[str, str | None]:
    return {"stage": stage.name, "from": parent.name if parent else None, "fingerprint": _made_by(parent)}


def _made_by(stage: Stage | None) -> str | None:
    """Digest of all that made the model of a finished stage."""
    state = _state(stage) if stage is not None else None
    if stage is None or state is None:
        return None
    record = stage.config.output / RECORD_NAME
    before = json.loads(record.read_text(encoding="utf-8"))["fingerprint"] if record.is_file() else None
    facts = {"learnt": _learnt(state.config), "data": dict(state.fingerprints), "step": state.step, "from": before}
    return fingerprint(facts)


def _learnt(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a resolved config says about what is learnt, flat."""
    flat: dict[str, Any] = {}
    for key in LEARNT:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): one for name, one in inner.items()}
    return flat


def _state(stage: Stage) -> RunState | None:
    checkpoint = newest_checkpoint(stage.checkpoints)
    return read_run_state(checkpoint) if checkpoint else None


def _wait_for_all() -> None:
    """Until the first process has exported the model that all start the next stage from; then let its memory go."""
    gc.collect()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
