"""A dialogue as it is written: turns of words, with pictures and music described inline.

Source: AnyGPT section 4.2 and figure 7: ``[image: …]`` and ``[music: …]`` stand where the medium will be.

The text stages leave ``OUTPUT/dialogues/dialogues.parquet`` (:data:`DIALOGUES_NAME`), one row a dialogue, in the order of
the ids, columns :data:`DIALOGUE_SCHEMA`: ``dialogue_id`` (8 hex digits, never given twice), ``meta_topic``, ``topic``,
``requirement`` (a :class:`~synthesis.config.Requirement`), ``scenario`` and ``turns`` (list of ``role`` and ``text``; roles
are ``user`` and ``assistant``, in turn, the user first). :func:`read_dialogues` gives it back; what turns dialogues into
media reads it, takes a turn apart with :func:`split_turn`, and needs nothing else of the text stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DatasetError

DIALOGUES_FOLDER = "dialogues"
DIALOGUES_NAME = "dialogues.parquet"
USER, ASSISTANT = "user", "assistant"

DIALOGUE_SCHEMA = pa.schema(
    [
        pa.field("dialogue_id", pa.string(), nullable=False),
        pa.field("meta_topic", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("requirement", pa.string(), nullable=False),
        pa.field("scenario", pa.string(), nullable=False),
        pa.field(
            "turns",
            pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])),
            nullable=False,
        ),
    ]
)

_MEDIUM = re.compile(r"\[(image|music): ?([^\[\]]*)\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DialogueTurn:
    """What one side says, media described inline as ``[image: …]`` and ``[music: …]``."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns of user and assistant, and what they grew out of."""

    dialogue_id: str
    turns: tuple[DialogueTurn, ...]
    topic: str = ""
    meta_topic: str = ""
    requirement: str = ""
    scenario: str = ""


@dataclass(frozen=True, slots=True)
class Described:
    """A medium of a turn, still in words."""

    modality: Literal["image", "music"]
    description: str


def split_turn(text: str) -> tuple[str | Described, ...]:
    """Words and media of a turn, in order; runs of white space become one space, and empty words are left out."""
    parts: list[str | Described] = []
    end = 0
    for found in _MEDIUM.finditer(text):
        parts += [_squeezed(text[end : found.start()]), _described(found)]
        end = found.end()
    parts.append(_squeezed(text[end:]))
    return tuple(part for part in parts if part)


def described_media(text: str) -> tuple[Described, ...]:
    """The media of a turn, in order."""
    return tuple(part for part in split_turn(text) if isinstance(part, Described))


def spoken_words(text: str) -> str:
    """A turn without its media: what is said aloud."""
    return " ".join(part for part in split_turn(text) if isinstance(part, str))


def dialogues_table(dialogues: Iterable[Dialogue]) -> pa.Table:
    """Rows of :data:`DIALOGUE_SCHEMA`."""
    return pa.Table.from_pylist([asdict(dialogue) for dialogue in dialogues], schema=DIALOGUE_SCHEMA)


def dialogues_path(output: Path) -> Path:
    """Where the text stages leave the dialogues of an output."""
    return output / DIALOGUES_FOLDER / DIALOGUES_NAME


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """The dialogues of a Parquet file, in its order, a row group in memory at a time.

    Raises:
        DatasetError: there is no such file, or it has other columns.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: expected dialogues, found no file; run the text stages of anygpt-synthesize first")
    with pq.ParquetFile(path) as file:
        missing = sorted(set(DIALOGUE_SCHEMA.names) - set(file.schema_arrow.names))
        if missing:
            raise DatasetError(f"{path}: expected the column {missing[0]}, found {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(columns=DIALOGUE_SCHEMA.names):
            yield from map(_to_dialogue, batch.to_pylist())


def _to_dialogue(row: dict[str, Any]) -> Dialogue:
    turns = tuple(DialogueTurn(**turn) for turn in row.pop("turns"))
    return Dialogue(turns=turns, **row)


def _described(found: re.Match[str]) -> Described:
    return Described("image" if found[1].lower() == "image" else "music", _squeezed(found[2]))


def _squeezed(text: str) -> str:
    return " ".join(text.split())
