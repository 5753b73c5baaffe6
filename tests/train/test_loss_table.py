"""The table of losses: every target in one cell, any sums add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.loss_table import Axes, LossTable, stored_cells

AXES = Axes(("laion", "mls"), ("unknown", "text_to_image"), ("text", "image", "speech"))
Target = tuple[float, int, int, int]
TARGETS = st.lists(
    st.tuples(st.floats(0, 20, width=32), st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)), min_size=1
)


def table_of(targets: list[Target]) -> LossTable:
    table = LossTable(AXES, torch.device("cpu"))
    losses, *axes = (np.array(column) for column in zip(*targets, strict=True))
    table.add(torch.from_numpy(losses).float(), table.cells_of(*axes))
    return table


@given(TARGETS)
def test_sums_by_any_axis_are_those_of_a_count_by_hand(targets: list[Target]):
    table = table_of(targets)
    found = table.unpack(table.packed())
    for axis, names in enumerate((AXES.datasets, AXES.directions, AXES.modalities)):
        means = found.means(axis)
        for number, name in enumerate(names):
            mine = [target[0] for target in targets if target[1 + axis] == number]
            assert (name in means) == bool(mine)
            if mine:
                assert means[name] == pytest.approx(sum(mine) / len(mine))
    assert found.mean == pytest.approx(sum(loss for loss, *_ in targets) / len(targets))
    assert sum(found.targets.values()) == len(targets)


@given(TARGETS, TARGETS)
def test_what_is_stored_and_taken_up_again_is_the_same(first: list[Target], second: list[Target]):
    before = table_of(first)
    after = table_of(second)
    after.add_stored(before.unpack(before.packed()).to_json())
    whole = table_of(first + second)
    np.testing.assert_allclose(after.packed().numpy(), whole.packed().numpy())


def test_a_table_from_before_there_were_directions_is_taken_up_as_unknown():
    sums, counts = [[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [[1, 1, 0], [0, 0, 2]]
    table = LossTable(AXES, torch.device("cpu"))
    table.add_stored(stored_cells({"losses": [sums, counts]}, AXES))
    found = table.unpack(table.packed())
    assert found.means(0) == {"laion": 1.5, "mls": 2.5} and found.means(1) == {"unknown": 2.0}
    assert stored_cells({}, AXES) == []


def test_names_that_are_no_more_are_left_out_and_a_new_order_changes_nothing():
    table = table_of([(3.0, 1, 1, 2), (1.0, 0, 0, 0)])
    stored = table.unpack(table.packed()).to_json()
    other = LossTable(Axes(("mls", "new"), ("unknown", "a", "text_to_image"), ("speech", "text")), torch.device("cpu"))
    other.add_stored(stored)
    found = other.unpack(other.packed())
    assert (found.means(0), found.means(1), found.means(2)) == ({"mls": 3.0}, {"text_to_image": 3.0}, {"speech": 3.0})


def test_an_empty_table_has_no_mean():
    table = LossTable(AXES, torch.device("cpu"))
    assert table.unpack(table.packed()).mean is None
