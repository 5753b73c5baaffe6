"""The stream: the same rows for any number of ranks, from any step on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from shards.errors import DatasetError
from shards.mixed_rows import MixedRows
from train.plan import Plan
from train.stream import RowStream


def read(plan: Plan, steps: int, **kwargs: int) -> list[np.ndarray]:
    """(rows, 1 + length) of each step: the dataset's index, then the ids."""
    batches = []
    with RowStream(plan.mixture, plan.datasets, batch_rows=8, attention="document", **kwargs) as stream:
        for _ in range(steps):
            batch = stream.next()
            batches.append(np.concatenate([batch.datasets[:, None], batch.token_ids.astype(np.int64)], axis=1))
    return batches


def test_a_step_reads_the_rows_the_mixture_says(plan: Plan):
    for step, batch in enumerate(read(plan, 5)):
        expected = Counter()
        for position in range(step * 8, (step + 1) * 8):
            name, row = plan.mixture.locate(position)
            index = plan.mixture.names.index(name)
            expected[(index, *plan.datasets[index].gather([row])[0].tolist())] += 1
        assert Counter(tuple(row) for row in batch.tolist()) == expected


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_together_the_ranks_read_the_batch(plan: Plan, world_size: int):
    whole = read(plan, 4)
    parts = [read(plan, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        rows = np.concatenate([part[step] for part in parts])
        assert Counter(map(tuple, rows.tolist())) == Counter(map(tuple, batch.tolist()))


def test_a_stream_that_starts_later_reads_what_the_first_would_have_read(plan: Plan):
    straight, resumed = read(plan, 9), read(plan, 4, first_step=6)
    assert all((left == right).all() for left, right in zip(straight[5:], resumed, strict=True))


def test_a_batch_is_not_overwritten_while_it_is_in_use(plan: Plan):
    with RowStream(plan.mixture, plan.datasets, batch_rows=8, attention="row") as stream:
        for _ in range(20):
            batch = stream.next()
            before = batch.token_ids.copy()
            stream._ahead.result()  # the next batch is complete, in the other buffer
            assert (batch.token_ids == before).all()


def test_a_failure_of_the_reading_thread_reaches_the_trainer(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise DatasetError("shard: gone")

    monkeypatch.setattr(MixedRows, "gather", fail)
    with (
        RowStream(plan.mixture, plan.datasets, batch_rows=8, attention="row") as stream,
        pytest.raises(DatasetError, match="shard: gone"),
    ):
        stream.next()


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(plan: Plan):
    with pytest.raises(ValueError, match="found 8 over 3"):
        RowStream(plan.mixture, plan.datasets, batch_rows=8, attention="row", world_size=3)
