"""``anygpt-doctor CONFIG``: are the weights there, whole and the right ones, and does one sample go through and back?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.command_cli import exit_status
from inference.diagnosis import Diagnosis, Examination
from inference.doctor import diagnose
from inference.doctor_files import FileFinding, FileState, Progress

_WIDTH = 100
_WORD = 9
"""Columns of the first word: ok, missing, wrong, skipped."""
_NAME = 16
_BAR = 30
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000
_SHOWN_KEYS = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Diagnose all that a config names; exit 0 all well, 1 something is missing or wrong, 2 the config is."""
    args = _parse(argv)
    examination = Examination(
        run=not args.no_run, sha256=not args.no_sha256, progress=_progress_bar() if sys.stderr.isatty() else None
    )
    diagnoses: list[Diagnosis] = []

    def work() -> int:
        # Notes of libraries about themselves would stand between the lines.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for diagnosis in diagnose(args.config, tuple(args.set), examination=examination):
                diagnoses.append(diagnosis)
                print("\n".join(format_diagnosis(diagnosis)), end="\n\n", flush=True)
        if args.json is not None:
            _write_json(args.json, diagnoses)
        print(summary(diagnoses))
        return 0 if all(diagnosis.is_well for diagnosis in diagnoses) else 1

    return exit_status("anygpt-doctor", work)


def format_diagnosis(diagnosis: Diagnosis) -> list[str]:
    """Its lines, at most 100 wide save for paths."""
    lines = [f"{diagnosis.title}  ({diagnosis.source})"]
    if diagnosis.setting:
        lines.append(f"  {diagnosis.setting}")
    for file in diagnosis.files:
        lines += _file_lines(file)
    for check in diagnosis.checks:
        lines += _line(check.status, check.what, check.note)
    if diagnosis.fingerprint:
        lines += _line("ok", "fingerprint", f"{diagnosis.fingerprint}, as the manifests of its shards will say")
    if keys := diagnosis.ignored_keys:
        more = f" and {len(keys) - _SHOWN_KEYS:,} more (--json FILE lists all)" if len(keys) > _SHOWN_KEYS else ""
        lines += _line("ok", "ignored keys", f"{len(keys):,}, not used: {', '.join(keys[:_SHOWN_KEYS])}{more}")
    return lines


def summary(diagnoses: Sequence[Diagnosis]) -> str:
    """The last line."""
    ill = [diagnosis.title for diagnosis in diagnoses if not diagnosis.is_well]
    optional = [
        f"{file.option} of {diagnosis.title}"
        for diagnosis in diagnoses
        for file in diagnosis.files
        if file.status == "missing" and not file.required
    ]
    without = f"; works without: {', '.join(optional)}" if optional else ""
    if ill:
        return f"not well: {', '.join(ill)}{without}; docs/published-weights.md says where files come from and go"
    return f"all well: {', '.join(diagnosis.title for diagnosis in diagnoses)}{without}"


def readable_size(size: int) -> str:
    """``1.23 GB``, in powers of ten, as publishers give it."""
    value, unit = float(size), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if unit else f"{size} B"


def _file_lines(file: FileFinding) -> list[str]:
    optional = "" if file.required else "; optional"
    lines = _line(file.status, file.option, f"for {file.needed_for}{optional}")
    where = "nowhere" if file.path is None else str(file.path)
    lines.append(_detail("looked for at" if file.status == "missing" else "found at", where))
    if file.status == "missing":
        lines.append(_detail("published as", file.published_as))
    elif len(file.parts) == 1:
        lines += list(_state_lines(file.parts[0]))
    else:
        lines.append(_detail("size", f"{readable_size(file.size)} in {len(file.parts)} files"))
        for part in file.parts:
            lines.append(_detail(part.status, f"{part.name}, {readable_size(part.size)}"))
            if part.sha256:
                lines.append(_detail("sha256", part.sha256))
    if file.note:
        lines += _wrapped(file.note, "because")
    return lines


def _state_lines(state: FileState) -> Iterator[str]:
    yield _detail("size", f"{readable_size(state.size)} ({state.size:,} bytes)")
    if state.sha256:
        yield _detail("sha256", state.sha256)


def _line(status: str, name: str, note: str) -> list[str]:
    start = f"  {status:<{_WORD}}{name:<{_NAME}}"
    return textwrap.wrap(
        note, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
    ) or [start.rstrip()]


def _detail(name: str, text: str) -> str:
    return f"  {'':<{_WORD}}  {name:<{_NAME - 2}}{text}"


def _wrapped(text: str, name: str) -> list[str]:
    start = _detail(name, "")
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)


def _progress_bar() -> Progress:
    """Draws over itself on standard error, and wipes itself out at the end of a file."""

    def show(path: Path, done: int, total: int) -> None:
        filled = _BAR * done // max(total, 1)
        bar = "#" * filled + "." * (_BAR - filled)
        text = f"sha256 {path.name[:30]} [{bar}] {readable_size(done)} of {readable_size(total)}"
        sys.stderr.write(f"\r{text:<{_WIDTH}}" if done < total else f"\r{'':<{_WIDTH}}\r")
        sys.stderr.flush()

    return show


def _write_json(path: Path, diagnoses: Sequence[Diagnosis]) -> None:
    data: list[dict[str, Any]] = [dataclasses.asdict(one) | {"is_well": one.is_well} for one in diagnoses]
    path.write_text(json.dumps(data, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anygpt-doctor",
        description="Are the weights there, whole and the right ones? Sends a sample through each codec and back.",
    )
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="config of a corpus, codec, vocoder or training run, or a compact file",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, e.g. a.b=1")
    parser.add_argument("--no-sha256", action="store_true", help="take no digests of the files")
    parser.add_argument("--no-run", action="store_true", help="load, but send no sample through")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found as JSON, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
