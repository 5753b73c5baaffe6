"""Take-downs: what is asked for goes, for good; nothing else changes; killed anywhere, the same command ends the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.samples import Filtered, Reject
from shards import removal_cli
from shards.errors import DatasetError
from shards.ledger import commit_entry, read_entries
from shards.lookup import input_id
from shards.manifest import read_manifest
from shards.output_lock import only_writer
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.removal import (
    finish_removals,
    plan_removal,
    read_removed,
    remove_samples,
    removed_ids,
    removed_samples,
    stale_datasets,
)
from shards.sample_reader import read_samples
from shards.summary import summarize
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from shards.writer import commit_table
from tokenize_jobs.report import make_manifest

MakeDataset = Callable[[Path, Sequence[Sequence[object]]], Path]


def picture(number: int) -> TokenizedSample:
    codes = np.random.default_rng(number).integers(0, 8192, (32, 1)).astype(np.uint16)
    segments = (
        Segment("caption", Modality.TEXT, text=f"picture {number}"),
        Segment("image", Modality.IMAGE, codes=codes, media_sha256=f"{number:064x}"),
    )
    provenance = Provenance(
        f"{number // 10:05d}.tar", f"{number}.jpg", number * 512, f"https://a.example/{number}", "CC0"
    )
    return TokenizedSample(f"pictures/{number}", "pictures", "train", segments, provenance, {"clip": number / 100})


def window(recording: int, number: int) -> TokenizedSample:
    frames = 20 + 7 * recording + number
    codes = np.random.default_rng([recording, number]).integers(0, 1024, (frames, 8)).astype(np.uint16)
    speech = Segment("speech", Modality.SPEECH, codes=codes, duration_s=(frames - 0.3) / 50)
    provenance = Provenance("b.opus", "", recording)
    return TokenizedSample(f"talks/{recording}#w{number}", "talks", "train", (speech,), provenance)


def rejected(number: int) -> Reject:
    return Reject(
        f"pictures/{number}", "pictures", "image_truncated", "half a picture", Provenance("0.tar", "x", number)
    )


def filtered(number: int) -> Filtered:
    return Filtered(f"pictures/{number}", "pictures", "unsafe", "0.9 > 0.5", Provenance("0.tar", "x", number))


UNITS = [
    [picture(0), picture(1), rejected(2), picture(3), filtered(4)],
    [window(0, 0), window(0, 1), window(1, 0), picture(15)],
    [picture(20)],
    [picture(30), picture(31)],
]
WRITTEN = [item.sample_id for unit in UNITS for item in unit if isinstance(item, TokenizedSample)]
ASKED = ["pictures/0", "pictures/2", "pictures/4", "talks/0", "talks/1#w0", "pictures/20", "pictures/31"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tokenize_units: MakeDataset) -> Path:
    return tokenize_units(tmp_path_factory.mktemp("removal") / "mixed", UNITS)


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "mixed"))


def tree(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def asked_by(sample_id: str, ids: Sequence[str]) -> bool:
    return sample_id in ids or input_id(sample_id) in ids


def check_whole(folder: Path) -> None:
    """The dataset is sound, and says of itself what tokenization would say of its units."""
    assert verify_dataset(folder).faults == ()
    entries, manifest = list(read_entries(folder)), read_manifest(folder)
    facts = {"fingerprint": "f" * 16, "facts": {"config": "mixed"}, "tokenizers": {"image": "a" * 16}}
    assert manifest == make_manifest("mixed", summarize(entries), **facts)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert {**report, **summarize(entries).sums} == report
    for entry in entries:
        assert entry.inputs == entry.written + sum(entry.filtered.values()) + sum(entry.rejected.values())
    lists = [pq.read_table(folder / name).to_pylist() for name in ("rejects.parquet", "filtered.parquet")]
    assert [len(rows) for rows in lists] == [sum(manifest.counts[name].values()) for name in ("rejected", "filtered")]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.sampled_from(ASKED), unique=True))
def test_exactly_what_is_asked_for_goes_and_the_dataset_is_whole(
    ids: list[str], pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("law") / "mixed"))
    remove_samples(folder, ids)
    assert [sample.sample_id for sample in read_samples(folder)] == [
        name for name in WRITTEN if not asked_by(name, ids)
    ]
    check_whole(folder)
    gone = {row["sample_id"] for row in read_removed(folder).to_pylist()}
    assert all(asked_by(name, ids) for name in gone)
    assert {input_id(name) for name in gone} | gone >= set(ids)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.permutations(ASKED), cut=st.integers(0, len(ASKED)))
def test_removing_some_then_the_others_is_removing_all_of_them(
    ids: list[str], cut: int, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("law")
    twice, once = (Path(shutil.copytree(pristine, folder / name)) for name in ("twice", "once"))
    remove_samples(twice, ids[:cut])
    remove_samples(twice, ids[cut:])
    remove_samples(once, ASKED)
    assert tree(twice) == tree(once)


def test_removing_nothing_or_the_same_again_writes_no_file(dataset: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}

    before = state()
    remove_samples(dataset, [])
    assert state() == before
    remove_samples(dataset, ASKED)
    before = state()
    again = remove_samples(dataset, ASKED)
    assert state() == before
    assert (again.sample_ids, again.before, again.units) == ((), len(ASKED), ())


def test_untouched_shards_keep_their_bytes_and_their_time(dataset: Path, pristine: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (dataset / "shards").iterdir()}
    removal = remove_samples(dataset, ["pictures/1"])
    assert removal.units == ("unit-000000",)
    after = {path.name: path.stat().st_mtime_ns for path in (dataset / "shards").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"unit-000000.parquet"}
    changed = {name for name, digest in tree(pristine).items() if tree(dataset)[name] != digest}
    assert changed == {
        *("shards/unit-000000.parquet", "rejects/unit-000000.parquet", "ledger/unit-000000.json"),
        *("filtered.parquet", "report.json", "manifest.json"),
    }


def test_a_rebuilt_shard_is_byte_for_byte_the_shard_of_the_samples_that_are_left(dataset: Path, tmp_path: Path) -> None:
    remove_samples(dataset, ["pictures/1", "talks/1"])
    for number, unit in enumerate(UNITS[:2]):
        left = [item for item in unit if isinstance(item, TokenizedSample)]
        left = [item for item in left if not asked_by(item.sample_id, ["pictures/1", "talks/1"])]
        commit_table(tmp_path / "expected.parquet", samples_to_table(left))
        shard = dataset / "shards" / f"unit-{number:06d}.parquet"
        assert shard.read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_the_result_is_what_tokenization_writes_when_it_leaves_the_removed_samples_out(
    dataset: Path, tmp_path: Path, tokenize_units: MakeDataset
) -> None:
    """The contract with tokenize_jobs: removed items become ``Filtered("removed")``, last in their unit, by id."""
    remove_samples(dataset, ASKED, reason="asked for by its maker")

    def leave_out(unit: Sequence[object], number: int) -> list[object]:
        removed = removed_samples(dataset, f"unit-{number:06d}")
        gone = [item for item in unit if item.sample_id in removed or input_id(item.sample_id) in removed]
        gone.sort(key=lambda item: item.sample_id)
        told = [Filtered(i.sample_id, i.corpus, "removed", removed[i.sample_id], i.provenance) for i in gone]
        return [item for item in unit if item not in gone] + told

    fresh = tokenize_units(tmp_path / "fresh" / "mixed", [leave_out(unit, n) for n, unit in enumerate(UNITS)])
    found, expected = tree(dataset), tree(fresh)
    assert found.pop("removed.parquet")
    # The speed in the report is that of the run that made it; check_whole compares the rest.
    assert found.pop("report.json") != expected.pop("report.json")
    assert found == expected
    check_whole(dataset)


STEPS = 40


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Die right before the ``step``-th change of the disk: a rename to a final name, or an unlink."""
    import shards.writer

    left = [step]

    def dying(work: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return work(*args, **kwargs)

        return wrapped

    patch.setattr(shards.writer, "commit_file", dying(shards.writer.commit_file))
    patch.setattr(Path, "unlink", dying(Path.unlink))


def test_killed_before_any_step_and_run_again_ends_with_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    """What comes next is by turns the same command, and a run of tokenization, which finishes removals first."""
    whole = Path(shutil.copytree(pristine, tmp_path / "whole"))
    remove_samples(whole, ASKED)
    expected, finished_by_tokenization = tree(whole), 0
    for step in range(STEPS):
        folder = Path(shutil.copytree(pristine, tmp_path / f"{step}"))
        with pytest.MonkeyPatch.context() as patch:
            kill_at(step, patch)
            try:
                remove_samples(folder, ASKED)
            except KeyboardInterrupt:
                pass
            else:
                break
        if (folder / "manifest.json").is_file():
            assert verify_dataset(folder).faults == ()
        if step % 2 and (folder / "removed.parquet").is_file():
            finished_by_tokenization += 1
            with only_writer(folder):
                finish_removals(folder)
        else:
            remove_samples(folder, ASKED)
        assert tree(folder) == expected, f"killed before step {step}"
    assert 15 < step < STEPS - 1
    assert finished_by_tokenization > 5


def test_a_removed_sample_is_known_to_its_unit_by_every_name_it_may_come_back_under(dataset: Path) -> None:
    remove_samples(dataset, ["talks/0", "talks/1#w0"], reason="no consent")
    assert removed_ids(dataset, "unit-000001") == {"talks/0", "talks/0#w0", "talks/0#w1", "talks/1#w0"}
    assert set(removed_samples(dataset, "unit-000001").values()) == {"no consent"}
    assert removed_ids(dataset, "unit-000000") == frozenset()
    assert removed_ids(dataset / "nowhere", "unit-000000") == frozenset()


def test_a_rejected_input_may_be_removed_and_counts_as_rejected_no_more(dataset: Path) -> None:
    shard = dataset / "shards" / "unit-000000.parquet"
    before = shard.stat().st_mtime_ns
    remove_samples(dataset, ["pictures/2"])
    assert read_manifest(dataset).counts["rejected"] == {}
    assert read_manifest(dataset).counts["filtered"] == {"removed": 1, "unsafe": 1}
    assert shard.stat().st_mtime_ns == before
    check_whole(dataset)


def test_an_emptied_unit_has_no_shard_any_more(dataset: Path) -> None:
    remove_samples(dataset, ["pictures/20"])
    assert not (dataset / "shards" / "unit-000002.parquet").exists()
    assert len(read_manifest(dataset).shards) == len(UNITS) - 1
    check_whole(dataset)


def test_an_unknown_id_stops_everything_unless_it_is_said_that_it_may_be_there(dataset: Path, pristine: Path) -> None:
    with pytest.raises(DatasetError, match=r"1 that are not: pictures/99.*--ignore-unknown"):
        remove_samples(dataset, ["pictures/0", "pictures/99"])
    assert tree(dataset) == tree(pristine)
    removal = remove_samples(dataset, ["pictures/0", "pictures/99"], ignore_unknown=True)
    assert removal.unknown == ("pictures/99",)
    assert removal.sample_ids == (("unit-000000", "pictures/0"),)


def test_a_plan_says_what_would_happen_and_writes_nothing(dataset: Path, pristine: Path) -> None:
    plan = plan_removal(dataset, [*ASKED, "pictures/99"])
    assert tree(dataset) == tree(pristine)
    done = remove_samples(dataset, ASKED)
    assert (plan.sample_ids, plan.units, plan.unknown) == (done.sample_ids, done.units, ("pictures/99",))


def test_units_that_are_done_lose_their_samples_before_tokenization_is_finished(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    removal = remove_samples(dataset, ["pictures/1"])
    assert not removal.finished
    assert not (dataset / "manifest.json").exists()
    assert "pictures/1" not in pq.read_table(dataset / "shards" / "unit-000000.parquet")["sample_id"].to_pylist()
    assert next(read_entries(dataset)).filtered == {"removed": 1, "unsafe": 1}


def test_files_that_are_not_those_of_the_ledger_are_left_alone(dataset: Path) -> None:
    entry = next(read_entries(dataset))
    commit_entry(dataset, type(entry)(**{**{f: getattr(entry, f) for f in entry.__slots__}, "inputs": 9}))
    with pytest.raises(DatasetError, match="unit-000000: expected 9 inputs, found 2 written and 3 left out"):
        remove_samples(dataset, ["pictures/0"])
    assert len(pq.read_table(dataset / "shards" / "unit-000000.parquet")) == 3


def test_a_ledger_that_was_deleted_is_no_obstacle_to_tokenization(dataset: Path) -> None:
    remove_samples(dataset, ["pictures/0"])
    for path in (dataset / "ledger").glob("unit-*.json"):
        path.unlink()
    assert finish_removals(dataset).units == ()
    assert removed_ids(dataset, "unit-000000") == {"pictures/0"}


def test_a_unit_that_lost_its_shard_is_left_to_tokenization(dataset: Path, pristine: Path) -> None:
    remove_samples(dataset, ["pictures/0"])
    entry = "ledger/unit-000000.json"
    shutil.copy(pristine / entry, dataset / entry)
    (dataset / "shards" / "unit-000000.parquet").unlink()
    assert finish_removals(dataset).units == ("unit-000000",)
    assert (dataset / entry).read_bytes() == (pristine / entry).read_bytes()
    with pytest.raises(DatasetError, match=r"unit-000000\.parquet: expected a Parquet file"):
        remove_samples(dataset, ["pictures/0"])


def test_pages_that_tell_of_the_removed_samples_go_too(dataset: Path) -> None:
    (dataset / "datacard.md").write_text("shows picture 0", encoding="utf-8")
    remove_samples(dataset, [])
    assert (dataset / "datacard.md").is_file()
    remove_samples(dataset, ["pictures/0"])
    assert not (dataset / "datacard.md").exists()


def test_nobody_else_may_be_writing(dataset: Path) -> None:
    with only_writer(dataset), pytest.raises(DatasetError, match="no other run"):
        remove_samples(dataset, ["pictures/0"])


def test_packed_rows_and_folders_without_a_ledger_are_refused_with_the_way_out(
    packed_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"found one of kind 'packed'.*then pack again"):
        remove_samples(packed_folder, ["a"])
    with pytest.raises(DatasetError, match="no such folder"):
        remove_samples(tmp_path / "nowhere", ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="expected a dataset made by anygpt-tokenize"):
        remove_samples(tmp_path / "empty", ["a"])


def test_no_stale_dataset_where_nothing_was_packed(dataset: Path, tmp_path: Path) -> None:
    remove_samples(dataset, ["pictures/0"])
    assert stale_datasets(dataset, [tmp_path]) == []
    with pytest.raises(DatasetError, match="expected a folder with datasets"):
        stale_datasets(dataset, [tmp_path / "nowhere"])


def test_the_command_reads_a_list_with_comments(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("# asked for on paper\n\npictures/0\n  talks/0  \n", encoding="utf-8")
    assert removal_cli.main([str(dataset), "--ids", str(ids), "--dry-run"]) == 0
    assert "would remove 3 samples" in capsys.readouterr().out
    assert removal_cli.main([str(dataset), "--ids", str(ids), "--reason", "withdrawn", "--packed", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "removed 3 samples, 2 shards rebuilt" in said
    assert "packed datasets made of these samples: none found" in said
    assert set(read_removed(dataset)["error"].to_pylist()) == {"withdrawn"}


def test_the_command_exits_with_one_for_unknown_ids_and_two_for_a_missing_list(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("pictures/99\n", encoding="utf-8")
    for extra in ([], ["--dry-run"]):
        assert removal_cli.main([str(dataset), "--ids", str(ids), *extra]) == 1
        assert "pictures/99" in capsys.readouterr().err
    assert removal_cli.main([str(dataset), "--ids", str(ids), "--ignore-unknown"]) == 0
    assert removal_cli.main([str(dataset), "--ids", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
