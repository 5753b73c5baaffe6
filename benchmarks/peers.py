"""This project's loader beside the other projects' loaders, by their scripts in ``../shared/bench/peers`` (README there).

20,000 rows of 4,500 ids in four sets, int64 batches of 8 rows, every measurement in a fresh process. Speed is tokens per CPU
second of the whole process tree, as a ratio to ``floor``, medians of rounds that take turns. Variables:

- ``PEERS_PY_MAIN``, ``PEERS_PY_TROVE``, ``PEERS_PY_ENERGON``: interpreters with the peers installed; default is ours, which
  has ``floor`` and ``megatron``. A peer that cannot be imported is named and left out.
- ``PEERS_NAMES``: a comma-separated choice of the scripts' names; default all but datatrove and energon.
- ``PEERS_WHAT``: of ``speed``, ``resume``, ``correct``; default all. ``PEERS_ROUNDS``: default 3.
- ``PEERS_DATA``: where data and ``ours.jsonl``, the lines of this table, are kept. What is there is not measured again.

With all peers about a quarter of an hour on two idle cores and 3 GB of disk; without what must be installed, a third of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_ours import OURS, Scripts, load_scripts

DEFAULT = "floor,floor-new,ours,ours-new,ours-stream,megatron,arrow-ipc,memmap,litdata,mds,wds,hf-map,hf-iter,grain"
# What the scripts do for others they import in the child; here they say whether a peer is there at all.
_NEEDS = {
    "memmap": "torchdata",
    "arrow-ipc": "torchdata",
    "litdata": "litdata",
    "mds": "streaming",
    "wds": "webdataset",
    "hf-map": "datasets, torchdata",
    "hf-iter": "datasets, torchdata",
    "grain": "grain, array_record",
    "grain-threads": "grain, array_record",
    "datatrove": "datatrove",
    "energon": "megatron.energon",
}
# The same loader in another wrapping: what it does right or wrong is the same.
_SAME_BEHAVIOUR = {"floor-new", "ours-new", "memmap"}
# Grain has its elastic reader under another name, and it has no mixture.
_ELASTIC_NAME = {"grain": "grain-elastic"}
_WINDOW = 1000


def main() -> None:
    """Print the tables, then the figures as one JSON object."""
    try:
        scripts = load_scripts()
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        print(json.dumps({"skipped": str(error)}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("PEERS_DATA", temporary))
        print(json.dumps(measure(scripts, folder)))


def measure(scripts: Scripts, folder: Path) -> Mapping[str, Any]:
    """Measure what is not measured yet, print the tables; return the figures by peer."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "src").is_dir():
        scripts.peers.gen(str(folder / "src"))
    names = [name for name in os.environ.get("PEERS_NAMES", DEFAULT).split(",") if _is_there(scripts, name)]
    lines = _Lines(scripts, folder)
    what = os.environ.get("PEERS_WHAT", "speed,resume,correct").split(",")
    for name in names:
        if scripts.peers.data_dir(str(folder), name) == str(folder / name):
            lines.take(name, "write", lambda name=name: scripts.run.sub(["write", str(folder), name], name))
    if "speed" in what:
        for number in range(int(os.environ.get("PEERS_ROUNDS", "3"))):
            for mode in ("mix", "shuffle"):
                _each(lines, names, f"read {mode}", "read", mode, number=number)
    if "resume" in what:
        for mode in ("mix", "shuffle"):
            _each(lines, [name for name in names if not name.startswith("floor")], f"resume {mode}", "resume", mode)
    if "correct" in what:
        _behaviour(lines, [name for name in names if name not in _SAME_BEHAVIOUR])
    figures = {name: _figures(lines, name, "floor") for name in names}
    _tables(figures)
    return figures


class _Lines:
    """What was measured, kept in a file of JSON lines."""

    def __init__(self, scripts: Scripts, folder: Path) -> None:
        self.scripts, self.folder, self._path = scripts, folder, folder / "ours.jsonl"
        text = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        # What failed once may have failed for want of time: it is tried again.
        self._found = [line for line in found if "error" not in line]

    def take(self, name: str, what: str, measured: Callable[[], Mapping[str, Any]], number: int = 0) -> None:
        """Measure unless it is there; a measurement that fails is a finding, too."""
        if any((line["peer"], line["what"], line["number"]) == (name, what, number) for line in self._found):
            return
        with self.scripts.command_of(name):
            try:
                result = dict(measured())
            except (ImportError, KeyError, ValueError, IndexError, OSError, subprocess.SubprocessError) as error:
                result = {"error": f"{type(error).__name__}: {error}"}
        line = {"peer": name, "what": what, "number": number, "load": os.getloadavg()[0], **result}
        self._found.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name:<12} {what:<16} {json.dumps(result)[:200]}", file=sys.stderr, flush=True)

    def of(self, name: str, what: str) -> list[dict[str, Any]]:
        return [line for line in self._found if (line["peer"], line["what"]) == (name, what)]

    def median(self, name: str, what: str, key: str) -> float | None:
        values = [line[key] for line in self.of(name, what) if line.get(key) is not None]
        return statistics.median(values) if values else None

    def first(self, name: str, what: str) -> dict[str, Any]:
        return next(iter(self.of(name, what)), {})


def _is_there(scripts: Scripts, name: str) -> bool:
    interpreter = os.environ.get("PEERS_PY_" + scripts.peers.PEERS[name][2].upper(), sys.executable)
    needs = _NEEDS.get(name)
    if needs is None:
        return True
    # Finding is not importing: some of them take seconds.
    code = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {needs.split(', ')!r})))"
    if subprocess.run([interpreter, "-c", code], capture_output=True, check=False).returncode == 0:
        return True
    print(f"{name}: left out, for {needs} is not installed; other days' figures are in the peers' README")
    return False


def _each(lines: _Lines, names: Iterable[str], what: str, command: str, mode: str, *, number: int = 0) -> None:
    """One command of ``run.py`` for every peer, without worker processes."""
    root, run = str(lines.folder), lines.scripts.run
    for name in names:
        # In a process of its own: before it measures, it imports the peer.
        lines.take(name, what, lambda name=name: run.sub([command, root, name, mode, "0"], name), number)


def _behaviour(lines: _Lines, names: Iterable[str]) -> None:
    """Resuming on other ranks, proportions, damage."""
    root, correct = str(lines.folder), lines.scripts.correct
    for name in names:
        elastic = _ELASTIC_NAME.get(name, name)
        if not name.startswith("floor"):
            lines.take(name, "elastic", lambda name=elastic: correct.elastic(root, name))
            lines.take(name, "elasticmix", lambda name=elastic: correct.elasticmix(root, name))
        lines.take(name, "mix", lambda name=name: correct.mix(root, name))
        lines.take(name, "per rank", lambda name=name: per_rank(lines.scripts, root, name))
        lines.take(name, "damage", lambda name=name: correct.damage(root, name))


def per_rank(scripts: Scripts, root: str, name: str) -> Mapping[str, Any]:
    """How far each of two ranks is from the shares in 4,000 rows of its own, and at worst in any 1,000 of them in turn."""
    weights = np.array(scripts.peers.WEIGHTS)
    results, _ = scripts.correct.ranks(root, name, "mix", 2, 4000 // scripts.peers.BATCH)
    counts: list[list[int]] = []
    worst = 0.0
    for result in results:
        sets = np.array([seen[0] for seen in result["seen"]], np.int64)
        counts.append(np.bincount(sets, minlength=len(weights)).tolist())
        for start in range(0, len(sets) - _WINDOW + 1, _WINDOW):
            found = np.bincount(sets[start : start + _WINDOW], minlength=len(weights)) / _WINDOW
            worst = max(worst, float(np.abs(found - weights).max()))
    errors = [result["err"] for result in results if result["err"]][:1]
    return {"counts": counts, "worst_dev_1000": round(worst, 4) if all(map(sum, counts)) else None, "err": errors}


def _figures(lines: _Lines, name: str, floor: str) -> dict[str, Any]:
    """One row of the table; what was not measured is None."""
    speed, bare = (lines.median(of, "read mix", "mtok_cpu_s") for of in (name, floor))
    resumed = lines.first(name, "resume mix")
    behaves = "floor" if name == "floor-new" else "ours" if name in OURS and not lines.of(name, "mix") else name
    elastic, mixed = lines.first(behaves, "elastic"), lines.first(behaves, "elasticmix")
    proportions, ranks, damage = (lines.first(behaves, what) for what in ("mix", "per rank", "damage"))
    written = lines.first(Path(lines.scripts.peers.data_dir(str(lines.folder), name)).name, "write")
    return {
        "mtok_cpu_s": speed,
        "ratio": round(speed / bare, 3) if speed and bare else None,
        "shuffle_mtok_cpu_s": lines.median(name, "read shuffle", "mtok_cpu_s"),
        "first_batch_s": lines.median(name, "read mix", "first_s"),
        "write_mtok_s": written.get("write_mtok_s"),
        "bytes_per_token": written.get("bytes_per_token"),
        "resume_exact": resumed.get("exact"),
        "resume_s": resumed.get("resume_s"),
        "state_bytes": resumed.get("state_bytes"),
        "elastic": _elastic(elastic),
        "elastic_mixture": _elastic_mixture(mixed),
        "worst_in_1000": proportions.get("worst_dev_1000"),
        "worst_in_1000_per_rank": ranks.get("worst_dev_1000"),
        "early_repeats": proportions.get("early_repeats"),
        "truncated": _damage(damage.get("truncate")),
        "overwritten": _damage(damage.get("overwrite")),
    }


def _elastic(found: Mapping[str, Any]) -> str | None:
    if not found:
        return None
    if problem := (found.get("error") or (found.get("err2") or found.get("err4") or [None])[0]):
        return f"fails: {problem[:80]}"
    missing, repeated = found["missing"], found["repeated"]
    return f"{missing} missing, {repeated} repeated" if missing or repeated else "each row once"


def _elastic_mixture(found: Mapping[str, Any]) -> str | None:
    if not found:
        return None
    if problem := (found.get("error") or (found.get("err") or [None])[0]):
        return f"fails: {problem[:80]}"
    return "same draws" if found["same_draws"] else "other draws"


def _damage(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    if not found["err"]:
        return f"silent: {found['wrong_rows']} wrong rows, {found['missing']} missing"
    return found["err"] + (f" (after {found['wrong_rows']} wrong rows)" if found["wrong_rows"] else "")


def _tables(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Numbers, behaviour, and what a damaged file says, as Markdown."""
    keys = list(next(iter(figures.values()), {}))
    numbers, words = keys[:9], keys[9:14]
    for chosen in (numbers, words):
        print("\n| loader | " + " | ".join(key.replace("_", " ") for key in chosen) + " |")
        print("|---" * (len(chosen) + 1) + "|")
        for name, row in figures.items():
            print(f"| {name} | " + " | ".join("–" if row[key] is None else str(row[key]) for key in chosen) + " |")
    print()
    for name, row in figures.items():
        for how in ("truncated", "overwritten"):
            if row[how] is not None:
                print(f"{name}, {how}: {row[how]}")
