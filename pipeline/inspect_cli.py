"""``anygpt-inspect``: open what turns ids back into text, pictures and sound, and hand it to the inspector."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.tokenizers.base import MediaDetokenizer
from pipeline.tokenizers.compact import load_codec, read_family_info
from shards.errors import AnyGPTError, FingerprintMismatch
from shards.inspector import Decoders, inspect_dataset
from shards.manifest import Manifest, read_manifest
from shards.vocabulary import Modality
from shards.writer import commit_bytes

# Where `make pretrain` leaves them; used when they are there and belong to the dataset.
TEXT_TOKENIZER = Path("data/tokenizers/text")
CODECS = Path("data/tokenizers/compact.safetensors")


def inspect(argv: Sequence[str] | None = None) -> int:
    """``anygpt-inspect DATASET``: write one page that shows rows, or samples, of a dataset."""
    args = _parse(argv)
    output: Path = args.output or args.dataset.with_name(args.dataset.name + ".inspect.html")
    try:
        manifest = read_manifest(args.dataset)
        text_tokenizer = open_text_tokenizer(manifest, args.text_tokenizer)
        media = open_detokenizers(manifest, args.codecs)
        decoders = Decoders(text_tokenizer.decode if text_tokenizer else None, media, args.max_media)
        commit_bytes(output, inspect_dataset(args.dataset, decoders, rows=args.rows).encode())
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{output}: open it in a browser")
    if manifest.vocabulary is not None and text_tokenizer is None:
        print("text is shown as ids; give its tokenizer with --text-tokenizer FOLDER")
    if unseen := sorted(set(_modalities(manifest)) - set(media)):
        print(f"{', '.join(unseen)}: shown as codes; give the codecs with --codecs FILE")
    return 0


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


def open_detokenizers(manifest: Manifest, path: Path | None) -> Mapping[str, MediaDetokenizer]:
    """A detokenizer for each modality of the dataset that the codec file serves; without a file, none.

    Raises:
        FingerprintMismatch: the file given holds another codec than the one that made the codes.
    """
    found: dict[str, MediaDetokenizer] = {}
    if path is None and not CODECS.is_file():
        return found
    served = read_family_info(path or CODECS).fingerprints
    for modality in _modalities(manifest):
        if modality not in served:
            continue
        codec = load_codec(path or CODECS, Modality(modality))
        expected = manifest.tokenizers.get(modality, codec.fingerprint)
        if codec.fingerprint == expected:
            found[modality] = codec
        elif path is not None:
            raise FingerprintMismatch(
                f"{path}: {modality} codec {codec.fingerprint}, the codes were made by {expected}; "
                "give the file they were made with"
            )
    return found


def _modalities(manifest: Manifest) -> list[str]:
    """Media that are, or may be, in the dataset."""
    media = [str(modality) for modality in Modality if modality != Modality.TEXT]
    known = {*manifest.tokens, *manifest.tokenizers}
    return [modality for modality in media if modality in known]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="anygpt-inspect", description="Look into a dataset, as one HTML page.")
    parser.add_argument("dataset", type=Path, help="folder of sample shards or packed shards")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="rows or samples to show, spread evenly (20)")
    parser.add_argument("--output", type=Path, metavar="PAGE", help="where to write it (DATASET.inspect.html)")
    parser.add_argument("--text-tokenizer", type=Path, metavar="FOLDER", help=f"text tokenizer ({TEXT_TOKENIZER})")
    parser.add_argument("--codecs", type=Path, metavar="FILE", help=f"media codecs ({CODECS})")
    parser.add_argument("--max-media", type=int, default=40, metavar="N", help="decode so many of each modality (40)")
    return parser.parse_args(argv)
