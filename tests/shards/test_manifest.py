"""Manifests: the bytes are plain JSON's, whatever holds the shards, and what is written is what is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, ShardTable, read_manifest, write_manifest

SHARDS = st.lists(
    st.builds(
        ShardEntry,
        path=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        num_rows=st.integers(0, 2**40),
        num_bytes=st.integers(0, 2**60),
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
        tokens=st.dictionaries(st.sampled_from(["image", "speech", "text"]), st.integers(0, 2**40)),
    ),
    max_size=9,
)
TRICKY = {"shards": [], 'a\n "shards": []': '\n "shards": []', "deep": {"shards": []}}


@given(SHARDS)
def test_a_table_of_shards_is_equal_to_their_list(shards: list[ShardEntry]):
    table = ShardTable.build(shards)
    assert list(table) == shards == [table[n] for n in range(len(shards))]
    assert table == tuple(shards)
    assert table == pickle.loads(pickle.dumps(table))
    assert list(table[1:7:2]) == shards[1:7:2]
    assert list(table[::-1]) == shards[::-1]
    for place in (len(shards), -len(shards) - 1):
        with pytest.raises(IndexError, match="expected one of"):
            table[place]


def test_a_table_is_not_equal_to_other_shards():
    one, other = (ShardEntry("a.parquet", rows, 1, "0" * 64) for rows in (1, 2))
    assert ShardTable.build([one]) != [other]
    assert ShardTable.build([one]) != ShardTable.build([one, one])
    assert len(ShardTable.build(one for _ in range(2500))) == 2500


@given(SHARDS, st.booleans())
def test_a_manifest_is_plain_json_and_comes_back(shards: Sequence[ShardEntry], as_table: bool):
    held = ShardTable.build(shards) if as_table else tuple(shards)
    manifest = Manifest("samples", "d", "f" * 16, held, 1, config=TRICKY, extra={"n": 1})
    with TemporaryDirectory() as folder:
        write_manifest(Path(folder), manifest)
        data = (Path(folder) / MANIFEST_NAME).read_bytes()
        plain = asdict(Manifest("samples", "d", "f" * 16, tuple(shards), 1, config=TRICKY, extra={"n": 1}))
        assert data.decode() == json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        assert read_manifest(Path(folder)).shards == tuple(shards)
