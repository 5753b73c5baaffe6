"""Set-up as a stranger meets it: from nothing, again, twice at once, killed half-way, and with the wrong Python.

The real script runs in a folder of its own, with a uv on PATH that writes down what it was asked instead of
downloading three gigabytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

FAKE_UV = """#!/bin/sh
echo "$@" >> "{folder}/asked"
[ -e "{folder}/slow" ] && sleep {seconds}
exit 0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a lock of two packages, the real set-up script and a fake uv."""
    root = tmp_path / "project"
    (root / "tools").mkdir(parents=True)
    shutil.copy(REPOSITORY / "tools" / "setup.py", root / "tools")
    (root / "requirements.lock").write_text("# a comment\nnumpy==2.0.0\nsetuptools==81.0.0\n", encoding="utf-8")
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text(FAKE_UV.format(folder=tmp_path, seconds=20), encoding="utf-8")
    uv.chmod(0o755)
    return root


def command(project: Path) -> tuple[list[str], dict[str, str]]:
    """The set-up command and the environment that has the fake uv first."""
    path = f"{project.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return [sys.executable, str(project / "tools" / "setup.py")], {**os.environ, "PATH": path}


def set_up(project: Path) -> subprocess.CompletedProcess[str]:
    """Run set-up to its end."""
    words, environment = command(project)
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)


def asked(project: Path) -> list[str]:
    """What uv was asked, one line a call."""
    path = project.parent / "asked"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_the_first_run_installs_the_lock_and_the_project_and_the_second_does_nothing(project: Path):
    first = set_up(project)
    assert first.returncode == 0, first.stderr
    build_tools, packages, ours = asked(project)
    assert build_tools.endswith("--no-deps setuptools==81.0.0")
    assert packages.endswith(f"--requirement {project / 'requirements.lock'}")
    assert ours.endswith(f"--editable {project}")

    second = set_up(project)
    assert (second.returncode, second.stdout) == (0, "")
    assert len(asked(project)) == 3


def test_a_new_lock_installs_again_and_a_new_project_file_only_our_own_package(project: Path):
    set_up(project)
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    set_up(project)
    assert len(asked(project)) == 3 + 1
    assert "--editable" in asked(project)[-1]

    (project / "requirements.lock").write_text("numpy==2.1.0\nsetuptools==81.0.0\n", encoding="utf-8")
    set_up(project)
    assert len(asked(project)) == 3 + 1 + 3


def test_two_set_ups_at_once_install_once(project: Path):
    words, environment = command(project)
    both = [subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(asked(project)) == 3


def test_a_set_up_that_was_killed_starts_over_from_an_empty_environment(project: Path):
    """Half an installation must never be taken for a whole one, nor be built upon."""
    (project.parent / "slow").touch()
    words, environment = command(project)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 30
    while not asked(project) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert asked(project), "the installer was never called"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    half_installed = project / ".venv" / "lib" / "half-installed"
    half_installed.touch()

    (project.parent / "slow").unlink()
    assert set_up(project).returncode == 0
    assert not half_installed.exists()
    assert len(asked(project)) == 1 + 3


def test_a_moved_project_gets_a_new_environment(project: Path):
    """The scripts of an environment hold its path, so that of a moved folder would run the old one."""
    set_up(project)
    moved = project.rename(project.parent / "elsewhere")
    assert set_up(moved).returncode == 0
    assert len(asked(moved)) == 6


def test_an_environment_made_by_hand_is_left_alone(project: Path):
    (project / ".venv").mkdir()
    (project / ".venv" / "precious").touch()
    done = set_up(project)
    assert done.returncode == 1
    assert "was not made by this set-up" in done.stderr
    assert (project / ".venv" / "precious").exists()


def test_an_old_python_is_told_what_is_missing(project: Path):
    source = (project / "tools" / "setup.py").read_text(encoding="utf-8")
    (project / "tools" / "setup.py").write_text(source.replace("(3, 11)", "(9, 9)"), encoding="utf-8")
    done = set_up(project)
    assert done.returncode == 1
    assert "Python 9.9 or newer is needed" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_an_environment_borrowed_through_a_link_is_left_as_it_is(project: Path, tmp_path: Path):
    assert set_up(project).returncode == 0
    stamp = project / ".venv" / "setup.json"
    before, calls = stamp.read_bytes(), asked(project)
    borrower = tmp_path / "borrower"
    shutil.copytree(project, borrower, ignore=shutil.ignore_patterns(".venv*"))
    (borrower / ".venv").symlink_to(project / ".venv")
    done = set_up(borrower)
    assert done.returncode == 1 and f"is a link to the environment of {project}" in done.stderr
    assert stamp.read_bytes() == before and asked(project) == calls
    assert set_up(project).returncode == 0 and asked(project) == calls
