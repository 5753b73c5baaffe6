"""Units, ledger, rejects and sums without a cluster: nothing lost, nothing twice, and a message that says what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.samples import Filtered, Reject, Source
from shards.errors import DatasetError, FingerprintMismatch, RejectBudgetExceeded
from shards.ledger import Entry, commit_entry
from shards.left_out import REJECT_SCHEMA, join_parts
from shards.manifest import ShardEntry
from shards.output_lock import only_writer, remove_temporaries
from shards.records import Provenance
from shards.summary import summarize
from shards.writer import commit_bytes, commit_table
from tokenize_jobs.ledger import check_facts, commit_facts, planned_entries
from tokenize_jobs.plan import Unit, Units, cut_units
from tokenize_jobs.rejects import check_budget, left_out_table
from tokenize_jobs.report import format_reports, make_manifest, read_report, write_report

PROVENANCE = Provenance("00000.tar", "000000001", 512)


def sources(sizes: list[int]) -> list[Source]:
    return [Source(Path(f"{number:05d}.tar"), size, "part") for number, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 12), st.none() | st.integers(0, 100))
def test_units_hold_every_item_up_to_the_limit_exactly_once_in_order(
    sizes: list[int], unit_items: int, limit: int | None
) -> None:
    units = cut_units(sources(sizes), unit_items=unit_items, limit=limit)
    found = [(unit.source.path.name, item) for unit in units for item in range(unit.start, unit.stop)]
    expected = [(f"{number:05d}.tar", item) for number, size in enumerate(sizes) for item in range(size)]
    assert found == expected[: len(expected) if limit is None else limit]
    assert [unit.number for unit in units] == list(range(len(units)))
    assert all(1 <= unit.num_items <= unit_items for unit in units)


@given(st.lists(st.integers(0, 30), max_size=5), st.integers(1, 12), st.integers(0, 30))
def test_a_raw_file_that_is_added_at_the_end_changes_no_unit(sizes: list[int], unit_items: int, added: int) -> None:
    before = cut_units(sources(sizes), unit_items=unit_items)
    after = cut_units(sources([*sizes, added]), unit_items=unit_items)
    assert after[: len(before)] == list(before)


@settings(deadline=None)  # the first table imports pandas
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 12))
def test_units_survive_their_way_through_rows_of_sources_alone(sizes: list[int], unit_items: int) -> None:
    units = cut_units(sources(sizes), unit_items=unit_items)
    rows = units.to_table(np.arange(len(units)), task=0).to_pylist()
    assert [units.sources_only().from_row(row) for row in rows] == list(units)


def finished_unit(output: Path, root: Path, number: int = 0) -> tuple[Unit, Entry]:
    """A unit with a committed shard and entry."""
    raw = root / f"{number:05d}.tar"
    root.mkdir(exist_ok=True)
    raw.write_bytes(b"raw" * (number + 1))
    unit = Unit(number, Source(raw, 5), 0, 5)
    commit_bytes(unit.shard(output), b"shard")
    shard = ShardEntry(f"shards/{unit.name}.parquet", 4, 5, "0" * 64, {"image": 128})
    entry = Entry(unit.name, "f" * 16, raw.name, raw.stat().st_size, 0, 5, 5, 4, rejected={"image_truncated": 1})
    entry = replace(entry, shard=shard, tokens={"image": 128}, images=4)
    commit_entry(output, entry, writer=".1")
    return unit, entry


def plan_of(root: Path, *, units: int = 1) -> Units:
    return cut_units([Source(root / f"{number:05d}.tar", 5) for number in range(units)], unit_items=5)


def test_a_committed_unit_is_done_and_a_missing_one_is_not(tmp_path: Path) -> None:
    output, root = tmp_path / "out", tmp_path / "root"
    _, entry = finished_unit(output, root)
    assert list(planned_entries(plan_of(root, units=2), output, root, "f" * 16)) == [(entry, True)]


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_a_unit_whose_shard_is_not_whole_has_to_be_done_again(tmp_path: Path, damage: str) -> None:
    output, root = tmp_path / "out", tmp_path / "root"
    unit, entry = finished_unit(output, root)
    if damage == "gone":
        unit.shard(output).unlink()
    else:
        unit.shard(output).write_bytes(b"sha")
    assert list(planned_entries(plan_of(root), output, root, "f" * 16)) == [(entry, False)]


def test_a_corpus_that_changed_under_a_dataset_is_named_with_both_states(tmp_path: Path) -> None:
    output, root = tmp_path / "out", tmp_path / "root"
    unit, _ = finished_unit(output, root)
    unit.source.path.write_bytes(b"another download")
    with pytest.raises(DatasetError, match=r"00000\.tar \(3 bytes\), the corpus now has .*\(16 bytes\)"):
        list(planned_entries(plan_of(root), output, root, "f" * 16))


def test_a_corpus_that_shrank_is_an_error_and_deletes_nothing(tmp_path: Path) -> None:
    output, root = tmp_path / "out", tmp_path / "root"
    unit, _ = finished_unit(output, root)
    with pytest.raises(DatasetError, match="unit-000000"):
        list(planned_entries(plan_of(root, units=0), output, root, "f" * 16))
    assert unit.shard(output).is_file()


def test_a_moved_corpus_is_the_same_corpus(tmp_path: Path) -> None:
    output, root = tmp_path / "out", tmp_path / "root"
    _, entry = finished_unit(output, root)
    moved = root.rename(tmp_path / "elsewhere")
    assert list(planned_entries(plan_of(moved), output, moved, "f" * 16)) == [(entry, True)]


def test_changed_facts_are_an_error_that_names_each_change_and_the_way_out(tmp_path: Path) -> None:
    facts = {"config": {"filters": {"min_side_px": 100}, "split": "train"}, "tokenizers": {"image": "aa"}}
    commit_facts(tmp_path, facts)
    assert check_facts(tmp_path, facts) == check_facts(tmp_path / "fresh", facts)
    other = {**facts, "config": {"filters": {"min_side_px": 200}, "split": "train"}}
    with pytest.raises(FingerprintMismatch, match=r"config\.filters\.min_side_px was 100, now 200.*--set output=DIR"):
        check_facts(tmp_path, other)


def test_two_runs_never_write_into_one_output(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(DatasetError, match="no other run"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / "manifest.json.tmp", tmp_path / "shards" / "unit-000001.parquet.77.tmp"]
    kept = tmp_path / "shards" / "unit-000000.parquet"
    for path in [*left, kept]:
        commit_bytes(path, b"x")
    remove_temporaries(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_left_out_inputs_are_two_tables_in_unit_order_with_where_they_came_from(tmp_path: Path) -> None:
    first = [
        Reject("a", "laion2b", "image_truncated", "half", PROVENANCE),
        Filtered("b", "laion2b", "unsafe", "", PROVENANCE),
    ]
    second = [Reject("c", "laion2b", "text_empty", "white", PROVENANCE)]
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for number, (part, items) in enumerate(zip(parts, (first, second), strict=True)):
        commit_table(part, left_out_table(items, f"unit-{number:06d}"))
    join_parts(parts, tmp_path)
    rejects, filtered = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("rejects", "filtered"))
    assert rejects.schema.equals(REJECT_SCHEMA)
    assert rejects.column("sample_id").to_pylist() == ["a", "c"]
    assert filtered.column("reason").to_pylist() == ["unsafe"]
    row = rejects.to_pylist()[0]
    assert (row["source_file"], row["member"], row["offset"], row["unit"]) == (
        "00000.tar",
        "000000001",
        512,
        "unit-000000",
    )


def test_nothing_left_out_still_gives_both_tables(tmp_path: Path) -> None:
    join_parts([], tmp_path)
    assert pq.read_table(tmp_path / "rejects.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "filtered.parquet").num_rows == 0


def test_an_exceeded_budget_names_the_most_frequent_reasons_and_the_key() -> None:
    rejected = {"image_truncated": 30, "text_empty": 20, "image_too_small": 5, "rare": 1}
    check_budget(rejected, 1000, share=0.056, where="out", key="budget.unit_share")
    with pytest.raises(
        RejectBudgetExceeded, match=r"image_truncated \(30\), text_empty \(20\).*budget\.unit_share"
    ) as error:
        check_budget(rejected, 1000, share=0.05, where="out", key="budget.unit_share")
    assert "rare" not in str(error.value)


def test_a_handful_of_inputs_exceeds_no_budget() -> None:
    check_budget({"image_truncated": 9}, 10, share=0.0, where="out", key="budget.unit_share")


def test_the_report_adds_up_over_units(tmp_path: Path) -> None:
    entries = [finished_unit(tmp_path / "out", tmp_path / "root", number)[1] for number in range(3)]
    summary = summarize(entries)
    sums = summary.sums
    assert (sums["inputs"], sums["written"], sums["rejected"]) == (15, 12, {"image_truncated": 3})
    assert sums["tokens"] == {"image": 384}
    report = write_report(tmp_path, sums, seconds=2.0)
    assert (report["tokens_per_s"], read_report(tmp_path)) == (192.0, report)
    assert "image 384" in format_reports({"laion2b": report})
    manifest = make_manifest("laion2b", summary, fingerprint="f" * 16, facts={}, tokenizers={"image": "aa"})
    assert (manifest.kind, manifest.num_rows, manifest.tokens) == ("samples", 12, {"image": 384})


def test_a_unit_that_does_not_add_up_is_our_mistake_and_stops_the_report(tmp_path: Path) -> None:
    entry = replace(finished_unit(tmp_path / "out", tmp_path / "root")[1], written=5)
    with pytest.raises(AssertionError, match="written"):
        summarize([entry])
