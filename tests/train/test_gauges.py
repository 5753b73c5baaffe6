"""Figures of an interval: utilisation, shares, directions; the same for a run in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from train.config import TrainConfig
from train.devices import find_device
from train.engine import Processes
from train.flops import flops_per_token
from train.gauges import Gauges, packed_flops, sum_of_squares
from train.guards import Judgement
from train.objectives import open_objective
from train.plan import Plan, make_plan
from train.shape import Shape
from train.stream import RowStream

Make = Callable[..., TrainConfig]
ALONE = Processes(0, 1, 0, 1, torch.device("cpu"))
LLAMA = Shape(49_536, 4096, 32, 32, 32, 11_008, False)


def gauges_of(plan: Plan, before: Mapping[str, Any]) -> Gauges:
    groups = open_objective(plan).loss_groups
    return Gauges(plan, groups, processes=ALONE, total=lambda values: values, before=before)


def feed(plan: Plan, gauges: Gauges, first: int, last: int, *, refused: frozenset[int] = frozenset()) -> None:
    """Steps whose losses are numbers of their targets."""
    with RowStream(
        plan.mixture, plan.datasets, batch_rows=plan.config.batch_rows, attention="document", first_step=first
    ) as stream:
        for step in range(first, last + 1):
            batch = stream.next()
            gauges.begin(batch)
            count = int(batch.is_target[:, 1:].sum())
            for part in torch.split(torch.arange(count, dtype=torch.float32) + step, 100):
                gauges.add(part)
            gauges.end(Judgement(1.0, float(step), "spike" if step in refused else ""))


def test_flops_of_a_token_are_those_of_the_literature():
    """LLaMA-2-7B with 49,536 ids, rows of 4,500: 47.15 G in the convention of PaLM, 43.61 G causal."""
    assert round(flops_per_token(LLAMA, 4500) / 1e9, 2) == 47.15
    assert round(flops_per_token(LLAMA, 4500, causal=True) / 1e9, 2) == 43.61
    assert find_device("NVIDIA H200")[1].peak == pytest.approx(989.4e12, rel=1e-3), "dense, not 1,979"


def test_packed_flops_of_one_document_a_row_are_causal_ones_and_of_more_are_fewer():
    rows, length = 3, 4500
    whole = packed_flops(LLAMA, rows * length, sum_of_squares(None, rows, length))
    assert whole == pytest.approx(rows * length * flops_per_token(LLAMA, length, causal=True))
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    assert sum_of_squares(positions, rows, length) == sum_of_squares(None, rows, length)
    positions[:, 1500:] -= 1500
    assert sum_of_squares(positions, rows, length) == rows * (1500**2 + 3000**2)


def test_utilisation_is_work_over_what_the_device_could_have_done(make_config: Make):
    plan = make_plan(make_config(), where="test.toml")
    gauges = gauges_of(plan, {})
    assert isinstance(plan.shape, Shape)
    feed(plan, gauges, 1, 4)
    line = gauges.read(4, lr=0.1)
    assert line.mfu is None and line.mfu_doc is None, "a CPU has no peak"
    gauges._peak = 1e9
    feed(plan, gauges, 5, 8)
    line = gauges.read(8, lr=0.1)
    expected = line.tokens_per_s * flops_per_token(plan.shape, plan.sequence_length) / 1e9
    assert line.mfu == pytest.approx(expected)
    assert line.mfu_doc is not None and line.mfu is not None and 0 < line.mfu_doc < line.mfu


def test_losses_by_direction_sum_to_the_total(make_config: Make):
    plan = make_plan(make_config(), where="test.toml")
    gauges = gauges_of(plan, {})
    feed(plan, gauges, 1, 3)
    found = gauges._table.unpack(gauges._table.packed())
    line = gauges.read(3, lr=0.1)
    counts = dict(zip(found.axes.directions, found.counts.sum((0, 2)), strict=True))
    assert len(line.by_direction) == 6 and counts["unknown"] == 0
    total = sum(line.by_direction[name] * count for name, count in counts.items() if count)
    assert line.loss is not None and total == pytest.approx(line.loss * sum(line.targets.values()))
    without = gauges_of(make_plan(make_config(log={"directions": False}), where="test.toml"), {})
    feed(plan, without, 1, 3)
    other = without.read(3, lr=0.1)
    assert other.by_direction == {} and (other.loss, other.by_dataset) == (line.loss, line.by_dataset)


def test_shares_are_those_of_the_rows_read(make_config: Make):
    plan = make_plan(make_config(), where="test.toml")
    gauges = gauges_of(plan, {})
    feed(plan, gauges, 1, 3)
    gauges.read(3, lr=0.1)
    feed(plan, gauges, 4, 4)
    line = gauges.read(4, lr=0.1)
    for shares, positions in ((line.shares, range(12, 16)), (line.shares_so_far, range(16))):
        names = [plan.mixture.locate(position)[0] for position in positions]
        assert shares == {name: pytest.approx(names.count(name) / len(names)) for name in plan.mixture.names}


def test_a_skipped_step_is_in_no_loss_and_is_counted(make_config: Make):
    plan = make_plan(make_config(), where="test.toml")
    gauges = gauges_of(plan, {})
    feed(plan, gauges, 1, 1, refused=frozenset({1}))
    line = gauges.read(1, lr=0.1)
    assert (line.loss, line.skipped, line.targets, line.grad_norm) == (None, 1, {}, None)
    feed(plan, gauges, 2, 4, refused=frozenset({3}))
    line = gauges.read(4, lr=0.1)
    other = gauges_of(plan, {})
    feed(plan, other, 2, 2)
    feed(plan, other, 4, 4)
    assert line.skipped == 1 and line.loss == other.read(4, lr=0.1).loss and line.grad_norm == 4.0


def test_an_interval_in_two_pieces_has_the_figures_of_the_whole(make_config: Make):
    plan = make_plan(make_config(), where="test.toml")
    whole, first = gauges_of(plan, {}), gauges_of(plan, {})
    feed(plan, whole, 1, 4, refused=frozenset({2}))
    feed(plan, first, 1, 3, refused=frozenset({2}))
    second = gauges_of(plan, first.to_json())
    feed(plan, second, 4, 4)
    left, right = whole.read(4, lr=0.1), second.read(4, lr=0.1)
    for name in ("loss", "by_modality", "by_dataset", "by_direction", "targets", "shares", "skipped", "grad_norm"):
        assert getattr(left, name) == getattr(right, name), name
