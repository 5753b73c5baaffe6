"""What the loader promises besides speed: a quick start, a small state, little memory, and the same rows whatever happens.

Starting, resuming and memory are measured in fresh processes that take turns, medians, files in the page cache. The rest is
counted, row by row (:mod:`benchmarks.loader_checks`). ``benchmarks/loader.py`` has the speed, ``benchmarks/packing.py`` the
packing, ``benchmarks/peers.py`` other projects' loaders.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import loader_checks as checks
from benchmarks.loader_data import SHARES, write_datasets, write_linked_dataset, write_realistic_dataset
from benchmarks.loader_probe import first_batch, memory, open_mixture, probe
from shards.manifest import fingerprint

SIZES = {"a": 10_000, "b": 6_000, "c": 3_000, "d": 1_000}
# Rows of a shard as large as makes 300 M rows 20,000 files and 10 M rows 667.
ROWS_PER_SHARD = 15_000
BIG_SHARDS, WIDE_SHARDS = 20_000, 667
MEMORY_STEPS = 3000
ROUNDS = int(os.environ.get("LOADER_BARS_ROUNDS", "5"))
RESUMED_STEPS = {"20k": (1000, 123_457), "300m": (1000, 20_000_003)}
PACKED_DOCUMENTS = 40_000
BARRED_MIXES = ("caption-heavy", "balanced", "document-heavy")


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    print(json.dumps(measure()))


def measure() -> Mapping[str, Any]:
    """Print a line for each bar; return all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = _small(folder / "small")
        write_datasets(folder, {"one": ROWS_PER_SHARD})
        big, wide = (_linked(folder, num_shards) for num_shards in (BIG_SHARDS, WIDE_SHARDS))
        figures: dict[str, Any] = _starts({"20k": small, "300m": big})
        figures |= _state(small)
        figures |= _memory({"10m": wide, "300m": big})
        figures |= _bytes_per_token(folder / "realistic")
    figures |= _counted(checks.elastic(), checks.shares(), checks.repeats())
    figures |= _damage()
    return figures


def _starts(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds to the first batch, and what resuming at some steps adds at most; by the clock, and of the CPU beside it."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            for step in (1, *RESUMED_STEPS[name]):
                found.setdefault((name, step), []).append(probe(first_batch, **case, step=step))
    figures: dict[str, float] = {}
    for name in cases:
        words: list[str] = []
        steps = (1, *RESUMED_STEPS[name])
        for clock, key in (("seconds", "s"), ("cpu_s", "cpu_s")):
            medians = {
                step: statistics.median(one[clock] for one in found[name, step]) for step in (1, *RESUMED_STEPS[name])
            }
            extra = max(medians[step] for step in RESUMED_STEPS[name]) - medians[1]
            figures |= {
                f"first_batch_{key}_{name}": round(medians[1], 4),
                f"resume_extra_{key}_{name}": round(extra, 4),
            }
            words += [f"{medians[1]:.3f} s", f"{extra:+.3f} s"]
        _line(f"first batch, {name} rows", words[0], f"cold start, imports apart; {words[2]} of the CPU")
        steps = ", ".join(f"{step:,}" for step in RESUMED_STEPS[name])
        _line(
            f"resume, {name} rows", words[1], f"against a cold start, at worst of steps {steps}; {words[3]} of the CPU"
        )
    return figures


def _state(case: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of what a checkpoint keeps for the stream: a step, and by what to know that the rows are the same."""
    mixture, datasets = open_mixture(**case)
    step = 20_000_003
    prints = {"vocabulary": datasets[0].vocabulary.fingerprint, "mixture": mixture.fingerprint}
    prints |= {"batch": fingerprint({"rows": 8, "attention": "document"})}
    named = {f"dataset {name}": one.manifest.fingerprint for name, one in zip(mixture.names, datasets, strict=True)}
    position = len(json.dumps(step))
    together = len(json.dumps({"step": step, "fingerprints": prints | named}, separators=(",", ":")))
    _line(
        "state of the stream", f"{position} bytes", f"one integer; {together} with fingerprints of 4 datasets as JSON"
    )
    return {"state_bytes": position, "state_bytes_with_fingerprints": together}


def _memory(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, case in cases.items():
        found = probe(memory, **case, steps=MEMORY_STEPS)
        figures[f"memory_mib_{name}"] = round(found["mib"], 1)
        steps = f"{MEMORY_STEPS:,} batches of 8 rows in {found['seconds']:.1f} s"
        _line(
            f"memory, {found['rows']:,} rows", f"{found['mib']:.0f} MiB", f"above {found['imports_mib']:.0f}; {steps}"
        )
    return figures


def _bytes_per_token(folder: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    for mix in BARRED_MIXES:
        tokens = write_realistic_dataset(folder / mix, mix, PACKED_DOCUMENTS, rows_per_shard=5000)
        sizes = {path: path.stat().st_size for path in (folder / mix).iterdir()}
        beside = sum(size for path, size in sizes.items() if path.suffix == ".parquet") / tokens
        found = sum(sizes.values()) / tokens
        figures[f"bytes_per_token_{mix.replace('-', '_')}"] = round(found, 4)
        _line(f"bytes per token, {mix}", f"{found:.4f}", f"of it {beside:.4f} for the sample ids beside the rows")
    return figures | {"bytes_per_token": max(figures.values())}


def _counted(elastic: checks.Elastic, shares: checks.Shares, repeats: checks.Repeats) -> dict[str, Any]:
    ranks = " -> ".join(map(str, checks.WORLD_SIZES))
    _line(
        f"elastic, {ranks} ranks",
        "same batches" if elastic.same_batches else "OTHER BATCHES",
        f"{elastic.rows:,} rows of a weighted mixture, {elastic.wrong_rows} not read as often as its share says",
    )
    _line("shares in any window of a period", f"{shares.worst_global} rows off", f"{shares.windows:,} windows")
    for (batch, world), (whole, within) in shares.per_rank.items():
        words = f"in a rank's part of whole cycles; {within} rows in a rank's part of any period"
        _line(f"shares, each of {world} ranks, batch {batch}", f"{whole} rows off", words)
    _line(
        "repeats before a set is exhausted", str(repeats.early), f"{repeats.rows:,} rows, each set read at least twice"
    )
    return {
        "elastic_same_batches": elastic.same_batches,
        "elastic_wrong_rows": elastic.wrong_rows,
        "share_rows_off": shares.worst_global,
        "share_rows_off_per_rank": max(whole for whole, _ in shares.per_rank.values()),
        "share_rows_off_per_rank_in_a_period": max(within for _, within in shares.per_rank.values()),
        "early_repeats": repeats.early,
    }


def _damage() -> dict[str, Any]:
    found = checks.damage()
    words = f"flips at random places; {found.named} messages name the file"
    _line("flipped bytes noticed", f"{found.noticed}/{found.flips}", words)
    for what, message in found.messages.items():
        print(f"  {what}: {message}")
    return {
        "flips": found.flips,
        "flips_noticed": found.noticed,
        "flips_harmless": found.harmless,
        "truncation_noticed": found.truncated,
    }


def _small(folder: Path) -> dict[str, Any]:
    write_datasets(folder, SIZES)
    return {"folders": {name: str(folder / name) for name in SIZES}, "shares": SHARES}


def _linked(folder: Path, num_shards: int) -> dict[str, Any]:
    write_linked_dataset(folder / str(num_shards), folder / "one", num_shards)
    return {"folders": {"all": str(folder / str(num_shards))}, "shares": {"all": 1.0}}


def _line(bar: str, figure: str, words: str) -> None:
    print(f"{bar:<38}{figure:>16}   {words}", flush=True)
