"""Exports from checkpoints on disk: any step, at any time, whole or not at all, with the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.text import train_text_tokenizer
from shards.errors import CheckpointError, FingerprintMismatch
from shards.vocabulary import Vocabulary, lay_out
from train.checkpoint import checkpoint_name, read_master
from train.cli import main
from train.config import TrainConfig
from train.export import export_checkpoint
from train.plan import Plan, make_plan
from train.trainer import train

Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Plan:
    """A run of six steps with checkpoints at three and six, exported when it was finished."""
    config = {
        "output": tmp_path_factory.mktemp("run"),
        "data": data,
        "mixture": data / "mixture.toml",
        "steps": 6,
        "batch_rows": 4,
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "pad_vocabulary_to": 50},
        "optimizer": {"lr": 1e-2},
        "engine": {"kind": "torch", "dtype": "fp32"},
        "checkpoint": {"every": 3},
        "log": {"every": 1, "tensorboard": False},
    }
    plan = make_plan(TrainConfig.model_validate(config), where="test.toml")
    assert train(plan) == 6
    return plan


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_newest_checkpoint_is_what_the_run_itself_exports(done: Plan):
    folder = export_checkpoint(done)
    assert folder == done.config.output / "exports" / checkpoint_name(6)
    assert files(folder) == files(done.final)


def test_a_checkpoint_in_between_is_exported_with_its_own_weights(done: Plan, tmp_path: Path, vocabulary: Vocabulary):
    folder = export_checkpoint(done, step=3, folder=tmp_path / "three")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    weights = read_master(done.checkpoints / checkpoint_name(3))
    assert weights["causal.lm_head.weight"].shape[0] == 150
    for name, weight in model.named_parameters():
        expected = torch.from_numpy(weights[f"causal.{name}"])
        assert (weight == expected[: vocabulary.size if len(weight) == vocabulary.size else None]).all(), name
    assert files(folder)["model.safetensors"] != files(done.final)["model.safetensors"]


def test_a_step_without_a_checkpoint_is_refused_and_those_there_are_named(done: Plan, make_config: Make):
    with pytest.raises(CheckpointError, match=r"whole checkpoint of step 4, found those of steps 6, 3;"):
        export_checkpoint(done, step=4)
    with pytest.raises(CheckpointError, match="found those of steps none; give one of them, or train further"):
        export_checkpoint(make_plan(make_config(), where="test.toml"))


def test_weights_of_another_model_are_refused(done: Plan):
    other = done.config.model_copy(update={"model": done.config.model.model_copy(update={"num_heads": 4})})
    with pytest.raises(FingerprintMismatch, match="expected weights of the config's model"):
        export_checkpoint(make_plan(other, where="test.toml"))


def test_the_model_comes_with_its_tokenizer(done: Plan, tmp_path: Path, vocabulary: Vocabulary):
    """From text to ids to logits with nothing but the folder."""
    text = train_text_tokenizer(["the cat sat on the mat"], 259, tmp_path / "text")
    media = [
        {key: getattr(block, key) for key in ("name", "prefix", "start", "end", "codebook_size", "levels")}
        for block in vocabulary.blocks.values()
    ]
    bound = lay_out(
        "toy", text_size=text.size, markers=list(vocabulary.markers), media=media, text_fingerprint=text.fingerprint
    )
    config = done.config.model_copy(update={"tokenizer": tmp_path / "text"})
    folder = tmp_path / "out"
    export_checkpoint(replace(done, config=config, vocabulary=bound), folder=folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("[Human] the cat <soim><👀1><eoim>", return_tensors="pt").input_ids
    assert ids[0, -2] == bound.block("image").first_id + 1
    assert ids[0, 0] == 1


def test_the_command_exports_a_step_or_the_newest(done: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "run.toml"
    stored = json.loads((done.config.output / "config.json").read_text(encoding="utf-8"))
    words = [f"{key}={json.dumps(stored[key])}" for key in ("output", "data", "mixture", "steps", "batch_rows")]
    words += [f"model.{key}={stored['model'][key]}" for key in ("hidden_size", "num_layers", "num_heads")]
    words += ["model.intermediate_size=48", "model.pad_vocabulary_to=50", "engine.kind=torch", "engine.dtype=fp32"]
    config.write_text("", encoding="utf-8")
    command = [str(config), *(word for pair in (("--set", word) for word in words) for word in pair)]
    assert main([*command, "--export", "latest", "--to", str(tmp_path / "newest")]) == 0
    assert files(tmp_path / "newest") == files(done.final)
    assert main([*command, "--export", "3"]) == 0
    assert (done.config.output / "exports" / checkpoint_name(3) / "config.json").is_file()
    assert main([*command, "--export", "soon"]) == 2
    assert "expected the number of a step, or latest, found 'soon'" in capsys.readouterr().err
