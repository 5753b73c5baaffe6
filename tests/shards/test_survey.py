"""Numbers behind the inspector's charts: equal to those counted by hand, and of a large dataset from few files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DatasetError
from shards.histogram import Histogram, draw_histogram, make_histogram, say_number
from shards.inspection import spread
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.packed import PackedRow, Placement, sidecar_path, write_packed_shard
from shards.reader import open_packed
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.survey import Survey, survey_packed
from shards.survey_samples import survey_samples
from shards.vocabulary import Modality, Vocabulary
from shards.writer import commit_table

VALUES = st.one_of(st.floats(-1e12, 1e12), st.floats(0, 1), st.integers(-(10**9), 10**9).map(float), st.just(np.nan))


@given(st.lists(VALUES, max_size=40), st.booleans())
def test_every_value_is_in_the_bin_that_names_it(values: list[float], whole: bool) -> None:
    values = [float(round(value)) if whole and np.isfinite(value) else value for value in values]
    histogram = make_histogram(values, whole=whole)
    known = [value for value in values if np.isfinite(value)]
    last = len(histogram.counts) - 1
    assert last < 28
    assert list(histogram.edges) == sorted(set(histogram.edges))
    for number, count in enumerate(histogram.counts):
        begin, end = histogram.edges[number : number + 2]
        assert count == sum(begin <= v and (v < end or (number == last and v == end)) for v in known)
    assert sum(histogram.counts) == len(known)


def test_few_different_counts_have_a_bin_each() -> None:
    histogram = make_histogram([3, 1, 1, 4], whole=True)
    assert histogram == Histogram((1, 2, 3, 4, 5), (2, 0, 1, 1), unit_bins=True)
    assert [histogram.name(number) for number in range(4)] == ["1", "2", "3", "4"]


def test_one_value_alone_is_its_own_bin() -> None:
    assert make_histogram([0.25, 0.25]) == Histogram((0.25, 1.25), (2,), unit_bins=True)
    assert make_histogram([0.25]).name(0) == "0.25"


def test_values_over_several_orders_of_magnitude_have_round_borders() -> None:
    histogram = make_histogram([0, 1, 3, 3, 8, 900], whole=True)
    assert histogram.edges == (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert histogram.counts == (1, 1, 2, 1, 0, 0, 0, 0, 0, 1)
    assert ">ids (steps of 1, 2, 5, 10, …)</text>" in draw_histogram(histogram, label="l", unit="ids", things="rows")
    assert ">s</text>" in draw_histogram(make_histogram([0.5, 0.7, 1.9]), label="l", unit="s", things="rows")


def test_a_chart_says_in_words_what_it_shows_and_names_both_axes() -> None:
    drawn = draw_histogram(make_histogram([1, 1, 2], whole=True), label='<"length">', unit="ids", things="documents")
    assert 'aria-label="&lt;&quot;length&quot;&gt;: 3 documents from 1 to 3 ids, most of them (2) at 1 ids"' in drawn
    assert ">documents</text>" in drawn
    assert ">ids</text>" in drawn
    assert "<title>1: 2 documents</title>" in drawn
    assert "no rows" in draw_histogram(make_histogram([]), label="fill", unit="%", things="rows")


def test_numbers_read_as_a_person_writes_them() -> None:
    assert [say_number(value) for value in (1500.0, 0.25, 2e-6, -3.0)] == ["1,500", "0.25", "2e-06", "-3"]


def values_of(survey: Survey, title: str, part: str = "") -> list[float]:
    [found] = [measured for measured in survey.measured if (measured.title, measured.part) == (title, part)]
    return found.values.tolist()


def test_numbers_of_packed_rows_are_those_counted_by_hand(
    tmp_path: Path, vocabulary: Vocabulary, make_row, packed_folder: Path
) -> None:
    rng = np.random.default_rng(3)
    entries, written = [], []
    for shard in range(2):
        rows = [told(make_row(rng, f"{shard}-{row}"), row) for row in range(70 + shard)]
        written += rows
        entries.append(write_packed_shard(tmp_path / f"{shard}.arrow", rows, vocabulary=vocabulary, sequence_length=96))
    manifest = replace(read_manifest(packed_folder), shards=tuple(entries))
    write_manifest(tmp_path, manifest)
    survey = survey_packed(open_packed(tmp_path))

    assert (survey.looked_at, survey.total, survey.is_whole) == (141, 141, True)
    assert values_of(survey, "Fill of rows") == [row.num_tokens / 96 * 100 for row in written]
    assert values_of(survey, "Documents per row") == [len(row.placements) for row in written]
    placements = [(row, placement) for row in written for placement in row.placements]
    starts = {block.start_id for block in vocabulary.blocks.values()}
    media = [sum(int(i) in starts for i in row.token_ids[p.start : p.stop]) for row, p in placements]
    assert values_of(survey, "Media per document") == media
    for direction in ("a_to_b", "b_to_a"):
        lengths = [p.stop - p.start for _, p in placements if p.direction == direction]
        assert values_of(survey, "Length of documents", direction) == lengths
    names, index = vocabulary.modality_names(), vocabulary.modality_index()
    tokens = {"even": Counter(), "odd": Counter()}
    for row, p in placements:
        tokens[p.dataset].update(names[index[i]] for i in row.token_ids[p.start : p.stop])
    assert survey.tokens == tokens
    assert sum(map(Counter, survey.tokens.values()), Counter()) == manifest.tokens


def told(row: PackedRow, number: int) -> PackedRow:
    """The row with directions and datasets that differ."""
    placements = tuple(
        Placement(p.sample_id, ("even", "odd")[number % 2], 0, ("a_to_b", "b_to_a")[n % 2], p.start, p.stop)
        for n, p in enumerate(row.placements)
    )
    return replace(row, placements=placements)


def test_without_sidecars_documents_are_still_counted(packed_folder: Path) -> None:
    whole = survey_packed(open_packed(packed_folder))
    for path in packed_folder.glob("*.samples.parquet"):
        path.unlink()
    bare = survey_packed(open_packed(packed_folder))
    assert values_of(bare, "Length of documents") == values_of(whole, "Length of documents", "text_to_image")
    assert bare.tokens[""] == whole.tokens["test"]


def test_of_a_large_packed_dataset_few_shards_are_touched(packed_folder: Path) -> None:
    """Of 5,000 shards with 1.5 million rows only those that are to be looked at are there at all."""
    manifest = read_manifest(packed_folder)
    first = manifest.shards[0]
    shards = [replace(first, path=f"{number}.arrow") for number in range(5000)]
    write_manifest(packed_folder, replace(manifest, shards=tuple(shards)))
    for number in spread(5000, 32):
        path = packed_folder / f"{number}.arrow"
        os.link(packed_folder / first.path, path)
        os.link(sidecar_path(packed_folder / first.path), sidecar_path(path))
    survey = survey_packed(open_packed(packed_folder))
    assert (survey.total, survey.shards_looked_at, survey.shards) == (1_500_000, 32, 5000)
    assert 1500 < survey.looked_at <= 2048
    assert not survey.is_whole
    again = survey_packed(open_packed(packed_folder))
    assert values_of(again, "Fill of rows") == values_of(survey, "Fill of rows")


def write_samples(folder: Path, shards: list[list[TokenizedSample]], row_group: int = 1000) -> Manifest:
    entries = []
    for number, samples in enumerate(shards):
        path = folder / f"u{number}.parquet"
        sha256 = commit_table(path, samples_to_table(samples))
        pq.write_table(pq.read_table(path), path, row_group_size=row_group)
        entries.append(ShardEntry(path.name, len(samples), path.stat().st_size, sha256, {}))
    manifest = Manifest("samples", "c", "f", tuple(entries), FORMAT_VERSION)
    write_manifest(folder, manifest)
    return manifest


def sample(number: int) -> TokenizedSample:
    """The n-th has n % 3 sounds of 1 s each, n characters, and every other one a score."""
    sound = Segment("speech", Modality.SPEECH, codes=np.zeros((50, 8), np.uint16), duration_s=1.0 + number)
    segments = (Segment("transcript", Modality.TEXT, text="x" * number), *[sound] * (number % 3))
    quality = {"score": number / 10} if number % 2 else {}
    return TokenizedSample(f"c/{number}", "c", "train", segments, Provenance("f"), quality)


def test_numbers_of_samples_are_those_counted_by_hand(tmp_path: Path) -> None:
    nothing = TokenizedSample("c/none", "c", "train", (), Provenance("f"))
    manifest = write_samples(tmp_path, [[nothing, *map(sample, range(20))], [*map(sample, range(20, 33))]], row_group=7)
    survey = survey_samples(tmp_path, manifest)
    assert (survey.looked_at, survey.is_whole) == (34, True)
    assert values_of(survey, "Media per sample") == [0, *(number % 3 for number in range(33))]
    assert values_of(survey, "Codes per sample") == [0, *(number % 3 * 400 for number in range(33))]
    assert values_of(survey, "Characters of text per sample") == [0, *range(33)]
    assert values_of(survey, "Duration", "speech") == [1.0 + n for n in range(33) for _ in range(n % 3)]
    assert values_of(survey, "Quality", "score") == [number / 10 for number in range(1, 33, 2)]


def test_of_a_large_dataset_of_samples_the_beginnings_of_few_row_groups_are_read(tmp_path: Path) -> None:
    manifest = write_samples(tmp_path, [[sample(number) for number in range(100)]], row_group=10)
    shards = [replace(manifest.shards[0], path=f"{number}.parquet") for number in range(3000)]
    for number in spread(3000, 32):
        os.link(tmp_path / "u0.parquet", tmp_path / f"{number}.parquet")
    survey = survey_samples(tmp_path, replace(manifest, shards=tuple(shards)), max_samples=320)
    assert (survey.looked_at, survey.total, survey.shards_looked_at) == (32 * 4 * 2, 300_000, 32)
    assert values_of(survey, "Characters of text per sample")[:8] == [0, 1, 30, 31, 60, 61, 90, 91]


def test_a_cut_shard_of_samples_is_named(tmp_path: Path) -> None:
    manifest = write_samples(tmp_path, [[sample(1)]])
    (tmp_path / "u0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match=r"u0\.parquet: expected a Parquet shard"):
        survey_samples(tmp_path, manifest)
