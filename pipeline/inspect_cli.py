"""``anygpt-inspect``: look into a dataset, or at what a codec does to media, as HTML.

For a dataset it opens what turns ids back into text, pictures and sound and hands it to the inspector: for a page of the
whole, of some rows, of one sample, or for a folder of pages. With ``--codec`` it measures a codec on media of corpora,
and writes the figures as JSON beside the page. The arguments are in :mod:`pipeline.inspect_arguments`.
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
from pipeline.inspect_arguments import CODECS, ITEMS, TEXT_TOKENIZER, parse_arguments
from pipeline.media import check_front_end
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.tokenizers.base import MediaDetokenizer
from pipeline.tokenizers.chosen_media import choose_media
from pipeline.tokenizers.codecs import open_detokenizer, open_tokenizer, served_modalities
from pipeline.tokenizers.compact import read_family_info
from shards.errors import AnyGPTError, ConfigError, CorpusError, FingerprintMismatch
from shards.inspector import Decoders, inspect_dataset, inspect_rows, inspect_sample, write_pages
from shards.manifest import Manifest, read_manifest
from shards.storage import is_remote, open_path
from shards.vocabulary import Modality
from shards.writer import commit_bytes

_MAX_S = 10.0


def inspect(argv: Sequence[str] | None = None) -> int:
    """``anygpt-inspect DATASET`` or ``anygpt-inspect --codec CODEC``: write a page, or a folder of pages."""
    args = parse_arguments(argv)
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
        count = items or section.get("heldout_items", ITEMS)
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
    folder = open_path(args.dataset)
    manifest = read_manifest(folder)
    text_tokenizer = open_text_tokenizer(manifest, args.text_tokenizer)
    media = open_detokenizers(manifest, args.codecs)
    decoders = Decoders(text_tokenizer.decode if text_tokenizer else None, media, args.max_media)
    lines = [f"{_write_dataset(folder, decoders, args)}: open it in a browser"]
    if manifest.vocabulary is not None and text_tokenizer is None:
        lines.append("text is shown as ids; give its tokenizer with --text-tokenizer FOLDER")
    if unseen := sorted(set(_modalities(manifest)) - set(media)):
        lines.append(f"{', '.join(unseen)}: shown as codes; give the codecs with --codecs FILE")
    return lines


def _write_dataset(folder: Path, decoders: Decoders, args: argparse.Namespace) -> Path:
    """Write what is asked for, and say where a browser begins."""
    # Nothing is written beside a dataset in an object store.
    beside = Path(folder.name) if is_remote(folder) else folder
    if args.pages == "all":
        output: Path = args.output or beside.with_name(beside.name + ".inspect")
        return write_pages(folder, output, decoders, per_page=args.per_page, max_pages=args.max_pages, rows=args.span)[
            0
        ]
    if args.sample is not None:
        samples = [open_path(text) for text in args.samples]
        page = inspect_sample(folder, args.sample, decoders, samples=samples, rows=args.count)
    elif args.span is not None:
        page = inspect_rows(folder, decoders, start=args.span.start, stop=args.span.stop)
    elif args.page is not None:
        first = (args.page - 1) * args.per_page
        page = inspect_rows(folder, decoders, start=first, stop=first + args.per_page)
    else:
        page = inspect_dataset(folder, decoders, rows=args.count)
    output = args.output or beside.with_name(beside.name + ".inspect.html")
    commit_bytes(output, page.encode())
    return output


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
