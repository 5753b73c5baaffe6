"""The arguments of ``anygpt-inspect``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

# Where `make pretrain` leaves them; used when they are there and belong to the dataset.
TEXT_TOKENIZER = Path("data/tokenizers/text")
CODECS = Path("data/tokenizers/compact.safetensors")
ITEMS = 48
"""Of each modality, when neither the caller nor the codec says how many to measure."""

_ROWS = 20


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for.

    Returns:
        The arguments as they are named; ``count`` is the number of rows to show, ``span`` the range of rows asked for with
        ``--row``, ``--rows A:B``, or None.
    """
    parser = argparse.ArgumentParser(
        prog="anygpt-inspect", description="Look into a dataset, or at what a codec does to media, as HTML."
    )
    parser.add_argument("dataset", nargs="?", help="folder of packed shards, or of sample shards, local or remote")
    parser.add_argument("--output", type=Path, metavar="PAGE", help="where to write it (DATASET.inspect.html)")
    _add_dataset(parser)
    _add_codec(parser)
    args = parser.parse_args(argv)
    _check_subject(parser, args)
    args.count, args.span = _ROWS, None
    if args.row is not None:
        args.span = range(args.row, args.row + 1)
    elif isinstance(args.rows, range):
        args.span = args.rows
    elif args.rows is not None:
        args.count = args.rows
    return args


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a dataset")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--rows",
        type=_count_or_range,
        metavar="N|A:B",
        help=f"N rows or samples, spread evenly ({_ROWS}); or those from A to B, without B",
    )
    choice.add_argument("--row", type=_not_negative, metavar="N", help="one row or sample by its number, from 0")
    choice.add_argument("--page", type=_positive, metavar="N", help="page N of all rows or samples, from 1")
    group.add_argument("--sample", metavar="ID", help="one sample, and every packed row that has it")
    group.add_argument(
        "--samples", nargs="+", default=[], metavar="FOLDER", help="for --sample in packed rows: datasets of samples"
    )
    group.add_argument("--pages", choices=["one", "all"], default="one", help="all: a folder of pages and an index")
    group.add_argument("--per-page", type=_positive, default=_ROWS, metavar="N", help=f"rows or samples ({_ROWS})")
    group.add_argument(
        "--max-pages", type=_positive, default=100, metavar="N", help="with more, rows are spread evenly over N (100)"
    )
    group.add_argument("--text-tokenizer", type=Path, metavar="FOLDER", help=f"text tokenizer ({TEXT_TOKENIZER})")
    group.add_argument(
        "--codecs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"media codecs, a compact file or a codec config; may be given several times ({CODECS})",
    )
    group.add_argument(
        "--max-media", type=_not_negative, default=40, metavar="N", help="decode so many of each modality a page (40)"
    )


def _add_codec(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a codec")
    group.add_argument("--codec", type=Path, metavar="CODEC", help="a compact file or a codec config to report on")
    group.add_argument(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        metavar="CONFIG",
        help="corpus config with media to measure on; may be given several times (what a compact file was measured on)",
    )
    group.add_argument(
        "--items", type=int, metavar="N", help=f"measure on so many of each modality (as its fit did, or {ITEMS})"
    )


def _check_subject(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if (args.dataset is None) == (args.codec is None):
        parser.error("expected either a DATASET or --codec CODEC; give one of them")
    if args.items is not None and args.items < 1:
        parser.error(f"--items {args.items}: expected 1 or more")
    if args.codec is None and (args.corpus or args.items is not None):
        parser.error("--corpus and --items go with --codec CODEC; leave them out for a dataset")
    if args.sample is not None and (args.row is not None or args.page is not None or isinstance(args.rows, range)):
        parser.error("--sample finds its rows itself; leave out --row, --rows A:B and --page")
    if args.samples and args.sample is None:
        parser.error("--samples says where to look for --sample ID; give the ID")
    if args.pages == "all" and (args.sample is not None or args.page is not None or isinstance(args.rows, int)):
        parser.error("--pages all shows all rows, or those of --rows A:B; leave out --sample, --page and --rows N")


def _count_or_range(text: str) -> int | range:
    start, colon, stop = text.partition(":")
    if not colon:
        return _positive(text)
    first, end = _not_negative(start or "0"), _not_negative(stop)
    if first >= end:
        raise argparse.ArgumentTypeError(f"{text}: expected A below B")
    return range(first, end)


def _positive(text: str) -> int:
    if _not_negative(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return int(text)


def _not_negative(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)
