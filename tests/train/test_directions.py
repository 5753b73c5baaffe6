"""Which way every id of a batch goes, from the sidecars."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import DatasetError
from shards.packed import sidecar_path
from train.config import TrainConfig
from train.directions import UNKNOWN, Directions
from train.plan import Plan, make_plan

Make = Callable[..., TrainConfig]


def by_hand(plan: Plan, names: tuple[str, ...], position: int) -> np.ndarray:
    """The direction of every id of a row, from the records of its sidecar."""
    name, row = plan.mixture.locate(position)
    dataset = plan.datasets[plan.mixture.names.index(name)]
    shards, local = dataset.locate([row])
    out = np.zeros(plan.sequence_length, np.uint8)
    sidecar = sidecar_path(dataset.folder / dataset.manifest.shards[int(shards[0])].path)
    for record in pq.read_table(sidecar).to_pylist():
        if record["row"] == int(local[0]):
            out[record["start"] : record["stop"]] = names.index(record["direction"])
    return out


def test_every_id_has_the_direction_of_its_document(plan: Plan):
    directions = Directions(plan.mixture, plan.datasets)
    assert directions.names[0] == UNKNOWN and len(directions.names) == 7
    positions = np.array([7, 0, 300, 7, 2])
    found = directions.of_rows(positions, plan.sequence_length)
    for place, position in enumerate(positions.tolist()):
        expected = by_hand(plan, directions.names, position)
        assert expected.any()
        np.testing.assert_array_equal(found[place], expected)


def test_little_is_kept_and_what_was_let_go_is_read_again(plan: Plan):
    """A bound below one sidecar: one at a time, and the same answers."""
    positions = np.arange(24)
    tight, roomy = (Directions(plan.mixture, plan.datasets, most_bytes=size) for size in (1, 1 << 20))
    found = tight.of_rows(positions, plan.sequence_length)
    np.testing.assert_array_equal(found, roomy.of_rows(positions, plan.sequence_length))
    assert (len(tight._kept), len(roomy._kept)) == (1, 3)


def test_without_a_sidecar_directions_are_unknown_and_a_damaged_one_is_told(
    make_config: Make, data: Path, tmp_path: Path
):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    plan = make_plan(make_config(data=copy, mixture=copy / "mixture.toml"), where="test.toml")
    sidecar = next((copy / "image").glob("*.parquet"))
    image = np.array([position for position in range(12) if plan.mixture.locate(position)[0] == "image"])
    whole = sidecar.read_bytes()
    sidecar.unlink()
    assert not Directions(plan.mixture, plan.datasets).of_rows(image, plan.sequence_length).any()
    sidecar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"expected the direction of every document.*log.directions=false"):
        Directions(plan.mixture, plan.datasets).of_rows(image, plan.sequence_length)


def test_a_manifest_that_tells_no_directions_is_not_asked_for_sidecars(plan: Plan):
    """Directions of old datasets are unknown, and no file is opened."""
    for dataset in plan.datasets:
        del dataset.manifest.extra["tokens_by_direction"]
    directions = Directions(plan.mixture, plan.datasets)
    assert directions.names == (UNKNOWN,)
    assert not directions.of_rows(np.arange(8), plan.sequence_length).any()
    assert not directions._kept
