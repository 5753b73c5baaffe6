"""Same config, same bytes; once; and never half of it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from configs.load import load_config
from pipeline.sample_corpora.build import ATTRIBUTES, STAMP, build, plan_build
from pipeline.sample_corpora.cli import main
from pipeline.sample_corpora.config import SampleCorporaConfig
from shards.errors import ConfigError

SMALL = {"mls": 3, "laion_coco": 3}
NOTHING = dict.fromkeys(("laion2b", "laion_aesthetics", "journeydb", "mmc4_core_ff", "commonvoice", "gigaspeech"), 0)
NOTHING |= dict.fromkeys(("youtube_music", "musiccaps", "anyinstruct"), 0)


def small_config(output: Path, **changes: object) -> SampleCorporaConfig:
    """Two corpora of three items a side: quick to write whole."""
    heldout = {"laion_coco": 2, "mls": 2, "youtube_music": 0, "anyinstruct": 0}
    train = NOTHING | SMALL
    return SampleCorporaConfig.model_validate(
        {"output": output, "workers": 1, "train": train, "heldout": heldout} | changes
    )


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny_toml(request) -> Path:
    return Path(request.config.rootpath) / "configs" / "sample_corpora" / "tiny.toml"


def test_two_runs_and_any_number_of_processes_write_the_same_bytes(tmp_path, tiny_toml):
    """Every layout of the default set, by one process and by two."""
    for name, workers in (("one", 1), ("two", 2)):
        config = load_config(tiny_toml, SampleCorporaConfig, [f"output={tmp_path / name}", f"workers={workers}"])
        build(plan_build(config, limit=3))
    first = digests(tmp_path / "one")
    assert len(first) > 60
    assert first == digests(tmp_path / "two")


def test_the_same_command_again_does_no_work(tmp_path):
    config = small_config(tmp_path / "set")
    build(plan_build(config))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    plan = plan_build(small_config(tmp_path / "set", workers=2))
    assert plan.is_done
    build(plan)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_another_seed_writes_another_set_in_its_place(tmp_path):
    build(plan_build(small_config(tmp_path / "set")))
    before = digests(tmp_path / "set")
    plan = plan_build(small_config(tmp_path / "set", seed=1))
    assert not plan.is_done
    build(plan)
    after = digests(tmp_path / "set")
    assert after[ATTRIBUTES] != before[ATTRIBUTES]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_limit_takes_the_first_items_of_the_whole_set(tmp_path):
    build(plan_build(small_config(tmp_path / "whole")))
    build(plan_build(small_config(tmp_path / "part"), limit=2))
    whole, part = digests(tmp_path / "whole"), digests(tmp_path / "part")
    flacs = {name for name in part if name.endswith(".flac")}
    assert len(flacs) == 4
    assert all(part[name] == whole[name] for name in flacs)


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="name another folder with --set output"):
        plan_build(small_config(tmp_path / "set"))
    assert (tmp_path / "set" / "thesis.tex").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_made_and_the_next_one_the_same_bytes(tmp_path, tiny_toml):
    options = ["--limit", "12"]
    command = [sys.executable, "-m", "pipeline.sample_corpora.cli", str(tiny_toml), *options]
    killed = subprocess.Popen(
        [*command, "--set", f"output={tmp_path / 'set'}"], cwd=tiny_toml.parents[2], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob("set.partial-*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    # Its workers notice and end; on a busy machine not at once, and until then they write.
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert any(tmp_path.glob("set.partial-*/*"))
    assert not (tmp_path / "set").exists()
    for name in ("set", "undisturbed"):
        assert main([str(tiny_toml), *options, "--set", f"output={tmp_path / name}"]) == 0
    assert digests(tmp_path / "set") == digests(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "undisturbed"]


def test_the_stamp_says_what_was_written(tmp_path):
    build(plan_build(small_config(tmp_path / "set")))
    stamp = (tmp_path / "set" / STAMP).read_text(encoding="utf-8")
    assert '"heldout/mls": 2' in stamp
    assert str(tmp_path) not in stamp


def test_the_command_tells_its_plan_and_writes_nothing(tmp_path, tiny_toml, capsys):
    assert main([str(tiny_toml), "--set", f"output={tmp_path / 'set'}", "--limit", "5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "heldout/laion_coco" in printed
    assert "to be written" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_command_runs_twice(tmp_path, tiny_toml, capsys):
    changes = [f"--set=output={tmp_path / 'set'}", "--set=workers=1", "--limit=1"]
    assert main([str(tiny_toml), *changes]) == 0
    assert "15 items in 15 corpora" in capsys.readouterr().out
    assert main([str(tiny_toml), *changes]) == 0
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trian.mls=3", "did you mean 'train'"),
        ("train.msl=3", "did you mean 'mls'"),
        ("train.mls=-1", "train.mls"),
        ('speech.voices=["ada", "hal"]', "not hal"),
        ("music.duration_s=0.03", "music.duration_s"),
        ("pictures.jitter_px=50", "pictures.jitter_px"),
    ],
)
def test_a_wrong_config_ends_with_2_and_names_the_key(tmp_path, tiny_toml, capsys, change, message):
    assert main([str(tiny_toml), "--set", f"output={tmp_path / 'set'}", "--set", change]) == 2
    assert message in capsys.readouterr().err
