"""The ledger's files: entries alone or folded are the same entries, and nothing is lost between the two."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.ledger as ledger
from shards.errors import DatasetError
from shards.ledger import Entry, commit_entry, entry_path, fold_group, fold_ledger, fold_path, read_entries, read_entry
from shards.manifest import ShardEntry


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FOLD_UNITS", 4)


def entry(number: int, *, written: int = 3) -> Entry:
    shard = ShardEntry(f"shards/{ledger.unit_name(number)}.parquet", written, 99, "0" * 64, {"image": 32 * written})
    return Entry(
        ledger.unit_name(number), "f" * 16, "00000.tar", 7, 0, 5, 5, written,
        rejected={"image_truncated": 5 - written}, tokens={"image": 32 * written}, seconds={"speech": 0.1 * number},
        images=written, shard=shard if written else None, left_out_sha256="ab",
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 19), unique=True), data=st.data())
def test_entries_come_back_in_order_however_they_were_folded(
    numbers: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    ledger.FOLD_UNITS = 4
    output = tmp_path_factory.mktemp("output")
    cut = data.draw(st.integers(0, len(numbers)))
    for part in (numbers[:cut], numbers[cut:]):
        for number in part:
            commit_entry(output, entry(number, written=number % 4))
        fold_ledger(output)
    expected = [entry(number, written=number % 4) for number in sorted(numbers)]
    assert list(read_entries(output)) == expected
    assert [read_entry(output, one.number) for one in expected] == expected
    whole = {number // 4 for number in numbers if set(range(number // 4 * 4, number // 4 * 4 + 4)) <= set(numbers)}
    assert {fold_path(output, 4 * group).is_file() for group in whole} <= {True}
    assert len(list((output / "ledger").glob("*.json") if numbers else ())) == len(numbers) - 4 * len(whole)


def test_a_unit_that_is_not_there_has_no_entry(tmp_path: Path):
    for number in range(4):
        commit_entry(tmp_path, entry(number))
    fold_ledger(tmp_path)
    assert read_entry(tmp_path, 9) is None
    assert not list(read_entries(tmp_path / "nowhere"))


def test_an_entry_that_is_replaced_counts_before_and_after_it_is_folded_again(tmp_path: Path):
    for number in range(4):
        commit_entry(tmp_path, entry(number))
    fold_ledger(tmp_path)
    commit_entry(tmp_path, entry(2, written=1))
    for _ in range(2):
        assert read_entry(tmp_path, 2) == entry(2, written=1)
        assert [one.written for one in read_entries(tmp_path)] == [3, 3, 1, 3]
        assert fold_ledger(tmp_path) in (0, 1)
    assert not entry_path(tmp_path, 2).exists()


def test_a_fold_that_was_killed_between_its_two_steps_is_finished_by_the_next(tmp_path: Path):
    for number in range(4):
        commit_entry(tmp_path, entry(number))
    fold_group(tmp_path, 0)
    whole = fold_path(tmp_path, 0).read_bytes()
    commit_entry(tmp_path, entry(3))  # as if it had not been removed yet
    fold_ledger(tmp_path)
    assert fold_path(tmp_path, 0).read_bytes() == whole
    assert not entry_path(tmp_path, 3).exists()


@pytest.mark.parametrize("folded", [False, True])
def test_a_damaged_entry_is_named_with_the_way_out(tmp_path: Path, folded: bool):
    for number in range(4):
        commit_entry(tmp_path, entry(number))
    if folded:
        fold_ledger(tmp_path)
    path = fold_path(tmp_path, 0) if folded else entry_path(tmp_path, 1)
    path.write_bytes(b'{"unit": ')
    with pytest.raises(DatasetError, match=rf"{path.name}.*remove that file"):
        list(read_entries(tmp_path))
