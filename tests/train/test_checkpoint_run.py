"""A run and its checkpoints in one process: what may differ, what is trained, who waits for whom, and signals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from shards.errors import CheckpointError, FingerprintMismatch
from train import engine_state
from train.backbone import build_backbone
from train.checkpoint import StoredTensors, newest_checkpoint, read_master, read_optimizer_state, read_run_state
from train.checkpoint_files import KINDS
from train.checkpoint_run import checkpoint_to_continue, differences, take_up
from train.checkpoint_signals import StopRequest
from train.config import TrainConfig
from train.engine import Processes, make_engine
from train.engine_state import (
    LiveFragment,
    LocalState,
    Staging,
    check_shapes,
    random_states,
    restore_random_states,
    whole_state,
)
from train.plan import make_plan
from train.trainer import start, train

Make = Callable[..., TrainConfig]
ALONE = Processes(0, 1, 0, 1, torch.device("cpu"))


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def checkpoint_of(config: TrainConfig) -> Path:
    newest = newest_checkpoint(config.output / "checkpoints")
    assert newest is not None
    return newest


def events(config: TrainConfig) -> list[dict[str, object]]:
    return [json.loads(line) for line in (config.output / "train.log").read_text(encoding="utf-8").splitlines()]


# --- what may differ


def test_another_mixture_is_refused_and_may_be_allowed(make_config: Make, data: Path, tmp_path: Path):
    config = make_config()
    assert run(config, limit=2) == 2
    other = tmp_path / "mixture.toml"
    other.write_text("[shares]\nimage = 0.25\nspeech = 0.25\nmusic = 0.5\n", encoding="utf-8")
    with pytest.raises(FingerprintMismatch, match=r"with another mixture; .* --set 'resume.allow=\[\"mixture\"\]'"):
        run(make_config(mixture=other))
    allowed = make_config(mixture=other, resume={"allow": ["mixture"]})
    plan = make_plan(allowed, where="test.toml")
    assert differences(plan, checkpoint_of(allowed)) == ["mixture"]
    assert run(allowed, limit=4) == 4
    assert [event["names"] for event in events(config) if event["event"] == "resumed_with_other"] == [["mixture"]]
    assert run(make_config(mixture=other)) == 6, "from now on it is the run's own"


def test_a_model_of_another_shape_is_refused_even_if_allowed(make_config: Make):
    run(make_config(), limit=1)
    larger = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
    with pytest.raises(CheckpointError, match=r"mlp.*: expected shape \[.*64.*\] in the checkpoint, found \[.*48.*\]"):
        run(make_config(model=larger, resume={"allow": ["model"]}))


def test_a_name_that_allows_nothing_is_refused(make_config: Make):
    with pytest.raises(ValidationError, match=r"expected names among vocabulary, .* found \['mixtures'\]"):
        make_config(resume={"allow": ["mixtures"]})


# --- which one is continued


def test_a_torn_checkpoint_is_passed_over_and_written_again(make_config: Make):
    config = make_config(checkpoint={"every": 2})
    run(config, limit=4)
    torn = checkpoint_of(config)
    (torn / "state.json").write_bytes(b"{")
    (config.output / "checkpoints" / "step-00000006.3f.tmp").mkdir()
    plan = make_plan(config, where="test.toml")
    found = checkpoint_to_continue(plan, ALONE)
    assert found is not None and found.name == "step-00000002"
    assert not list((config.output / "checkpoints").glob("*.tmp"))
    assert run(config, limit=4) == 4
    assert checkpoint_of(config) == torn and read_run_state(torn).step == 4


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(make_config: Make, capsys: pytest.CaptureFixture[str]):
    """One bit, whose file has the right size; the run goes on as if it had stopped a little earlier."""
    config = make_config(checkpoint={"every": 2})
    run(config, limit=4)
    damaged = checkpoint_of(config)
    (file,) = damaged.glob("rank-*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="the file is damaged, remove this checkpoint"):
        run(make_config(checkpoint={"every": 2}, resume={"verify": False}))
    assert run(config) == 6
    printed = capsys.readouterr().err
    assert "expected checksum" in printed and "step-00000004.damaged: put aside" in printed
    straight = make_config(output=config.output.with_name("straight"), checkpoint={"every": 2})
    run(straight)
    whole = read_master(checkpoint_of(straight))
    assert all((array == whole[name]).all() for name, array in read_master(checkpoint_of(config)).items())
    assert sorted(path.name for path in (config.output / "checkpoints").glob("step-*")) == [
        "step-00000004",
        "step-00000004.damaged",
        "step-00000006",
    ]


def test_every_checkpoint_is_an_event_with_what_it_cost(make_config: Make, tmp_path: Path):
    for asynchronous in (True, False):
        config = make_config(output=tmp_path / str(asynchronous), checkpoint={"every": 2, "asynchronous": asynchronous})
        run(config)
        found = [event for event in events(config) if event["event"] == "checkpoint"]
        assert [event["step"] for event in found] == [2, 4, 6]
        assert [event["path"] for event in found] == ["step-00000002", "step-00000004", "step-00000006"]
        for event in found:
            assert event["gb"] > 0 and event["seconds"] > 0
            assert asynchronous or event["stall_s"] >= event["seconds"], "the training waited for all of it"


# --- what is trained has a state


@pytest.mark.parametrize(
    "engine", [{"kind": "torch"}, {"kind": "deepspeed", "zero": 2}, {"kind": "deepspeed", "zero": 3}]
)
def test_what_is_frozen_is_not_stored(make_config: Make, tmp_path: Path, engine: dict[str, object]):
    """A run that trains few parameters, as adapters do, writes those; the others come from where it began."""
    config = make_config(engine=engine | {"dtype": "fp32", "head_chunk": 50})
    plan = make_plan(config, where="test.toml")
    network = build_backbone(plan)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("self_attn" in name)
    state = make_engine(network, config, ALONE, micro_batch_rows=4).export_state()
    assert state.shapes and all("self_attn" in name for name in state.shapes)
    assert {fragment.name for fragment in state.fragments} == set(state.shapes)
    assert state.step == 0 and all(not fragment.tensors["exp_avg"].any() for fragment in state.fragments)


def test_the_weights_of_a_checkpoint_are_read_one_at_a_time(make_config: Make):
    config = make_config()
    run(config)
    weights, whole = read_master(checkpoint_of(config)), read_optimizer_state(checkpoint_of(config)).master
    assert list(weights) == [name for name, _ in start(make_plan(config, where="t")).network.named_parameters()]
    assert len(weights) == len(whole)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, whole[name], strict=True)
    with pytest.raises(KeyError):
        weights["no such parameter"]


def test_random_states_come_back(make_config: Make):
    config = make_config()
    run(config)
    stored = StoredTensors(checkpoint_of(config)).random_states(0)
    torch.manual_seed(1234)
    before, expected = random_states(), torch.rand(3)
    trainer = start(make_plan(config, where="test.toml"))
    take_up(checkpoint_of(config), trainer.engine, ALONE)
    assert (random_states()["random/cpu"] == stored["random/cpu"]).all()
    restore_random_states(before)
    assert (torch.rand(3) == expected).all()


def test_a_state_of_other_parameters_is_refused(make_config: Make):
    config = make_config()
    run(config)
    with pytest.raises(
        CheckpointError, match=r"expected the 1 parameters of this model in the checkpoint, found others"
    ):
        check_shapes({"other": (1,)}, StoredTensors(checkpoint_of(config)))


@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_a_copy_is_that_of_the_moment_wherever_it_lies(monkeypatch: pytest.MonkeyPatch, buffer: int):
    """Fragments of any length over buffers of any length; the next copy takes their place, and may have other lengths."""
    monkeypatch.setattr(engine_state, "_BUFFER_VALUES", buffer)
    staging = Staging()
    for lengths in ((3, 0, 4), (3, 0, 4), (2, 6)):
        live = [
            LiveFragment(str(number), number, {kind: torch.rand(length) for kind in KINDS})
            for number, length in enumerate(lengths)
        ]
        copied = staging.copier(LocalState(1, {}, live))()
        expected = [{kind: tensor.tolist() for kind, tensor in fragment.tensors.items()} for fragment in live]
        for fragment in live:
            for tensor in fragment.tensors.values():
                tensor.zero_()
        assert [{kind: array.tolist() for kind, array in fragment.arrays.items()} for fragment in copied] == expected
        assert [(fragment.name, fragment.start) for fragment in copied] == [(one.name, one.start) for one in live]


def test_a_part_is_not_taken_for_the_whole():
    values = {kind: torch.zeros(2) for kind in ("master", "exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match="expected all of"):
        whole_state(LocalState(1, {"a": (4,)}, [LiveFragment("a", 2, values)]))


# --- who waits for whom


def test_an_update_waits_for_the_copy_and_passes_do_not(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    """However slow the copy is: what is stored is the state before the update, and the passes were over long before."""
    copier, order = Staging.copier, []

    def slow(self: Staging, state: LocalState) -> Callable[[], list[object]]:
        copy = copier(self, state)

        def wait_and_copy() -> list[object]:
            time.sleep(0.3)
            order.append("copied")
            return copy()

        return wait_and_copy

    monkeypatch.setattr(Staging, "copier", slow)
    straight = make_config(checkpoint={"every": 1, "keep": 9})
    forward = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a, **k: _note(order, self, forward(self, *a, **k)))
    run(straight, limit=3)
    assert order.index("copied") > order.index("passed", 1), "the second step's pass came before the first copy"
    monkeypatch.undo()
    for step in (1, 2, 3):
        alone = make_config(output=straight.output.with_name(f"alone-{step}"), checkpoint={"asynchronous": False})
        run(alone, limit=step)
        found = read_master(straight.output / "checkpoints" / f"step-{step:08d}")
        for name, array in read_master(checkpoint_of(alone)).items():
            np.testing.assert_array_equal(found[name], array)


def _note(order: list[str], module: nn.Module, result: object) -> object:
    if type(module).__name__ == "Backbone":
        order.append("passed")
    return result


# --- signals


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as an interpreter has it; processes that run tests side by side may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_signal_is_heard_once_and_the_second_acts():
    with StopRequest() as stop:
        assert not stop.heard and not stop.is_agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.heard == 1 and stop.name == "SIGINT"
        stop.tell(torch.tensor(1.0))
        assert stop.is_agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_may_leave_signals_to_the_system():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(listen=False):
        assert signal.getsignal(signal.SIGTERM) is before
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
