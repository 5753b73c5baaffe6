"""Laws of verification: no flipped byte is missed, and what looks at many things at once says what the law says of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.faults import Fault, row_runs
from shards.manifest import Manifest, PackedEntry, ShardEntry, read_manifest, write_manifest
from shards.modality import Modality
from shards.open_shard import open_shard
from shards.packed import PackedRow, sidecar_path
from shards.rates import RowLaw, doubtful_segments, media_fault, rate_fault
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.sample_ids import find_repeated, hash_strings
from shards.verify import verify_dataset
from shards.vocabulary import Vocabulary, lay_out
from shards.writer import commit_table, file_sha256

ANY_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def _flip(path: Path, place: float, mask: int) -> int:
    whole = bytearray(path.read_bytes())
    at = int(place * len(whole))
    whole[at] ^= mask
    path.write_bytes(whole)
    return at


FLIPS = {"place": st.floats(0, 1, exclude_max=True), "mask": st.integers(1, 255)}


@ANY_FIXTURE
@given(**FLIPS)
def test_any_flipped_byte_of_a_packed_shard_is_found(packed_folder: Path, place: float, mask: int) -> None:
    path = packed_folder / "shard-00000.arrow"
    sound = path.read_bytes()
    shard = open_shard(path)
    length = shard.token_ids.shape[1]
    first = sound.index(shard.token_ids.tobytes())
    del shard
    try:
        at = _flip(path, place, mask)
        (fault,) = verify_dataset(packed_folder).faults
    finally:
        path.write_bytes(sound)
    assert fault.path == path.name
    row, in_ids = (at - first) // (2 * length), first <= at < first + 300 * length * 2
    assert (row in fault.rows) == in_ids
    assert len(fault.rows) == (0 if not in_ids else min(16, 300 - row // 16 * 16))


def test_a_damaged_checksum_of_a_block_blames_no_row(packed_folder: Path) -> None:
    path = packed_folder / "shard-00000.arrow"
    sound, checksum = path.read_bytes(), str(open_shard(path).header.block_crc32[7]).encode()
    # Arrow writes its metadata twice, in front and at the end, and readers look at the end.
    places = [at for at in range(len(sound)) if sound.startswith(checksum, at)]
    assert len(places) == 2
    for at in places:
        path.write_bytes(sound[:at] + (b"1" if sound[at : at + 1] != b"1" else b"2") + sound[at + 1 :])
        (fault,) = verify_dataset(packed_folder).faults
        assert fault.rows == () and "damaged" in fault.what
    path.write_bytes(sound)


@ANY_FIXTURE
@given(**FLIPS)
def test_any_flipped_byte_of_a_sidecar_is_found(packed_folder: Path, place: float, mask: int) -> None:
    path = sidecar_path(packed_folder / "shard-00001.arrow")
    sound = path.read_bytes()
    _flip(path, place, mask)
    assert [fault.path for fault in verify_dataset(packed_folder).faults] == [path.name]
    path.write_bytes(sound)


@ANY_FIXTURE
@given(**FLIPS)
def test_a_damaged_shard_that_its_manifest_vouches_for_is_looked_at_without_a_crash(
    packed_folder: Path, place: float, mask: int
) -> None:
    path = packed_folder / "shard-00000.arrow"
    sound, manifest = path.read_bytes(), read_manifest(packed_folder)
    first, second = manifest.shards
    assert isinstance(first, PackedEntry)
    _flip(path, place, mask)
    vouched = replace(first, sha256=file_sha256(path))
    write_manifest(packed_folder, replace(manifest, shards=(vouched, second)))
    faults = verify_dataset(packed_folder).faults
    assert path.name in {fault.path for fault in faults}
    # Datasets from before there was a checksum of the rest: a flip there may mean nothing, but it must not end us.
    write_manifest(packed_folder, replace(manifest, shards=(replace(vouched, rest_crc32=None), second)))
    verify_dataset(packed_folder)
    path.write_bytes(sound)
    write_manifest(packed_folder, manifest)


@pytest.fixture
def samples_folder(tmp_path: Path) -> Path:
    """Two shards of a few samples."""
    rng = np.random.default_rng(3)
    entries = []
    for number in range(2):
        samples = [
            TokenizedSample(
                f"s{number}-{n}",
                "c",
                "train",
                (
                    Segment("caption", Modality.TEXT, text=f"text {n}"),
                    Segment("image", Modality.IMAGE, codes=rng.integers(0, 8192, (32, 1)).astype(np.uint16)),
                ),
                Provenance("file.tar"),
            )
            for n in range(20)
        ]
        path = tmp_path / f"unit-{number:06d}.parquet"
        sha256 = commit_table(path, samples_to_table(samples))
        entries.append(ShardEntry(path.name, len(samples), path.stat().st_size, sha256, {"image": 640}))
    write_manifest(tmp_path, Manifest("samples", "c", "f", tuple(entries), FORMAT_VERSION))
    return tmp_path


@ANY_FIXTURE
@given(**FLIPS)
def test_any_flipped_byte_of_a_sample_shard_is_found(samples_folder: Path, place: float, mask: int) -> None:
    assert verify_dataset(samples_folder).faults == ()
    path = samples_folder / "unit-000001.parquet"
    sound = path.read_bytes()
    _flip(path, place, mask)
    assert [fault.path for fault in verify_dataset(samples_folder).faults] == [path.name]
    path.write_bytes(sound)


@pytest.mark.parametrize("size", [0, 8, 1000, -1])
def test_a_truncated_file_is_found_whatever_it_is(packed_folder: Path, samples_folder: Path, size: int) -> None:
    shard = packed_folder / "shard-00001.arrow"
    for folder, path in [
        (packed_folder, shard),
        (packed_folder, sidecar_path(shard)),
        (samples_folder, samples_folder / "unit-000000.parquet"),
    ]:
        sound = path.read_bytes()
        path.write_bytes(sound[:size])
        (fault,) = verify_dataset(folder).faults
        assert fault.path == path.name
        path.write_bytes(sound)
        assert verify_dataset(folder).faults == ()


WIDE = lay_out(
    "wide",
    text_size=8_000,
    markers=["[Human]"],
    media=[
        {"name": "image", "prefix": "a", "start": "<i>", "end": "</i>", "codebook_size": 60_000, "levels": 1},
        {"name": "music", "prefix": "b", "start": "<m>", "end": "</m>", "codebook_size": 9, "levels": 16},
    ],
)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), spoilt=st.integers(0, 6), wide=st.booleans())
def test_the_look_at_many_rows_doubts_all_that_break_table_1_and_nothing_in_sound_ones(
    vocabulary: Vocabulary, make_row: Callable[..., PackedRow], seed: int, spoilt: int, wide: bool
) -> None:
    rng = np.random.default_rng(seed)
    ids = np.stack([make_row(rng, "s").token_ids for _ in range(4)])
    if wide:
        vocabulary = WIDE
        frames = rng.integers(0, 9, (1, 16)).astype(np.uint16)
        picture = rng.integers(0, 60_000, (32, 1)).astype(np.uint16)
        one = np.concatenate(
            [[1], vocabulary.media_token_ids("image", picture), vocabulary.media_token_ids("music", frames), [2]]
        )
        ids = np.stack([np.concatenate([one, np.zeros(8, int)]) for _ in range(4)])
    ids = ids.astype(vocabulary.dtype)
    for _ in range(spoilt):
        row, place = int(rng.integers(len(ids))), int(rng.integers(ids.shape[1]))
        kind = int(rng.integers(3))
        if kind == 0:
            ids[row, place] = rng.integers(vocabulary.size)
        elif kind == 1:
            ids[row, place:-1] = ids[row, place + 1 :].copy()
        else:
            markers = [edge for block in vocabulary.blocks.values() for edge in (block.start_id, block.end_id)]
            ids[row, place] = rng.choice(markers)
    faulty = [n for n, row in enumerate(ids) if any(media_fault(row, block) for block in vocabulary.blocks.values())]
    doubted = RowLaw(vocabulary).doubtful_rows(ids).tolist()
    assert set(faulty) <= set(doubted)
    # Rows may be doubted for others beside them, never without any that is wrong.
    assert faulty or not doubted


def test_ids_outside_the_vocabulary_are_doubted_wherever_they_are(vocabulary: Vocabulary) -> None:
    for vocab in (vocabulary, WIDE):
        for place in (0, 5, 11):
            ids = np.full((3, 12), 5, vocab.dtype)
            ids[1, place] = vocab.size
            assert 1 in RowLaw(vocab).doubtful_rows(ids)
            assert RowLaw(vocab).doubtful_rows(np.full((3, 12), vocab.size, vocab.dtype)).tolist() == [0, 1, 2]


NAMES: list[str | None] = ["image", "speech", "music", "audio", "video", None]
SEGMENT = st.tuples(
    st.integers(0, len(NAMES) - 1),
    st.sampled_from([0, 1, 31, 32, 33, 50, 51, 100, 200, 300, 304]),
    st.sampled_from([0, 5, 1023, 1024, 2047, 2048, 8191, 8192]),
    st.sampled_from([1, 4, 8]),
    st.none() | st.sampled_from([0.5, 1.0, 1.0001, 2.0]),
)


@settings(max_examples=300)
@given(st.lists(SEGMENT, min_size=1, max_size=8))
def test_the_look_at_many_segments_doubts_exactly_those_that_break_table_1(
    segments: list[tuple[int, int, int, int, float | None]],
) -> None:
    expected = []
    for name, length, largest, levels, duration_s in segments:
        codes = np.full(length, largest, np.uint16)
        expected.append(rate_fault(str(NAMES[name]), codes, levels, duration_s) != "")
    modality, lengths, largest, levels = (
        np.array(column, np.int64) for column in list(zip(*segments, strict=True))[:4]
    )
    durations = np.array([np.nan if segment[4] is None else segment[4] for segment in segments])
    assert doubtful_segments(NAMES, modality, lengths, largest, levels, durations).tolist() == expected


@given(
    st.lists(st.text(max_size=12), max_size=30), st.integers(0, 5), st.sampled_from([pa.string(), pa.large_string()])
)
def test_hashes_are_equal_where_strings_are(names: list[str], skipped: int, kind: Any) -> None:
    whole = pa.array(names, kind)
    hashes = hash_strings(whole)
    assert hash_strings(whole.slice(skipped)).tolist() == hashes[skipped:].tolist()
    for left, one in zip(hashes.tolist(), names, strict=True):
        for right, other in zip(hashes.tolist(), names, strict=True):
            assert (left == right) == (one == other)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=5))
def test_samples_there_twice_are_those_seen_before(shards: list[list[str]]) -> None:
    def read(number: int) -> Iterator[tuple[int, Any]]:
        yield 0, pa.array(shards[number][:2], pa.string())
        yield 2, pa.array(shards[number][2:], pa.string())

    seen: set[str] = set()
    expected: dict[int, list[int]] = {}
    for number, names in enumerate(shards):
        for row, name in enumerate(names):
            if name in seen:
                expected.setdefault(number, []).append(row)
            seen.add(name)
    hashes = [np.sort(hash_strings(pa.array(names, pa.string()))) for names in shards]
    assert {number: list(rows) for number, rows in find_repeated(hashes, read)} == expected


@given(st.sets(st.integers(0, 60)))
def test_runs_of_rows_hold_the_rows(rows: set[int]) -> None:
    runs = row_runs(rows)
    assert [row for first, last in runs for row in range(first, last + 1)] == sorted(rows)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(runs))
    assert str(Fault("f", "wrong", (1, 2, 3, 7))) == "f: rows 1..3, 7: wrong"
