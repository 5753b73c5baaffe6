"""``anygpt-remove``: samples leave a dataset for good, and every packed dataset that still holds them is named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import AnyGPTError, ConfigError
from shards.manifest import MANIFEST_NAME
from shards.removal import Removal, Stale, plan_removal, remove_samples, stale_datasets, unknown_message
from shards.storage import open_path

_NAMED = 10


@dataclass(frozen=True, slots=True)
class _Arguments:
    dataset: Path
    ids: Path
    reason: str
    packed: tuple[Path, ...]
    ignore_unknown: bool
    dry_run: bool


def main(argv: Sequence[str] | None = None) -> int:
    """``anygpt-remove DATASET --ids FILE``: exit 1 when an id is unknown; the same call again finishes a killed one."""
    try:
        args = _parse(argv)
        ids = read_ids(args.ids)
        if args.dry_run:
            removal = plan_removal(args.dataset, ids)
            if removal.unknown and not args.ignore_unknown:
                print(unknown_message(removal), file=sys.stderr)
        else:
            removal = remove_samples(args.dataset, ids, reason=args.reason, ignore_unknown=args.ignore_unknown)
        print(format_removal(removal, dry_run=args.dry_run))
        if (args.dataset / MANIFEST_NAME).is_file() and args.packed:
            print(
                format_stale(stale_datasets(args.dataset, args.packed, also=[name for _, name in removal.sample_ids]))
            )
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 1 if removal.unknown and not args.ignore_unknown else 0


def read_ids(path: Path) -> list[str]:
    """Ids of a list, one a line; empty lines and lines that begin with ``#`` say nothing.

    Raises:
        ConfigError: there is no such file, or it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ids {path}: expected a text file with one sample id a line, found {error}") from error
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def format_removal(removal: Removal, *, dry_run: bool) -> str:
    """What was done, or would be, for a terminal."""
    would = "would remove" if dry_run else "removed"
    lines = [f"{removal.folder}: {would} {len(removal.sample_ids):,} samples, {len(removal.units):,} shards rebuilt"]
    lines += [f"  {unit}  {name}" for unit, name in removal.sample_ids[:_NAMED]]
    if len(removal.sample_ids) > _NAMED:
        lines.append(f"  ... and {len(removal.sample_ids) - _NAMED:,} more")
    if removal.before:
        lines.append(f"  removed earlier: {removal.before:,} of the ids")
    if removal.unknown:
        named = ", ".join(removal.unknown[:_NAMED]) + (", ..." if len(removal.unknown) > _NAMED else "")
        lines.append(f"  not of this dataset: {len(removal.unknown):,} ids: {named}")
    if not removal.finished and not dry_run:
        lines.append("  tokenization is not finished: run anygpt-tokenize again; it leaves the removed samples out")
    return "\n".join(lines)


def format_stale(found: Sequence[Stale]) -> str:
    """Which packed datasets must be made again, for a terminal."""
    if not found:
        return "packed datasets made of these samples: none found"
    lines = ["packed datasets made of these samples:"]
    for packed in found:
        held = f"{packed.rows:,} rows, {packed.documents:,} documents of {packed.sample_ids:,} removed samples"
        said = f"stale: re-pack ({held})" if packed.documents else "holds none of the removed samples"
        lines.append(f"  {packed.folder}: {said}")
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> _Arguments:
    parser = argparse.ArgumentParser(
        prog="anygpt-remove", description="Take samples out of a tokenized dataset for good."
    )
    parser.add_argument("dataset", help="folder of sample shards, the output of anygpt-tokenize")
    parser.add_argument("--ids", type=Path, required=True, help="text file, one sample id a line, # for comments")
    parser.add_argument("--reason", default="", help="why, as removed.parquet and filtered.parquet will say it")
    parser.add_argument(
        "--packed",
        nargs="+",
        default=[],
        help="packed datasets, or folders to search for them: which are stale?",
    )
    parser.add_argument("--ignore-unknown", action="store_true", help="ids of other datasets may be in the list")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, write nothing")
    args = parser.parse_args(argv)
    dataset, packed = open_path(args.dataset), tuple(open_path(text) for text in args.packed)
    return _Arguments(dataset, args.ids, args.reason, packed, args.ignore_unknown, args.dry_run)
