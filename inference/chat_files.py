"""A chat as a file: its ids, what they belong to, and where its media lie.

JSON, written atomically. Ids mean something in one vocabulary and one text only: a chat is not opened with a model of
another. Media are named relative to the file where they lie below it; those that are gone are decoded from the ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.chat_history import ChatForm, Exchange
from shards.errors import DatasetError, FingerprintMismatch
from shards.writer import commit_bytes

FORMAT = "anygpt-chat/1"


@dataclass(frozen=True, slots=True)
class Said:
    """An exchange and the files of its media, in the order of the ids; None where there is none."""

    exchange: Exchange
    files: tuple[Path | None, ...]


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What is in a file.

    Attributes:
        dropped: how many of the oldest exchanges the model is no longer shown.
    """

    said: tuple[Said, ...]
    dropped: int
    seed: int


def write_chat(path: Path, chat: SavedChat, form: ChatForm) -> None:
    """Write a chat; a file of that name is replaced, in one step."""
    facts = {
        "format": FORMAT,
        "vocabulary": form.vocabulary.fingerprint,
        "text_tokenizer": form.vocabulary.text_fingerprint,
        "head": form.head,
        "dropped": chat.dropped,
        "seed": chat.seed,
        "exchanges": [
            {
                "asked": one.exchange.asked,
                "answered": one.exchange.answered,
                "files": [_relative(file, path.parent) for file in one.files],
            }
            for one in chat.said
        ],
    }
    commit_bytes(path, (json.dumps(facts, ensure_ascii=False) + "\n").encode())


def read_chat(path: Path, form: ChatForm) -> SavedChat:
    """Read a chat that was had in this form.

    Raises:
        DatasetError: no such file, or none of a chat, or a damaged one.
        FingerprintMismatch: its ids belong to another vocabulary, text tokenizer or system message.
    """
    facts = _facts(path)
    for key, found in {
        "vocabulary": form.vocabulary.fingerprint,
        "text_tokenizer": form.vocabulary.text_fingerprint,
    }.items():
        if facts.get(key) != found:
            raise FingerprintMismatch(
                f"{path}: expected a chat with {key} {found}, which this model has, found {facts.get(key)!r}; "
                "open it with the model it was had with"
            )
    if facts.get("head") != list(form.head):
        raise FingerprintMismatch(
            f"{path}: expected a chat that begins with this system message, found another; "
            "set dialogue_preset and templates as they were"
        )
    try:
        said = tuple(_said(one, form, path) for one in facts["exchanges"])
        dropped, seed = int(facts["dropped"]), int(facts["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"a chat file that lacks {error}") from error
    if not 0 <= dropped <= len(said):
        raise _damaged(path, f"dropped = {dropped} of {len(said)} exchanges")
    return SavedChat(said, dropped, seed)


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: expected a saved chat, found none: {error.strerror}; mend the path") from error
    except ValueError as error:
        raise _damaged(path, "no JSON") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise _damaged(path, "something else")
    return facts


def _said(facts: Mapping[str, Any], form: ChatForm, path: Path) -> Said:
    asked, answered = (tuple(int(token_id) for token_id in facts[key]) for key in ("asked", "answered"))
    if not all(0 <= token_id < form.vocabulary.size for token_id in (*asked, *answered)):
        raise _damaged(path, "ids outside the vocabulary")
    if asked[:1] != (form.user_id,) or answered[-1:] != (form.end_id,):
        raise _damaged(path, "an exchange that does not begin with the user and end with the assistant")
    files = tuple(None if name is None else path.parent / name for name in facts["files"])
    return Said(Exchange(asked, answered), files)


def _relative(file: Path | None, folder: Path) -> str | None:
    if file is None:
        return None
    whole, base = file.absolute(), folder.absolute()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)


def _damaged(path: Path, found: str) -> DatasetError:
    return DatasetError(f"{path}: expected a chat that |save wrote ({FORMAT}), found {found}; give another file")
