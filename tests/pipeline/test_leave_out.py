"""Leave-out lists: every listed id is found with its reason, no other is, and they stay small in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.leave_out import KEY, LeaveOut, leave_out_key, leave_out_keys
from shards.errors import DatasetError

IDS = st.text(alphabet="abc/01ä", min_size=1, max_size=8)


def write(path: Path, rows: list[tuple[str, str, str]], *, keyed: bool = False) -> Path:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("corpus", "sample_id", "reason"))}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    if keyed:
        table = table.append_column(KEY, pa.array(leave_out_keys(columns["corpus"], columns["sample_id"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@given(
    listed=st.dictionaries(st.tuples(IDS, IDS), st.sampled_from(["duplicate_media", "leaked_id", "taken_down"])),
    others=st.lists(st.tuples(IDS, IDS)),
    keyed=st.booleans(),
)
def test_what_is_listed_is_found_and_nothing_else(tmp_path_factory, listed, others, keyed: bool):
    path = write(
        tmp_path_factory.mktemp("list") / "list.parquet",
        [(*key, reason) for key, reason in listed.items()],
        keyed=keyed,
    )
    found = LeaveOut.load([path])
    assert len(found) == len(listed)
    for corpus, sample_id in [*listed, *others]:
        assert found.reason(corpus, sample_id) == listed.get((corpus, sample_id))


def test_the_same_id_of_another_corpus_is_another_sample(tmp_path: Path):
    found = LeaveOut.load([write(tmp_path / "list.parquet", [("a", "b/1", "leaked_id")])])
    assert found.reason("a", "b/1") == "leaked_id"
    assert found.reason("a/b", "1") is None


def test_several_lists_count_as_one_and_the_first_reason_holds(tmp_path: Path):
    one = write(tmp_path / "dedup" / "left_out.parquet", [("a", "1", "leaked_id"), ("a", "2", "leaked_text")]).parent
    two = write(tmp_path / "mine.parquet", [("a", "2", "taken_down"), ("a", "3", "taken_down")])
    both = LeaveOut.load([one, two])
    assert [both.reason("a", sample_id) for sample_id in "1234"] == ["leaked_id", "leaked_text", "taken_down", None]
    assert len(LeaveOut.load([])) == 0
    assert LeaveOut.load([]).reason("a", "1") is None


def test_the_fingerprint_is_of_what_is_listed_and_not_of_the_files(tmp_path: Path):
    rows = [("a", str(n), "leaked_id" if n % 3 else "duplicate_media") for n in range(100)]
    whole = LeaveOut.load([write(tmp_path / "whole.parquet", rows)])
    halves = [write(tmp_path / f"{n}.parquet", part, keyed=True) for n, part in enumerate((rows[50:], rows[:50]))]
    assert LeaveOut.load(halves).fingerprint == whole.fingerprint
    other = LeaveOut.load([write(tmp_path / "other.parquet", [*rows[:-1], ("a", "99", "leaked_text")])])
    assert other.fingerprint != whole.fingerprint


def test_a_list_takes_nine_bytes_an_id(tmp_path: Path):
    found = LeaveOut.load([write(tmp_path / "list.parquet", [("a", str(n), "leaked_id") for n in range(1000)])])
    assert found.keys.nbytes + found.codes.nbytes == 9 * 1000
    assert (np.diff(found.keys.astype(object)) > 0).all()


def test_a_file_that_is_no_list_is_named_with_what_it_lacks(tmp_path: Path):
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "wrong.parquet")
    with pytest.raises(DatasetError, match=r"wrong\.parquet.*corpus, sample_id, reason"):
        LeaveOut.load([tmp_path / "wrong.parquet"])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    for name in ("torn.parquet", "absent.parquet"):
        with pytest.raises(DatasetError, match=name):
            LeaveOut.load([tmp_path / name])


def test_a_key_is_64_bits_of_corpus_and_id():
    assert leave_out_key("a", "b") == int(leave_out_keys(["a"], ["b"])[0])
    assert 0 <= leave_out_key("a", "b") < 2**64
