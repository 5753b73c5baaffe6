"""Speeds that jobs measured: remade from logs, the same however often, and nothing counted that was not timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.modality import Modality
from tokenize_jobs.calibration import (
    CALIBRATION_NAME,
    is_kind,
    measured_speed,
    read_calibration,
    update_calibration,
)
from tokenize_jobs.log import log_path
from tokenize_jobs.timing import read_times

H200 = "NVIDIA H200"
CODECS = {"image": "aaaa", "speech": "bbbb"}


def begun(second: int = 0, *, units: int = 9, missing: int = 9, **more: Any) -> dict[str, Any]:
    return {"event": "tokenize_begun", "units": units, "missing": missing, "timestamp": stamp(second), **more}


def stamp(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}Z"


def unit(number: int, second: int, **fields: Any) -> dict[str, Any]:
    known = {"tokens": {"image": 3200}, "images": 100, "sound_s": {}, "encode_s": 2.0, "decode_s": 4.0, "wait_s": 0.5}
    names = {"event": "unit_done", "unit": f"unit-{number:06d}", "timestamp": stamp(second), "inputs": 100}
    return {**names, **known, "device": H200, "worker": "node/7", **fields}


def write_log(output: Path, *events: dict[str, Any]) -> None:
    log_path(output).write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def speed(output: Path, modality: Modality = Modality.IMAGE, kind: str = "H200"):
    found = read_calibration(output.parent / CALIBRATION_NAME)
    return measured_speed(found, kind=kind, modality=modality, codec=CODECS[modality])


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.1, 50), st.floats(0.1, 50)), min_size=1, max_size=8))
def test_a_rate_is_all_amounts_over_all_seconds_and_updating_twice_changes_nothing(tmp_path_factory, parts):
    output = tmp_path_factory.mktemp("c") / "pictures"
    events = [unit(n, n, images=i, encode_s=e, decode_s=d) for n, (i, e, d) in enumerate(parts)]
    write_log(output, begun(), *events)
    once = update_calibration(output, CODECS)
    path = output.parent / CALIBRATION_NAME
    data = path.read_bytes()
    assert update_calibration(output, CODECS) == once == read_calibration(path)
    assert path.read_bytes() == data
    found = speed(output)
    assert found is not None
    assert found.encode_rate == pytest.approx(sum(i for i, _, _ in parts) / sum(e for _, e, _ in parts), rel=0.01)
    assert found.decode_rate == pytest.approx(sum(i for i, _, _ in parts) / sum(d for _, _, d in parts), rel=0.01)


def test_datasets_of_one_folder_add_up_and_each_replaces_only_its_own_figures(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_log(first, begun(), unit(0, 1, images=100, encode_s=1.0))
    write_log(second, begun(), unit(0, 1, images=300, encode_s=1.0))
    update_calibration(first, CODECS)
    update_calibration(second, CODECS)
    assert speed(first).encode_rate == 200.0
    write_log(first, begun(), unit(0, 1, images=500, encode_s=1.0))
    update_calibration(first, CODECS)
    assert speed(first).encode_rate == 400.0


def test_units_of_several_media_or_none_and_units_done_again_are_not_measurements(tmp_path: Path):
    """A retried unit reports the counts of all its inputs and the time of a few; a mixed one has no owner for its time."""
    output = tmp_path / "x"
    write_log(
        output,
        begun(),
        unit(0, 1),
        unit(1, 2, sound_s={"speech": 9.0}, encode_s=50.0),
        unit(2, 3, images=0, encode_s=50.0),
        unit(3, 4, encode_s=0.0),
        begun(10, missing=2, retry=True),
        unit(4, 12, encode_s=0.001),
        begun(20, missing=2),
        unit(0, 22, encode_s=0.001),
    )
    assert [(one.units, one.amount, one.encode_s) for one in update_calibration(output, CODECS)] == [(1, 100, 2.0)]


def test_sound_is_measured_in_seconds_by_its_own_codec(tmp_path: Path):
    output = tmp_path / "x"
    write_log(output, begun(), unit(0, 1, images=0, sound_s={"speech": 3600.0}, encode_s=3.6))
    update_calibration(output, CODECS)
    assert speed(output, Modality.SPEECH).encode_rate == pytest.approx(1000)
    assert speed(output, Modality.IMAGE) is None
    assert speed(output, Modality.SPEECH, kind="A100") is None
    assert "measured on NVIDIA H200 over 1 unit" in speed(output, Modality.SPEECH).basis


@pytest.mark.parametrize(
    ("device", "kind", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA A100-SXM4-80GB", "a100", True),
        ("NVIDIA A100-SXM4-80GB", "A10", False),
        ("NVIDIA A10", "A10", True),
        ("NVIDIA L40S", "L4", False),
        ("cpu", "cpu", True),
    ],
)
def test_a_kind_is_a_word_of_a_devices_name(device: str, kind: str, expected: bool):
    assert is_kind(device, kind) is expected


def test_a_damaged_calibration_is_named(tmp_path: Path):
    path = tmp_path / CALIBRATION_NAME
    path.write_text('{"measurements": [{"device": 1}]}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"calibration\.json: expected a calibration .* remove it"):
        read_calibration(path)


def test_times_of_runs_add_up_by_device(tmp_path: Path):
    output = tmp_path / "x"
    write_log(
        output, begun(0), unit(0, 10), unit(1, 30, device="cpu"), begun(100, missing=7), unit(2, 140, worker="node/8")
    )
    times = read_times(log_path(output))
    assert (times.runs, times.wall_s, times.workers) == (2, 70.0, 2)
    assert {one.device: (one.units, one.encode_s, one.wait_s) for one in times.devices} == {
        H200: (2, 4.0, 1.0),
        "cpu": (1, 2.0, 0.5),
    }
    assert times.busy_share == 0.8
    assert times.gpu_hours() == pytest.approx(5 / 3600)
    assert times.gpu_hours(0.5) == pytest.approx(2.5 / 3600)
    assert times.cpu_hours == pytest.approx((3 * 4.0 + 2.0) / 3600)
    assert times.curve == ((10.0, 3200), (30.0, 6400), (70.0, 9600))


def test_lines_of_a_dataset_that_is_gone_and_lines_that_were_cut_are_not_read(tmp_path: Path):
    output = tmp_path / "x"
    write_log(
        output, begun(0), unit(0, 10), begun(50, fingerprint="a"), unit(0, 60), begun(70, missing=3, fingerprint="a")
    )
    with log_path(output).open("a", encoding="utf-8") as file:
        file.write('{"event": "unit_done", "uni')
    assert (read_times(log_path(output)).runs, read_times(log_path(output)).encode_s) == (2, 2.0)
    write_log(output, begun(0, fingerprint="a"), unit(0, 10), begun(50, missing=8, fingerprint="b"), unit(1, 60))
    assert (read_times(log_path(output)).runs, read_times(log_path(output)).wall_s) == (1, 10.0)


def test_a_log_of_before_there_were_these_fields_still_counts(tmp_path: Path):
    output = tmp_path / "x"
    old = {"event": "unit_done", "unit": "unit-000000", "tokens": {"image": 32}, "busy_s": 3.0, "timestamp": stamp(5)}
    write_log(output, begun(0), old)
    times = read_times(log_path(output))
    assert (times.encode_s, times.wait_s, times.gpu_hours(), times.wall_s) == (3.0, 0.0, 0.0, 5.0)
    assert update_calibration(output, CODECS) == ()
    assert not (tmp_path / CALIBRATION_NAME).exists()
    assert read_times(tmp_path / "none.log.jsonl").runs == 0


def test_the_curve_of_a_long_log_stays_short(tmp_path: Path):
    output = tmp_path / "x"
    write_log(output, begun(0), *(unit(n, n, tokens={"image": 1}) for n in range(3000)))
    curve = read_times(log_path(output)).curve
    assert 100 < len(curve) <= 400
    assert curve[-1] == (2999.0, 3000)
    assert list(curve) == sorted(curve)
