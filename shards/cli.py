"""Commands over datasets on disk. They take dataset folders, never configs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shards.convert_cli import convert as convert  # the command's entry point is here
from shards.errors import AnyGPTError
from shards.storage import open_path
from shards.verify import Verification, verify_dataset


def verify(argv: Sequence[str] | None = None) -> int:
    """``anygpt-verify DATASET...``: look at every byte; exit 1 and name file and rows if anything is wrong."""
    parser = argparse.ArgumentParser(prog="anygpt-verify", description="Prove that datasets are whole.")
    parser.add_argument(
        "dataset", nargs="+", help="folder of sample shards (also s3://BUCKET/FOLDER) or of packed shards"
    )
    args = parser.parse_args(argv)
    sound = True
    for folder in args.dataset:
        try:
            result = verify_dataset(open_path(folder))
        except AnyGPTError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        print(_table(result))
        for fault in result.faults:
            print(f"  fault: {fault}", file=sys.stderr)
        sound = sound and not result.faults
    return 0 if sound else 1


def _table(result: Verification) -> str:
    unit = "tokens" if result.kind == "packed" else "frames"
    lines = [
        ("shards", result.num_shards),
        ("rows", result.num_rows),
        ("documents", result.documents),
        *((f"{modality} {unit}", count) for modality, count in sorted(result.tokens.items())),
        ("faults", len(result.faults)),
    ]
    width = max(len(name) for name, _ in lines)
    body = "\n".join(f"  {name:<{width}}  {count:>15,}" for name, count in lines)
    return f"{result.folder} ({result.kind}): {'FAULTY' if result.faults else 'whole'}\n{body}"
