"""``anygpt-verify``: prove that datasets are whole. It takes dataset folders, never configs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from shards.errors import AnyGPTError, ConfigError
from shards.manifest import read_manifest
from shards.storage import open_path
from shards.verify import Progress, Verification, sampled, verify_dataset

INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C, as shells count it."""


def verify(argv: Sequence[str] | None = None) -> int:
    """``anygpt-verify DATASET...``: look at every byte; exit 1 and name file and rows if anything is wrong."""
    args = _parser().parse_args(argv)
    code = 0
    try:
        for name in args.dataset:
            code = max(code, _verify_one(name, args))
    except KeyboardInterrupt:
        print("interrupted; what was printed so far is right, the rest was not looked at", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="anygpt-verify", description="Prove that datasets are whole.")
    parser.add_argument(
        "dataset", nargs="+", help="folder of sample shards (also s3://BUCKET/FOLDER) or of packed shards"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: the usable cores")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N shards of each dataset only, evenly spread")
    parser.add_argument("--json", action="store_true", help="print one JSON object per dataset, faults included")
    return parser


def _verify_one(name: str, args: argparse.Namespace) -> int:
    try:
        if args.workers is not None and args.workers < 1:
            raise ConfigError(f"--workers: expected at least 1, found {args.workers}")
        folder = open_path(name)
        manifest = read_manifest(folder)
        num_bytes = sum(entry.num_bytes for entry in sampled(manifest.shards, args.limit))
        with _progress_bar(folder.name, num_bytes) as progress:
            result = verify_dataset(
                folder, workers=args.workers, limit=args.limit, progress=progress, manifest=manifest
            )
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        if args.json:
            print(json.dumps({"dataset": name, "whole": False, "error": str(error)}, ensure_ascii=False))
        return error.exit_code
    if args.json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        print(_table(result))
        for fault in result.faults:
            print(f"  fault: {fault}", file=sys.stderr)
    return 1 if result.faults else 0


@contextmanager
def _progress_bar(name: str, num_bytes: int) -> Generator[Progress]:
    """Bytes looked at, on stderr and only if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    # Imported here: reading shards needs no progress bar.
    from tqdm import tqdm

    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc=name, leave=False)
    with bar:
        yield bar.update


def _table(result: Verification) -> str:
    unit = "tokens" if result.kind == "packed" else "frames"
    lines = [
        ("shards", result.num_shards),
        *([("of", result.shards_in_all)] if result.is_part else []),
        ("rows", result.num_rows),
        ("documents", result.documents),
        *((f"{modality} {unit}", count) for modality, count in sorted(result.tokens.items())),
        ("faults", len(result.faults)),
    ]
    width = max(len(name) for name, _ in lines)
    body = "\n".join(f"  {name:<{width}}  {count:>15,}" for name, count in lines)
    return f"{result.folder} ({result.kind}): {_verdict(result)}\n{body}"


def _verdict(result: Verification) -> str:
    if result.faults:
        return "FAULTY"
    if result.is_part:
        return f"no fault in {result.num_shards} of {result.shards_in_all} shards; the others were NOT looked at"
    return "whole"
