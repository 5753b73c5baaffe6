"""``anygpt-inspect``: look into a dataset, or at what a codec does to media; one HTML page either way.

For a dataset it opens what turns ids back into text, pictures and sound and hands it to the inspector. With ``--codec``
it measures a codec on media of corpora, and writes the figures as JSON beside the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.load import load_config
from pipeline.codec_page import write_codec_page
from pipeline.codec_report import CodecReport, MeasuredOn, figures, measure_codec, open_codec
from pipeline.corpus import CorpusConfig
from pipeline.media import check_front_end
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.tokenizers.base import MediaDetokenizer
from pipeline.tokenizers.chosen_media import choose_media
from pipeline.tokenizers.codecs import open_detokenizer, open_tokenizer, served_modalities
from pipeline.tokenizers.compact import read_family_info
from shards.errors import AnyGPTError, ConfigError, CorpusError, FingerprintMismatch
from shards.inspector import Decoders, inspect_dataset
from shards.manifest import Manifest, read_manifest
from shards.vocabulary import Modality
from shards.writer import commit_bytes

# Where `make pretrain` leaves them; used when they are there and belong to the dataset.
TEXT_TOKENIZER = Path("data/tokenizers/text")
CODECS = Path("data/tokenizers/compact.safetensors")

_ITEMS = 48
_MAX_S = 10.0


def inspect(argv: Sequence[str] | None = None) -> int:
    """``anygpt-inspect DATASET`` or ``anygpt-inspect --codec CODEC``: write one page."""
    args = _parse(argv)
    try:
        lines = _inspect_dataset(args) if args.codec is None else _inspect_codec(args)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0


def measure_codecs(
    path: Path, corpora: Sequence[Path] = (), *, items: int | None = None
) -> tuple[list[CodecReport], list[str]]:
    """A report for each modality that a codec path serves.

    Args:
        corpora: corpus configs; none: the held-out corpora that a compact file was measured on, by its header.
        items: of each modality, at most; None: as many as the fit took, or 48.

    Returns:
        The reports, and a line for each modality of which these corpora have nothing.

    Raises:
        ConfigError: no corpora given and none recorded, or a sound config of another sample rate than the codec's.
        CorpusError: none of the modalities is found.
    """
    reports: list[CodecReport] = []
    absent: list[CorpusError] = []
    for modality in served_modalities(path):
        recorded = _recorded_fit(path)
        section: Mapping[str, Any] = recorded.get(str(modality), {})
        chosen_from = list(corpora) or [Path(one) for one in section.get("heldout", ())]
        if not chosen_from:
            raise ConfigError(
                f"{path}: expected corpora to measure {modality} on, found none recorded in it; "
                "give a corpus config with --corpus configs/corpora/NAME.toml"
            )
        configs = [load_config(one, CorpusConfig) for one in chosen_from]
        codec, back = open_codec(path, modality)
        for config in configs:
            check_front_end(config.media, {modality: codec})
        count = items or section.get("heldout_items", _ITEMS)
        longest = section.get("max_s", _MAX_S)
        try:
            chosen = choose_media(configs, modality, count, seed=recorded.get("seed", 0), max_s=longest)
        except CorpusError as error:
            absent.append(error)
            continue
        measured_on = MeasuredOn(tuple(one.as_posix() for one in chosen_from), chosen.num_undecodable)
        reports.append(measure_codec(codec, back, chosen.media, measured_on))
    if not reports and absent:
        raise absent[0]
    return reports, [f"left out: {error}" for error in absent]


def open_text_tokenizer(manifest: Manifest, folder: Path | None) -> TextTokenizer | None:
    """The text tokenizer of packed rows; None for sample shards, or when none is given and the usual one is another.

    Raises:
        FingerprintMismatch: the one given is not the one the rows were written with.
    """
    if manifest.vocabulary is None or (folder is None and not TEXT_TOKENIZER.is_dir()):
        return None
    tokenizer = load_text_tokenizer(folder or TEXT_TOKENIZER)
    if tokenizer.fingerprint == manifest.vocabulary.text_fingerprint:
        return tokenizer
    if folder is None:
        return None
    raise FingerprintMismatch(
        f"{folder}: text tokenizer {tokenizer.fingerprint}, the rows were written with "
        f"{manifest.vocabulary.text_fingerprint}; give the folder that anygpt-pack was given"
    )


def open_detokenizers(manifest: Manifest, paths: Sequence[Path] = ()) -> Mapping[str, MediaDetokenizer]:
    """A detokenizer for each modality of the dataset that one of the codecs serves; without a codec, none.

    Args:
        paths: compact files and codec configs; of several for one modality, the one whose fingerprint made the codes.

    Raises:
        FingerprintMismatch: those given for a modality are all other codecs than the one that made the codes.
    """
    found: dict[str, MediaDetokenizer] = {}
    given = list(paths) or ([CODECS] if CODECS.is_file() else [])
    served = {path: served_modalities(path) for path in given}
    for modality in map(Modality, _modalities(manifest)):
        fingerprints = {path: _fingerprint(path, modality) for path in given if modality in served[path]}
        expected = manifest.tokenizers.get(modality)
        right = [path for path, one in fingerprints.items() if expected in (None, one)]
        if right:
            found[modality] = open_detokenizer(right[0], modality)
        elif fingerprints and paths:
            named = ", ".join(f"{path}: {modality} codec {one}" for path, one in fingerprints.items())
            raise FingerprintMismatch(f"{named}; the codes were made by {expected}; give the file they were made with")
    return found


def _inspect_dataset(args: argparse.Namespace) -> list[str]:
    output: Path = args.output or args.dataset.with_name(args.dataset.name + ".inspect.html")
    manifest = read_manifest(args.dataset)
    text_tokenizer = open_text_tokenizer(manifest, args.text_tokenizer)
    media = open_detokenizers(manifest, args.codecs)
    decoders = Decoders(text_tokenizer.decode if text_tokenizer else None, media, args.max_media)
    commit_bytes(output, inspect_dataset(args.dataset, decoders, rows=args.rows).encode())
    lines = [f"{output}: open it in a browser"]
    if manifest.vocabulary is not None and text_tokenizer is None:
        lines.append("text is shown as ids; give its tokenizer with --text-tokenizer FOLDER")
    if unseen := sorted(set(_modalities(manifest)) - set(media)):
        lines.append(f"{', '.join(unseen)}: shown as codes; give the codecs with --codecs FILE")
    return lines


def _inspect_codec(args: argparse.Namespace) -> list[str]:
    # A config lies in a folder of the repository; what is measured does not belong there.
    beside: Path = args.codec if args.codec.suffix != ".toml" else Path(args.codec.name)
    output: Path = args.output or beside.with_suffix(".inspect.html")
    reports, left_out = measure_codecs(args.codec, args.corpus, items=args.items)
    numbers = {str(report.modality): figures(report) for report in reports}
    commit_bytes(output, write_codec_page(f"Codec {args.codec.name}", reports).encode())
    commit_bytes(output.with_suffix(".json"), (json.dumps(numbers, indent=1) + "\n").encode())
    return [f"{output}: open it in a browser; the figures are in {output.with_suffix('.json')}", *left_out]


def _recorded_fit(path: Path) -> Mapping[str, Any]:
    return {} if path.suffix == ".toml" else read_family_info(path).config


def _fingerprint(path: Path, modality: Modality) -> str:
    if path.suffix == ".toml":
        return open_tokenizer(path, modality).fingerprint
    return read_family_info(path).fingerprints[modality]


def _modalities(manifest: Manifest) -> list[str]:
    """Media that are, or may be, in the dataset."""
    media = [str(modality) for modality in Modality if modality != Modality.TEXT]
    known = {*manifest.tokens, *manifest.tokenizers}
    return [modality for modality in media if modality in known]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anygpt-inspect", description="Look into a dataset, or at what a codec does to media, as one HTML page."
    )
    parser.add_argument("dataset", type=Path, nargs="?", help="folder of sample shards or packed shards")
    parser.add_argument("--output", type=Path, metavar="PAGE", help="where to write it (DATASET.inspect.html)")
    shown = parser.add_argument_group("a dataset")
    shown.add_argument("--rows", type=int, default=20, metavar="N", help="rows or samples to show, spread evenly (20)")
    shown.add_argument("--text-tokenizer", type=Path, metavar="FOLDER", help=f"text tokenizer ({TEXT_TOKENIZER})")
    shown.add_argument(
        "--codecs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"media codecs, a compact file or a codec config; may be given several times ({CODECS})",
    )
    shown.add_argument("--max-media", type=int, default=40, metavar="N", help="decode so many of each modality (40)")
    measured = parser.add_argument_group("a codec")
    measured.add_argument("--codec", type=Path, metavar="CODEC", help="a compact file or a codec config to report on")
    measured.add_argument(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        metavar="CONFIG",
        help="corpus config with media to measure on; may be given several times (what a compact file was measured on)",
    )
    measured.add_argument(
        "--items", type=int, metavar="N", help=f"measure on so many of each modality (as its fit did, or {_ITEMS})"
    )
    args = parser.parse_args(argv)
    if (args.dataset is None) == (args.codec is None):
        parser.error("expected either a DATASET or --codec CODEC; give one of them")
    if args.items is not None and args.items < 1:
        parser.error(f"--items {args.items}: expected 1 or more")
    if args.codec is None and (args.corpus or args.items is not None):
        parser.error("--corpus and --items go with --codec CODEC; leave them out for a dataset")
    return args
