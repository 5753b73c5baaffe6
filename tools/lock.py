"""Write ``requirements.lock`` again: resolve every extra of pyproject.toml and pin what comes out.

``make lock`` runs this with the environment's own pip. Nothing is installed; the next set-up does that, because the
lock changed. Versions only: no hashes and no address of a registry, so that the file works with any mirror. Run it on
Linux with the oldest Python we support, so that the pins exist for everybody.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"

BUILD_TOOLS = ("setuptools>=77,<82", "wheel>=0.45")
"""Not dependencies of ours, but what source distributions are built with; torch 2.11 refuses setuptools 82."""

LINUX_ONLY = re.compile(r"^(nvidia-|cuda-|triton$)")
"""torch asks for these on Linux alone; a lock without the marker could not be installed on a Mac."""

HEADER = """\
# Every package of every extra, pinned: what `make setup` installs, with nothing left to resolve.
# Made by `make lock` with Python 3.11 on Linux; do not edit by hand.
"""


def main() -> int:
    """Resolve, write, say what moved."""
    before = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    after = render(resolve(requirements(project)))
    LOCK.write_text(after, encoding="utf-8")
    old, new = set(before.splitlines()), set(after.splitlines())
    print("\n".join([*(f"- {line}" for line in sorted(old - new)), *(f"+ {line}" for line in sorted(new - old))]))
    print(f"{LOCK.name}: {len(new) - HEADER.count(chr(10))} packages")
    return 0


def requirements(project: Mapping[str, Any]) -> list[str]:
    """Base dependencies and those of every extra, with the build tools."""
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    return [*project["dependencies"], *(line for lines in extras.values() for line in lines), *BUILD_TOOLS]


def resolve(wanted: Iterable[str]) -> dict[str, str]:
    """Name -> version of everything an empty environment would get."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *dict.fromkeys(wanted)], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonical(item["metadata"]["name"]): item["metadata"]["version"].split("+")[0] for item in installs}


def canonical(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def render(pins: Mapping[str, str]) -> str:
    """The text of the lock, sorted by name."""
    lines = (
        f"{name}=={version}" + ("; sys_platform == 'linux'" if LINUX_ONLY.match(name) else "")
        for name, version in sorted(pins.items())
    )
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
