"""Sample shards hold what was put in: records -> Parquet -> records, whatever they contain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DatasetError
from shards.manifest import Manifest, ShardEntry, fingerprint, read_manifest, write_manifest
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table, table_to_samples
from shards.sample_reader import read_samples
from shards.vocabulary import Modality
from shards.writer import commit_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def segments(draw):
    if draw(st.booleans()):
        return Segment(draw(st.sampled_from(["caption", "user"])), Modality.TEXT, draw(TEXT))
    levels, frames = draw(st.integers(1, 8)), draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 65536, (frames, levels)).astype(np.uint16)
    return Segment("clip", Modality.MUSIC, codes=codes, duration_s=draw(st.floats(0, 1e4)), media_sha256="ab")


@st.composite
def samples(draw):
    where = Provenance(draw(TEXT), draw(TEXT), draw(st.integers(0, 2**60)), draw(TEXT), draw(TEXT))
    quality = draw(st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3))
    return TokenizedSample(draw(TEXT), "c", "train", tuple(draw(st.lists(segments(), max_size=4))), where, quality)


def same(one: TokenizedSample, other: TokenizedSample) -> bool:
    def plain(sample: TokenizedSample):
        parts = [
            (s.slot, s.modality, s.text, None if s.codes is None else s.codes.tolist(), s.duration_s, s.media_sha256)
            for s in sample.segments
        ]
        return sample.sample_id, sample.corpus, sample.split, parts, sample.provenance, dict(sample.quality)

    return plain(one) == plain(other)


@settings(max_examples=60, deadline=None)
@given(st.lists(samples(), max_size=5))
def test_samples_survive_the_table(written):
    read = list(table_to_samples(samples_to_table(written)))
    assert len(read) == len(written) and all(same(a, b) for a, b in zip(written, read, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=4))
def test_a_dataset_is_read_in_the_order_of_its_manifest(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("dataset")
    shards = []
    for number, sample in enumerate(reversed(written)):
        path = folder / f"shards/{number}.parquet"
        sha256 = commit_table(path, samples_to_table([sample]))
        shards.insert(0, ShardEntry(f"shards/{number}.parquet", 1, path.stat().st_size, sha256, {"music": number}))
    manifest = Manifest("samples", "d", "f", tuple(shards), 1)
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest and manifest.num_rows == len(written)
    assert all(same(a, b) for a, b in zip(written, read_samples(folder), strict=True))


def test_a_cut_shard_and_a_wrong_kind_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    commit_table(path, samples_to_table([]))
    entry = ShardEntry("a.parquet", 0, path.stat().st_size, "x")
    write_manifest(tmp_path, Manifest("samples", "d", "f", (entry,), 1))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"a\.parquet"):
        list(read_samples(tmp_path))
    write_manifest(tmp_path, Manifest("packed", "d", "f", (), 1))
    with pytest.raises(DatasetError, match="kind 'packed'"):
        list(read_samples(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "samples"}'])
def test_a_manifest_that_is_not_whole_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_equal_facts_have_equal_fingerprints_in_any_order():
    assert fingerprint({"a": 1, "b": [1, "é"]}) == fingerprint({"b": [1, "é"], "a": 1}) != fingerprint({"a": 2})
