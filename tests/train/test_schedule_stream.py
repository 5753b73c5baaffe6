"""A run whose shares change reads the same rows on any number of ranks, from any step on, across the changes too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from shards.phases import Phase
from shards.reader import PackedDataset, open_packed
from shards.schedule import Schedule
from train.mix_config import PhasedMixtureConfig, make_schedule
from train.stream import RowStream

BATCH, STEPS = 8, 40


@pytest.fixture
def schedule() -> Schedule:
    """Speech leaves at its cap, after step 12; music comes gradually, from step 21 on."""
    phases = [Phase({"image": 0.5, "speech": 0.5}), Phase({"image": 0.25, "music": 0.75}, 21, ramp_steps=8)]
    sizes = dict.fromkeys(("image", "speech", "music"), 24)
    return Schedule(phases, sizes, BATCH, 5, STEPS, {"speech": 2.0}, "drop")


@pytest.fixture
def datasets(schedule: Schedule, data: Path) -> tuple[PackedDataset, ...]:
    return tuple(open_packed(data / name) for name in schedule.names)


def read(
    schedule: Schedule, datasets: tuple[PackedDataset, ...], first: int, last: int, world_size: int
) -> list[Counter[tuple[int, ...]]]:
    """The rows of each global batch as (dataset, ids), put together from what the ranks read."""
    found: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(first, last + 1)]
    for rank in range(world_size):
        ranks = {"rank": rank, "world_size": world_size, "first_step": first}
        with RowStream(schedule, datasets, batch_rows=BATCH, attention="row", **ranks) as stream:
            for rows in found:
                batch = stream.next()
                whole = np.concatenate([batch.datasets[:, None], batch.token_ids.astype(np.int64)], axis=1)
                rows.update(map(tuple, whole.tolist()))
    return found


def test_every_global_batch_is_what_the_schedule_says(schedule: Schedule, datasets: tuple[PackedDataset, ...]):
    for step, rows in enumerate(read(schedule, datasets, 1, STEPS, 1)):
        expected: Counter[tuple[int, ...]] = Counter()
        for position in range(step * BATCH, (step + 1) * BATCH):
            name, row = schedule.locate(position)
            index = schedule.names.index(name)
            expected[(index, *datasets[index].gather([row])[0].tolist())] += 1
        assert rows == expected, f"step {step + 1}"


def test_ranks_come_and_go_across_the_changes(schedule: Schedule, datasets: tuple[PackedDataset, ...]):
    """2, 4, 1 and 8 ranks, changing inside a ramp and beside a border, read what one rank would have read."""
    straight = read(schedule, datasets, 1, STEPS, 1)
    legs = [(1, 11, 2), (12, 13, 4), (14, 24, 1), (25, STEPS, 8)]
    resumed = [rows for first, last, ranks in legs for rows in read(schedule, datasets, first, last, ranks)]
    assert resumed == straight


def test_the_shipped_quality_phase_is_a_schedule(repository: Path):
    """Music that was read before goes on, and what leaves has given its part."""
    mixture = load_config(repository / "configs/mixtures/paper-quality.toml", PhasedMixtureConfig)
    sizes = dict.fromkeys(mixture.names, 1_000_000)
    schedule = make_schedule(mixture, sizes, batch_rows=480, steps=85_000, seed=0)
    first, second = (stretch.mixture.shares for stretch in schedule.stretches)
    assert second["journeydb"] > first["journeydb"] and "laion2b" not in second
    for name in ("mmc4", "mls", "common-voice", "gigaspeech"):
        assert first[name] == second[name]
    assert schedule.rows_drawn(85_000 * 480)["music"] == 480 * (81_000 // 4 + 4_000 // 5)
