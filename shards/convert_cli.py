"""``anygpt-convert``: datasets to the formats of others and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.convert import export_jsonl, import_jsonl
from shards.convert_packed import FORMATS, Wanted, export_packed, import_packed
from shards.convert_sidecar import read_vocabulary
from shards.errors import AnyGPTError, ConfigError
from shards.manifest import Manifest

JSONL = "jsonl"


def convert(argv: Sequence[str] | None = None) -> int:
    """``anygpt-convert import SOURCE DATASET`` and ``anygpt-convert export DATASET FOLDER``, with ``--format``.

    ``jsonl``, the default, is AnyGPT's own data files for sample shards; ``megatron``, ``mds`` and ``webdataset`` are for
    packed shards. The same call again does nothing more.
    """
    args = _parser().parse_args(argv)
    try:
        counts = _run(args)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    width = max(map(len, counts), default=0)
    print("\n".join([str(args.output), *(f"  {name:<{width}}  {count}" for name, count in counts.items())]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anygpt-convert",
        description="Sample shards to AnyGPT's data files, packed shards to Megatron, MDS and tar.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, source, output in (
        ("import", "folder of foreign files", "dataset"),
        ("export", "dataset", "folder of foreign files"),
    ):
        command = verbs.add_parser(verb, help=f"{source} -> {output}")
        command.add_argument("source", type=Path, help=source)
        command.add_argument("output", type=Path, help=output)
        command.add_argument(
            "--format", choices=(JSONL, *FORMATS), default=JSONL, help=f"of the foreign files, default {JSONL}"
        )
        if verb == "import":
            _add_wanted(command.add_argument_group("files that are no export of ours; ignored otherwise"))
    return parser


def _add_wanted(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]  # it has no public name
    group.add_argument("--vocabulary", type=Path, help="packed dataset, or JSON file, whose vocabulary the ids are of")
    group.add_argument("--sequence-length", type=int, help="ids in a row; default: of the first sample stored as a row")
    group.add_argument("--column", default="", help="MDS column or WebDataset extension that holds the ids")


def _run(args: argparse.Namespace) -> Mapping[str, object]:
    if args.verb == "export":
        if args.format == JSONL:
            return {name: f"{count:,}" for name, count in export_jsonl(args.source, args.output).items()}
        return _packed_counts(export_packed(args.source, args.output, args.format))
    if args.format == JSONL:
        manifest = import_jsonl(args.source, args.output)
        return {**manifest.counts, "inexact": manifest.extra["inexact"], **manifest.tokens}
    if args.sequence_length is not None and args.sequence_length < 1:
        raise ConfigError(f"--sequence-length {args.sequence_length}: expected a whole number above 0; give one")
    vocabulary = read_vocabulary(args.vocabulary) if args.vocabulary else None
    wanted = Wanted(vocabulary, args.sequence_length, args.column)
    return _packed_counts(import_packed(args.source, args.output, args.format, wanted))


def _packed_counts(manifest: Manifest) -> dict[str, object]:
    tokens = {f"{modality} tokens": f"{count:,}" for modality, count in sorted(manifest.tokens.items())}
    return {"shards": f"{len(manifest.shards):,}", "rows": f"{manifest.num_rows:,}", **tokens}
