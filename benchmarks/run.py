"""``make bench [NAME=...]``: run one benchmark, or all; each prints a table and, as its last line, one JSON object.

A benchmark is a file in this folder with a ``main()``. Figures are ratios measured in one run, medians over interleaved
rounds, because the machines are noisy; they are compared, never asserted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

_NOT_BENCHMARKS = {"run", "__init__", "full_size", "loader_checks", "loader_data", "loader_probe", "peers_ours"}


def names() -> list[str]:
    """Every benchmark there is, in alphabetical order."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_BENCHMARKS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named on the command line, or all of them."""
    chosen = list(sys.argv[1:] if argv is None else argv) or names()
    for name in chosen:
        if name not in names():
            near = difflib.get_close_matches(name, names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names())}"
            print(f"error: no benchmark {name!r}; {hint}", file=sys.stderr)
            return 2
    for name in chosen:
        print(f"\n== {name} ==", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
