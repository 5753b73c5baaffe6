"""What is not learnt from: judged alike by all, changes nothing, is shown, and stops a run that goes on like that."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import AnyGPTError
from shards.inspection import shown_rows
from shards.inspector import inspect_dataset
from shards.inspector_media import Decoders
from shards.reader import open_packed
from train import trainer as trainer_room
from train.config import TrainConfig
from train.engine_state import whole_state
from train.guards import Guard
from train.metrics import read_metrics
from train.plan import make_plan
from train.trainer import Trainer, open_stream, rate, start, train, train_step
from train.watch_config import GuardsConfig

Make = Callable[..., TrainConfig]
RULES = GuardsConfig(spike_factor=3.0, window=8, warm_up=4, max_skips=3)
ENGINES = {
    "torch": {"kind": "torch", "dtype": "fp32", "head_chunk": 50},
    "zero1": {"kind": "deepspeed", "zero": 1, "dtype": "fp32", "head_chunk": 50},
    "zero2": {"kind": "deepspeed", "zero": 2, "dtype": "bf16", "head_chunk": 50},
    "zero3": {"kind": "deepspeed", "zero": 3, "dtype": "bf16", "head_chunk": 50, "micro_batch_rows": 2},
}
STEPS = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100) | st.just(math.inf)), max_size=40)


@given(STEPS, st.integers(0, 40))
def test_a_resumed_guard_judges_as_one_that_was_not_stopped(steps: list[tuple[float, float]], cut: int):
    straight = Guard(RULES, {})
    first = Guard(RULES, {})
    expected = [straight.judge(*step) for step in steps]
    found = [first.judge(*step) for step in steps[:cut]]
    second = Guard(RULES, json.loads(json.dumps(first.to_json())))
    assert found + [second.judge(*step) for step in steps[cut:]] == expected
    assert second.to_json() == straight.to_json()


@given(STEPS)
def test_what_is_not_finite_is_always_refused_and_an_even_run_never(steps: list[tuple[float, float]]):
    guard = Guard(RULES, {})
    assert all(guard.judge(loss, norm).refused for loss, norm in steps if not math.isfinite(norm))
    even = Guard(RULES, {})
    assert not any(even.judge(min(loss, 2.9), 1.0).refused for loss, _ in steps if loss >= 1)


def test_a_spike_is_told_by_the_median_after_a_warm_up_and_moves_it_not():
    guard = Guard(RULES, {})
    assert not any(guard.judge(2.0, norm).refused for norm in (50.0, 1.0, 1.0, 1.2))
    assert guard.judge(2.0, 3.4).refused == "gradient norm 3.4, 3.1 x the median 1.1"
    assert guard.judge(6.1, 1.0).refused == "loss 6.1, 3.0 x the median 2"
    assert guard.skipped_in_a_row == 2
    assert not guard.judge(2.0, 3.2).refused and guard.skipped_in_a_row == 0
    assert not any(Guard(GuardsConfig(spike_factor=0), {}).judge(2.0, 10.0**n).refused for n in range(300))


@contextmanager
def fault(trainer: Trainer, factor: float) -> Iterator[None]:
    """Losses, and with them gradients, are multiplied: by NaN, or by much."""
    hook = trainer.network.register_forward_hook(lambda _module, _args, out: (out[0] * factor, out[1] * factor))
    yield
    hook.remove()


def run_steps(config: TrainConfig, *, faulty: dict[int, float], left_out: frozenset[int] = frozenset()) -> Any:
    """Losses and norms of steps 1 to 6 that were learnt from, why others were not, and the state in the end."""
    trainer = start(make_plan(config, where="test.toml"))
    figures, reasons = [], {}
    with open_stream(trainer) as stream:
        for step in range(1, 7):
            batch = stream.next()
            if step in left_out:
                continue
            with fault(trainer, faulty.get(step, 1.0)):
                judged = train_step(trainer, batch, rate(config, step))
            if judged.refused:
                reasons[step] = judged.refused
            else:
                figures.append((step, judged.loss, judged.grad_norm))
    return figures, reasons, whole_state(trainer.engine.export_state())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_step_is_one_that_never_happened(make_config: Make, engine: str):
    """Weights, moments and their step counts; at the first step, when there are no moments yet, and later."""
    config = make_config(engine=ENGINES[engine], guards={"spike_factor": 5.0, "warm_up": 1})
    figures, reasons, state = run_steps(config, faulty={1: math.nan, 4: 1e3, 5: math.inf})
    assert set(reasons) == {1, 4, 5} and "x the median" in reasons[4]
    expected, none, other = run_steps(config, faulty={}, left_out=frozenset({1, 4, 5}))
    assert not none and figures == expected and len(figures) == 3
    assert state.step == other.step == 3
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        left, right = getattr(state, kind), getattr(other, kind)
        assert left and all((array == right[name]).all() for name, array in left.items())


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the losses of some steps of whole runs NaN."""
    honest = trainer_room.train_step

    def plant(steps: set[int]) -> None:
        def step_with_fault(trainer: Trainer, batch: Any, lr: float) -> Any:
            step = 1 + int(batch.positions.min()) // trainer.plan.config.batch_rows
            with fault(trainer, math.nan if step in steps else 1.0):
                return honest(trainer, batch, lr)

        monkeypatch.setattr(trainer_room, "train_step", step_with_fault)

    return plant


def test_a_skipped_batch_is_logged_and_dumped_so_that_the_inspector_shows_it(
    make_config: Make, plant: Callable[[set[int]], None]
):
    config = make_config(steps=5)
    plant({3})
    plan = make_plan(config, where="test.toml")
    assert train(plan) == 5
    assert [line["skipped"] for line in read_metrics(config.output / "metrics.jsonl")] == [0, 0, 1, 0, 0]
    events = [json.loads(line) for line in (config.output / "train.log").read_text(encoding="utf-8").splitlines()]
    (event,) = [event for event in events if event["event"] == "skipped"]
    folder = config.output / "dumps" / "step-3"
    assert (event["step"], event["reason"], event["dump"]) == (3, "loss nan", str(folder))

    dumped = open_packed(folder)
    facts = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    losses = np.load(folder / "losses.npy")
    assert (facts["loss"], facts["lr"], len(facts["rows"])) == ("nan", rate(config, 3), config.batch_rows)
    for number, (row, shown) in enumerate(zip(facts["rows"], shown_rows(dumped, range(4)), strict=True)):
        name, there = plan.mixture.locate(8 + number)
        assert (row["position"], row["dataset"], row["row"]) == (8 + number, name, there)
        dataset = plan.datasets[plan.mixture.names.index(name)]
        assert (dumped.gather([number]) == dataset.gather([there])).all()
        assert row["samples"] == [document.sample_id for document in shown.documents]
        trained = np.concatenate([stretch.trained for document in shown.documents for stretch in document.stretches])
        starts = dumped.document_starts(number)
        trained[starts] = False
        assert (np.isnan(losses[number]) == np.pad(trained, (0, 64 - len(trained)))).all()
    page = inspect_dataset(folder, Decoders())
    assert facts["rows"][0]["samples"][0] in page and "text to" in page


def test_a_dump_that_cannot_be_written_is_logged_and_no_reason_to_stop(
    make_config: Make, plant: Callable[[set[int]], None]
):
    """A file is where the folder should be."""
    config = make_config(steps=3)
    config.output.mkdir()
    (config.output / "dumps").write_text("", encoding="utf-8")
    plant({2})
    assert train(make_plan(config, where="test.toml")) == 3
    log = (config.output / "train.log").read_text(encoding="utf-8")
    assert '"event": "dump_failed"' in log and '"event": "skipped"' in log


def test_a_run_that_goes_on_like_that_stops_also_across_a_resume(make_config: Make, plant: Callable[[set[int]], None]):
    """Two skips before the stop at step 4, one after: three in a row."""
    config = make_config(steps=9, guards={"max_skips": 3}, checkpoint={"every": 100})
    plant({3, 4, 5, 6})
    plan = make_plan(config, where="test.toml")
    assert train(plan, limit=4) == 4
    with pytest.raises(
        AnyGPTError, match=r"at most 2 steps in a row that are left out, found 3; look at it with .*step-5"
    ):
        train(plan)
    assert sorted(path.name for path in (config.output / "dumps").iterdir()) == ["step-3", "step-4", "step-5"]
    plant(set())
    assert train(plan) == 9


def test_no_checkpoint_is_made_right_after_a_skipped_step_but_after_the_next(
    make_config: Make, plant: Callable[[set[int]], None]
):
    config = make_config(steps=7, checkpoint={"every": 3, "keep": 9}, guards={"dump": False})
    plant({3})
    train(make_plan(config, where="test.toml"))
    names = sorted(path.name for path in (config.output / "checkpoints").iterdir() if path.name.startswith("step"))
    assert [int(name.split("-")[1]) for name in names] == [4, 6, 7]
    assert not (config.output / "dumps").exists()


def test_a_factor_that_would_refuse_half_of_all_steps_is_no_config():
    with pytest.raises(ValueError, match="spike_factor above 1, or 0 for none"):
        GuardsConfig(spike_factor=0.5)
