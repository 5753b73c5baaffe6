"""Set-up: make ``.venv`` hold exactly what ``requirements.lock`` names, and do nothing when it already does.

Every target of the Makefile runs this first, so it must be quick when there is nothing to do (one file read), safe
when two of them start at once (one lock file) and safe when somebody presses Ctrl-C (a stamp is written last; an
unfinished environment is built anew). It uses uv where there is one and pip where there is not, needs nothing but the
Python it runs on, and stays readable to older Pythons so that they can be told what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
VENV = ROOT / ".venv"
MIN_PYTHON = (3, 11)

# Source distributions (deepspeed, encodec) are built with these instead of an isolated environment of pip's own, so
# that the lock decides about every package that runs during set-up.
BUILD_TOOLS = ("pip", "setuptools", "wheel")


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> int:
    """Bring ``.venv`` up to date; 0 when it is, 1 with one message when it cannot be."""
    try:
        check_python()
        if up_to_date():
            return 0
        with (ROOT / ".venv.lock").open("w", encoding="utf-8") as lock_file:
            wait_for(lock_file)
            # The command that held the lock has most likely done our work.
            if not up_to_date():
                install()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the same command starts it again", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Refuse a Python that is too old, by name."""
    if sys.version_info < MIN_PYTHON:
        raise SetupError(
            f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed, {sys.executable} is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; name another one: make PYTHON=/path/to/python3.11 ..."
        )


def up_to_date() -> bool:
    """Whether the stamp of a finished set-up matches the lock, the project file and this folder."""
    return read_stamp() == wanted_stamp()


def read_stamp() -> dict[str, str]:
    """What the last finished set-up installed; empty when none finished."""
    try:
        return json.loads(stamp_path().read_text(encoding="utf-8")) if venv_python().exists() else {}
    except (OSError, ValueError):
        return {}


def wanted_stamp() -> dict[str, str]:
    """What an up-to-date environment was made from. Its scripts hold its path: a moved folder is a new environment."""
    return {
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "project": hashlib.sha256(PROJECT.read_bytes()).hexdigest(),
        "folder": str(VENV),
    }


def stamp_path() -> Path:
    """The file that says the environment is complete."""
    return VENV / "setup.json"


def log_path() -> Path:
    """What the installer said. It is the first file to exist, and so the sign that the environment is ours."""
    return VENV / "setup.log"


def venv_python() -> Path:
    """The interpreter of the environment."""
    return VENV / "bin" / "python"


def wait_for(lock_file: TextIO) -> None:
    """Hold the lock, saying so when another set-up has it."""
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("setup: another set-up is running, waiting for it", flush=True)
        fcntl.flock(lock_file, fcntl.LOCK_EX)


def install() -> None:
    """Install what changed: everything when the lock did, only our own package when just pyproject.toml did."""
    started = time.monotonic()
    before, wanted = read_stamp(), wanted_stamp()
    if VENV.exists() and not log_path().exists():
        raise SetupError(f"{VENV} was not made by this set-up; rename or remove it and start again")
    if VENV.is_symlink() and before and before["folder"] != wanted["folder"]:
        raise SetupError(
            f"{VENV} is a link to the environment of {Path(before['folder']).parent}, which would import this folder from "
            "then on; remove the link and start again, or run that folder's commands"
        )
    if not before or before["folder"] != wanted["folder"]:
        # Half an installation cannot be told from a whole one package by package; pip's and uv's caches make
        # starting over cheap.
        shutil.rmtree(VENV, ignore_errors=True)
    stamp_path().unlink(missing_ok=True)

    installer = choose_installer()
    if not venv_python().exists():
        create_environment(installer)
        before = {}
    if before.get("lock") != wanted["lock"]:
        pins = read_lock()
        note(f"installing {len(pins)} packages into .venv with {installer} (about 3 GB the first time)")
        installer = install_lock(installer, pins)
    run(installer, [*BUILD_FLAGS, "--editable", str(ROOT)], "this project")

    temporary = stamp_path().with_suffix(".json.tmp")
    temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    temporary.replace(stamp_path())
    note(f"ready after {time.monotonic() - started:.0f} s")


BUILD_FLAGS = ["--no-deps", "--no-build-isolation"]
"""The lock is complete, so nothing is resolved; the build tools come from it, so nothing is isolated."""


def choose_installer() -> str:
    """``uv``, else ``pip``: the environment's own, or, where Python came without one, this interpreter's."""
    if shutil.which("uv"):
        return "uv"
    if importlib.util.find_spec("ensurepip") or importlib.util.find_spec("pip"):
        return "pip"
    raise SetupError(
        f"{sys.executable} has neither pip nor ensurepip, and there is no uv on PATH; "
        "put uv on PATH, or name a Python that has pip: make PYTHON=/path/to/python3.11 ..."
    )


def create_environment(installer: str) -> None:
    """An empty environment with this interpreter; with pip in it where Python brings one."""
    VENV.mkdir()
    log_path().touch()
    without_pip = installer == "uv" or importlib.util.find_spec("ensurepip") is None
    command = [sys.executable, "-m", "venv", *(["--without-pip"] if without_pip else []), str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)} failed with exit {done.returncode}:\n{done.stdout.strip()}")


def read_lock() -> list[str]:
    """The requirement lines of the lock."""
    lines = (line.split("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def install_lock(installer: str, pins: list[str]) -> str:
    """Install the build tools, then the rest. Falls back from uv to pip, whose mirror settings uv does not read."""
    build_tools = [pin for pin in pins if re.split(r"[=;\s]", pin)[0] in BUILD_TOOLS]
    try:
        run(installer, ["--no-deps", *build_tools], "build tools")
        run(installer, [*BUILD_FLAGS, "--requirement", str(LOCK)], "packages", total=len(pins))
    except SetupError as error:
        if installer != "uv":
            raise
        note(f"{error}\nsetup: trying pip instead")
        shutil.rmtree(VENV)
        create_environment("pip")
        return install_lock("pip", pins)
    return installer


def run(installer: str, arguments: list[str], what: str, *, total: int = 0) -> None:
    """Run the installer; its words go to ``.venv/setup.log``, a line of progress to a terminal."""
    command = installer_command(installer) + arguments
    with log_path().open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, cwd=ROOT, env=installer_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        tail = follow(process, log, total)
    if process.returncode != 0:
        lines = "\n    ".join(tail)
        raise SetupError(f"{installer} could not install {what} (exit {process.returncode}):\n    {lines}\n"
                         f"    the whole log is in {log_path().relative_to(ROOT)}")  # fmt: skip


def installer_command(installer: str) -> list[str]:
    """The install command that fills the environment."""
    if installer == "uv":
        return ["uv", "pip", "install", "--python", str(venv_python())]
    pip = [sys.executable, "-m", "pip", "--python", str(venv_python())]
    if importlib.util.find_spec("ensurepip"):
        pip = [str(venv_python()), "-m", "pip"]
    # Python compiles what it imports anyway; compiling all of torch and transformers first takes most of a minute.
    return [*pip, "install", "--no-compile", "--no-input", "--progress-bar", "off"]


def installer_environment() -> dict[str, str]:
    """The caller's environment, less what would send the packages elsewhere."""
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET"}}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0", "VIRTUAL_ENV": str(VENV)}


def follow(process: subprocess.Popen[str], log: TextIO, total: int) -> list[str]:
    """Copy the installer's output to the log, count packages on a terminal; returns its last lines."""
    lines: list[str] = []
    seen = 0
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        lines = [*lines[-11:], line.rstrip()]
        if total and line.startswith("Collecting "):
            seen += 1
            progress(f"[{seen:3d}/{total}] {line.split()[1]}")
        elif line.startswith("Installing collected"):
            progress("unpacking, about a minute")
    process.wait()
    progress("")
    return lines


def progress(text: str) -> None:
    """Overwrite one line of a terminal; say nothing in a log."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text[:100]}", end="", flush=True)


def note(text: str) -> None:
    """One line for the person who waits."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
