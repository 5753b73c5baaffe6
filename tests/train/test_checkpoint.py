"""Checkpoints are whole or not there, read back slice by slice, and belong to one run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shards.errors import CheckpointError, FingerprintMismatch
from train import checkpoint_files, checkpoint_writer
from train.checkpoint import (
    RunState,
    Shape,
    StoredTensors,
    check_same_run,
    newest_checkpoint,
    publish_folder,
    read_master,
    read_optimizer_state,
    read_run_state,
)
from train.checkpoint_files import BLOCK_BYTES, KINDS, Fragment, rank_name, write_fragments, write_pieces
from train.checkpoint_writer import CheckpointWriter, Retention, Snapshot, remove_leftovers
from train.engine_state import even_share

FINGERPRINTS = {"vocabulary": "v", "mixture": "m"}
SHAPES: dict[str, Shape] = {"a.weight": (4, 3), "scale": (), "b": (5,), "none": (0, 2)}


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    """Files with a checksum for so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, "BLOCK_BYTES", size)
        patch.setattr(checkpoint_writer, "BLOCK_BYTES", size)
        yield


def values(shapes: dict[str, Shape], step: int) -> dict[str, dict[str, np.ndarray]]:
    """By kind and name, whole."""
    rng = np.random.default_rng(step)
    return {kind: {name: rng.random(shape, np.float32) for name, shape in shapes.items()} for kind in KINDS}


def snapshot(step: int, *, rank: int = 0, world_size: int = 1, shapes: dict[str, Shape] | None = None) -> Snapshot:
    shapes = SHAPES if shapes is None else shapes
    whole = values(shapes, step)
    fragments = [
        Fragment(name, start, {kind: whole[kind][name].reshape(-1)[start:stop] for kind in KINDS})
        for name, start, stop in even_share(shapes, rank=rank, world_size=world_size)
    ]
    run = RunState(step, FINGERPRINTS, {"losses": [[0.1]]})
    return Snapshot(run, step, shapes, fragments, {"random/cpu": np.full(7, rank, np.uint8)})


def save(
    folder: Path, step: int, *, keep: int = 2, world_size: int = 1, shapes: dict[str, Shape] | None = None
) -> Path:
    """As ``world_size`` processes do; the first one last, since it waits for the others."""
    for rank in reversed(range(world_size)):
        with CheckpointWriter(folder, rank=rank, world_size=world_size, retention=Retention(keep)) as writer:
            writer.save(lambda rank=rank: snapshot(step, rank=rank, world_size=world_size, shapes=shapes))
    return folder / f"step-{step:08d}"


def assert_holds(path: Path, step: int, shapes: dict[str, Shape] | None = None) -> None:
    found, expected = read_optimizer_state(path), values(SHAPES if shapes is None else shapes, step)
    assert found.step == step
    for kind in KINDS:
        left = getattr(found, kind)
        assert set(left) == set(expected[kind])
        for name, array in expected[kind].items():
            np.testing.assert_array_equal(left[name], array, strict=True)


# --- what is written is read


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_is_saved_is_read_back(tmp_path: Path, world_size: int):
    path = save(tmp_path, 7, world_size=world_size)
    assert newest_checkpoint(tmp_path) == path
    assert (tmp_path / "latest").read_text(encoding="utf-8").strip() == path.name
    assert read_run_state(path) == RunState(7, FINGERPRINTS, {"losses": [[0.1]]})
    assert_holds(path, 7)
    assert sorted(one.name for one in path.iterdir()) == [
        *(f"{rank_name(rank, world_size)}-000.safetensors" for rank in range(world_size)),
        "state.json",
    ]


@settings(max_examples=30)
@given(st.data())
def test_any_slice_is_read_whoever_wrote_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Shapes, numbers of processes and sizes of blocks of checksums are drawn; none of it shows."""
    shapes = {
        f"p{number}": tuple(shape)
        for number, shape in enumerate(data.draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1)))
    }
    world_size = data.draw(st.integers(1, 5))
    folder = tmp_path_factory.mktemp("checkpoints")
    with small_blocks(data.draw(st.sampled_from([8, 40, 1 << 20]))):
        path = save(folder, 3, world_size=world_size, shapes=shapes)
    stored, whole = StoredTensors(path), values(shapes, 3)
    assert stored.shapes == shapes and list(read_master(path)) == list(shapes)
    for name, shape in shapes.items():
        start = data.draw(st.integers(0, math.prod(shape)))
        stop = data.draw(st.integers(start, math.prod(shape)))
        for kind in KINDS:
            found = stored.read(kind, name, start, stop)
            np.testing.assert_array_equal(found, whole[kind][name].reshape(-1)[start:stop])
        np.testing.assert_array_equal(read_master(path)[name], whole["master"][name], strict=True)
    assert [stored.random_states(rank)["random/cpu"].tolist() for rank in range(world_size)] == [
        [rank] * 7 for rank in range(world_size)
    ]


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1), st.integers(1, 9))
def test_shares_are_everything_once_and_even(shapes: list[list[int]], world_size: int):
    named = {str(number): tuple(shape) for number, shape in enumerate(shapes)}
    shares = [even_share(named, rank=rank, world_size=world_size) for rank in range(world_size)]
    counts = [sum(stop - start for _, start, stop in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    seen = sorted((name, index) for share in shares for name, start, stop in share for index in range(start, stop))
    assert seen == sorted((name, index) for name, shape in named.items() for index in range(math.prod(shape)))


def test_the_files_are_safetensors_and_are_cut_when_they_grow(tmp_path: Path):
    whole = values(SHAPES, 1)
    fragments = [
        Fragment(name, 0, {kind: whole[kind][name].reshape(-1) for kind in KINDS}) for name in ("a.weight", "b")
    ]
    written = write_fragments(tmp_path, fragments, rank=2, world_size=8, file_bytes=100)
    assert list(written.files) == [f"rank-00002-of-00008-{number:03d}.safetensors" for number in range(2)]
    for fragment, name in zip(fragments, written.files, strict=True):
        assert written.places[fragment.name] == (name, 0, fragment.count)
        tensors = load_file(tmp_path / name)
        assert set(tensors) == {f"{kind}/{fragment.name}" for kind in KINDS}
        for kind in KINDS:
            np.testing.assert_array_equal(tensors[f"{kind}/{fragment.name}"], fragment.arrays[kind])


def test_checkpoints_of_the_release_before_are_read(tmp_path: Path):
    """Format 1: a file a kind with whole tensors."""
    path, whole = tmp_path / "step-00000004", values(SHAPES, 4)
    path.mkdir()
    for kind in KINDS:
        save_file(whole[kind], path / f"{kind}.safetensors")
    sizes = {f"{kind}.safetensors": (path / f"{kind}.safetensors").stat().st_size for kind in KINDS}
    facts = {"format_version": 1, "optimizer_step": 4, "files": sizes, "step": 4, "log": {}, "config": {}}
    (path / "state.json").write_text(json.dumps(facts | {"fingerprints": FINGERPRINTS}), encoding="utf-8")
    assert newest_checkpoint(tmp_path) == path
    assert_holds(path, 4)
    assert StoredTensors(path).read("exp_avg", "b", 1, 3).tolist() == whole["exp_avg"]["b"][1:3].tolist()
    assert StoredTensors(path).random_states(0) == {}
    (path / "master.safetensors").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None


# --- which ones stay


def test_only_the_newest_are_kept_and_those_that_stay_for_good(tmp_path: Path):
    with CheckpointWriter(tmp_path, retention=Retention(2, keep_every=10)) as writer:
        for step in (5, 10, 15, 20, 25, 30, 35):
            writer.save(lambda step=step: snapshot(step))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{n:08d}" for n in (10, 20, 30, 35)]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000035"


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path: Path):
    save(tmp_path, 5, world_size=3)
    assert_holds(save(tmp_path, 5, world_size=2), 5)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000005"]


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path):
    before = save(tmp_path, 5)
    (tmp_path / "step-00000010.3f.tmp").mkdir()
    (tmp_path / "step-00000010.3f.tmp" / "rank-00000-of-00001.json").write_bytes(b"")
    (tmp_path / "latest.tmp").write_bytes(b"")
    (tmp_path / "step-00000010-backup").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005", "step-00000010-backup"]
    assert newest_checkpoint(tmp_path) == before


# --- what is torn or damaged


def test_a_checkpoint_cut_anywhere_is_passed_over_for_the_one_before(tmp_path: Path):
    """Every file of it, missing, empty, or short by a byte."""
    before, torn = save(tmp_path, 5), save(tmp_path, 10, world_size=2)
    for path in sorted(torn.iterdir()):
        data = path.read_bytes()
        for left in (b"", data[: len(data) // 2], data[:-2]):
            path.write_bytes(left)
            assert newest_checkpoint(tmp_path) == before, f"{path.name} cut to {len(left)} bytes"
        path.unlink()
        assert newest_checkpoint(tmp_path) == before, f"{path.name} missing"
        path.write_bytes(data)
    assert newest_checkpoint(tmp_path) == torn
    (torn / "rank-00001-of-00002-000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="found a torn one"):
        read_optimizer_state(torn)


def test_a_byte_that_changed_is_noticed_by_whoever_reads_it(tmp_path: Path):
    """Any byte of a tensor's file, its header too; other parameters beyond its block can still be read."""
    shapes: dict[str, Shape] = {"wide": (3, 50), "far": (200,)}
    with small_blocks(256):
        path = save(tmp_path, 5, shapes=shapes)
    (file,) = path.glob("rank-*")
    assert_holds(path, 5, shapes)
    for place in range(0, file.stat().st_size, 7):
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)
        assert newest_checkpoint(tmp_path) == path, "sizes do not say"
        with pytest.raises(CheckpointError, match=r"expected checksum .*; the file is damaged, remove this checkpoint"):
            read_optimizer_state(path)
        assert f"from {place // 256 * 256} on" in str(StoredTensors(path).damage())
        data[place] ^= 1
        file.write_bytes(data)
    assert StoredTensors(path).damage() is None
    data[file.stat().st_size - 1] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(read_master(path)["wide"], values(shapes, 5)["master"]["wide"])


def test_a_file_cut_while_it_is_read_is_named(tmp_path: Path):
    path = save(tmp_path, 5)
    stored = StoredTensors(path)
    (file,) = path.glob("rank-*")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"rank-00000-of-00001-000.safetensors: expected \d+ bytes, found fewer"):
        stored.read("master", "b", 0, 5)


def test_the_checksums_do_not_depend_on_how_the_bytes_come(tmp_path: Path):
    data = np.random.default_rng(0).bytes(2 * BLOCK_BYTES + 5)
    whole = write_pieces(tmp_path / "whole", [data])
    pieces = write_pieces(tmp_path / "pieces", [data[:3], data[3 : BLOCK_BYTES + 1], b"", data[BLOCK_BYTES + 1 :]])
    assert whole == pieces and whole.bytes == len(data) and len(whole.block_crc32 or ()) == 3
    assert (tmp_path / "pieces").read_bytes() == data


# --- what is refused


def test_a_folder_without_checkpoints_has_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path: Path):
    other = {"vocabulary": "w", "mixture": "m", "dataset image": "i"}
    with pytest.raises(
        FingerprintMismatch, match="with another dataset image, vocabulary; give the run another output"
    ):
        check_same_run(tmp_path, FINGERPRINTS, other)
    with pytest.raises(
        FingerprintMismatch, match=r"with another vocabulary; .* --set 'resume.allow=\[\"vocabulary\"\]'"
    ):
        check_same_run(tmp_path, FINGERPRINTS, other, allow=["dataset"])
    assert check_same_run(tmp_path, FINGERPRINTS, other, allow=["dataset image", "vocabulary"]) == [
        "dataset image",
        "vocabulary",
    ]
    assert check_same_run(tmp_path, FINGERPRINTS, dict(FINGERPRINTS)) == []


def test_a_checkpoint_of_a_later_format_is_not_guessed_at(tmp_path: Path):
    path = save(tmp_path, 5) / "state.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"format_version": 2', '"format_version": 9'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected checkpoint format 1 or 2, found 9"):
        newest_checkpoint(tmp_path)


def test_a_folder_that_could_not_be_filled_is_not_published(tmp_path: Path):
    def write(folder: Path) -> None:
        (folder / "model").write_bytes(b"x")
        raise OSError("disk full")

    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "model").write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        publish_folder(tmp_path / "final", write)
    assert (tmp_path / "final" / "model").read_bytes() == b"before"
    publish_folder(tmp_path / "final", lambda folder: (folder / "model").write_bytes(b"after"))
    assert (tmp_path / "final" / "model").read_bytes() == b"after"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
