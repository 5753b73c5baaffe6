"""20,000 topics and 1,000 dialogues with their media by the offline plugs, on two workers: seconds, and what was left out.

All that ``anygpt-synthesize`` does, in processes of its own, Ray's start included. The bar is five minutes on two cores.
``cpu_s`` is what all of its processes computed, and does not change with what else the machine does.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DIALOGUES, WORKERS = 1_000, 2
CONFIG = f"""
workers = {WORKERS}
[scenarios]
count = {DIALOGUES}
[media]
workers = {WORKERS}
"""
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 30.0


def main() -> None:
    """Print the tables of the command, then the figures as one JSON object."""
    # Ray's processes outlive the one that started them by a moment; as our children they are counted as well.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        config = Path(folder) / "synthesis.toml"
        config.write_text(CONFIG, encoding="utf-8")
        seconds, cpu_s = _run(config, output)
        again_s, again_cpu_s = _run(config, output)
        figures = {
            "seconds": seconds,
            "cpu_s": cpu_s,
            "again_s": again_s,
            "again_cpu_s": again_cpu_s,
            **{stage: _report(output / stage)["written"] for stage in ("topics", "scenarios", "dialogues", "corpus")},
            "media": sum(_report(output / "corpus")["media"].values()),
        }
    print(json.dumps(figures))


def _run(config: Path, output: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processors."""
    command = [sys.executable, "-m", "synthesis.cli", str(config), "--set", f"output={output}"]
    before, begun = _computed_s(), time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begun
    _wait_for_orphans()
    return round(seconds, 1), round(_computed_s() - before, 1)


def _wait_for_orphans() -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return


def _computed_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
