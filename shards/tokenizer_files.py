"""Tokenizer files of a Hugging Face folder: their identity, the tokens added to them, and whether these fit a vocabulary.

Ids of a published checkpoint are never assumed (anygpt-compat 1.3): they are what its ``added_tokens.json`` says, or the
newer places transformers writes them to.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from shards.errors import DatasetError
from shards.vocabulary import Vocabulary
from shards.writer import file_sha256

VOCABULARY_NAME = "vocabulary.json"
"""Beside the weights and the tokenizer of a model that was trained here."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


def folder_fingerprint(folder: Path) -> str:
    """16 hex digits over the names and bytes of a folder's tokenizer files."""
    files = {name: file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer that can be opened."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_added_tokens(folder: Path) -> dict[str, int]:
    """Token string -> id, from ``added_tokens.json``, else ``tokenizer.json``, else ``tokenizer_config.json``.

    Raises:
        DatasetError: a file that is not JSON.
    """
    if data := read_json(folder / "added_tokens.json"):
        return {str(token): int(token_id) for token, token_id in data.items()}
    if listed := read_json(folder / "tokenizer.json").get("added_tokens"):
        return {str(token["content"]): int(token["id"]) for token in listed}
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    return {str(token["content"]): int(token_id) for token_id, token in decoder.items()}


def added_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Every string that stands for an id beyond the text: markers, code tokens, markers of media; in the order of ids."""
    tokens = dict(vocabulary.markers)
    for block in vocabulary.blocks.values():
        tokens |= {f"<{block.prefix}{index}>": block.first_id + index for index in range(block.num_codes)}
        tokens |= {block.start: block.start_id, block.end: block.end_id}
    return dict(sorted(tokens.items(), key=lambda item: item[1]))


def extends(vocabulary: Vocabulary, earlier: Vocabulary) -> bool:
    """Whether every id of ``earlier`` means the same in ``vocabulary``, and what is new stands behind: rows can be added.

    The same vocabulary extends itself; names may differ.
    """
    same = ("text_size", "bos_id", "eos_id", "pad_id", "text_fingerprint")
    if any(getattr(vocabulary, name) != getattr(earlier, name) for name in same):
        return False
    return list(added_tokens(vocabulary).items())[: earlier.size - earlier.text_size] == list(
        added_tokens(earlier).items()
    )


def check_added_tokens(folder: Path, vocabulary: Vocabulary) -> bool:
    """Compare a folder's own added tokens with a vocabulary, which may have further ones behind them.

    Returns:
        Whether the folder's tokenizer knows of the vocabulary. False for a text-only one, which has no added tokens.

    Raises:
        DatasetError: it has some under other ids, or some that the vocabulary lacks.
    """
    own = {token: token_id for token, token_id in read_added_tokens(folder).items() if token_id >= vocabulary.text_size}
    found = sorted(own.items(), key=lambda item: item[1])
    expected = list(added_tokens(vocabulary).items())
    if found == expected[: len(found)]:
        return bool(found)
    place = next(n for n, pair in enumerate(found) if n >= len(expected) or pair != expected[n])
    there = f"{found[place][0]!r} as id {found[place][1]}"
    wanted = f"{expected[place][0]!r} as id {expected[place][1]}" if place < len(expected) else "no further token"
    raise DatasetError(
        f"{folder}: its tokenizer and vocabulary {vocabulary.name} of the data disagree: expected {wanted}, found {there}; "
        "pack the data with checkpoint = this folder"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one.

    Raises:
        DatasetError: a file that is not JSON.
    """
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise DatasetError(f"{path}: expected JSON, found {error}; copy the checkpoint's folder again") from error
