"""AnyInstruct: conversations in which pictures, music and speech are woven into the turns.

Source: AnyGPT section 4.2; layout of the fnlp/AnyInstruct card (the inner field names are an assumption).
Reads: ``metadata.jsonl`` and the files below ``images_224``, ``music`` and ``speech`` beside it.
Yields: one sample per conversation, with the slots ``user`` and ``assistant`` in turn: texts, and media where their
placeholders (``<image1>``, ``<music1>``) stand. A sample's id is its line. A question at the end that nobody answered is
kept (templates leave it out); a system message in front (role ``SYSTEM``, in no published file) becomes the slot ``system``.

Speech (``options.speech``): ``text`` takes what was said as text. ``speech`` is AnyGPT's chain of a spoken conversation: the
user speaks (slot ``user``), what was understood is a ``transcript``, and the reply is text, media and then speech.
``both`` has the user's words beside the user's voice, and no transcript.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import Line, count_lines, json_record, read_lines
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawSegment, RawText, Source
from shards.errors import SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "anyinstruct"
SYSTEM, USER, ASSISTANT, TRANSCRIPT = "system", "user", "assistant", "transcript"
ROLES = {"USER": USER, "AnyGPT": ASSISTANT, "SYSTEM": SYSTEM}
_PLACEHOLDER = re.compile(r"<(image|music)([0-9]+)>")
_FILES = {"image": ("images", "image_file", "images_224"), "music": ("music", "music_file", "music")}


class Options(CorpusOptions):
    """Whether spoken turns are read as text, as speech, or as both."""

    speech: Literal["text", "speech", "both"] = "text"


@dataclass(frozen=True, slots=True)
class _Turn:
    """One message, its media loaded."""

    role: str
    parts: tuple[RawSegment, ...]
    speech: RawMedia | None

    @property
    def words(self) -> str:
        """Its text without media."""
        return " ".join(part.text for part in self.parts if isinstance(part, RawText))


def sources(root: Path, options: Options) -> list[Source]:
    """Every file of conversations, in the order of the names."""
    return [Source(path, count_lines(path)) for path in find_files(root, ["metadata.jsonl"], corpus=CORPUS)]


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Conversations ``[start, stop)`` of a file."""
    return read_lines(root, source, options, _sample, corpus=CORPUS, start=start, stop=stop)


def _sample(root: Path, path: Path, line: Line, options: Options, sample_id: str) -> RawSample:
    record = json_record(line)
    chat = record.get("chat")
    if not isinstance(chat, list) or not chat:
        raise SampleError("dialogue_empty", f"expected turns in chat, found {chat!r}")
    turns = [_turn(root, path.parent, message, options) for message in chat]
    opening = turns[:1] if turns[0].role == SYSTEM else []
    turns = turns[len(opening) :]
    roles = [turn.role for turn in turns]
    if len(roles) < 2 or roles != ([USER, ASSISTANT] * len(roles))[: len(roles)]:
        raise SampleError("turns_out_of_order", f"expected user and assistant in turn, found {roles}")
    segments: list[RawSegment] = [part for turn in opening for part in turn.parts]
    for user, reply in zip(turns[::2], turns[1::2], strict=False):
        segments += _exchange(user, reply, options)
    if len(turns) % 2:
        last = turns[-1]
        segments += [*([last.speech] if last.speech is not None else []), *last.parts]
    provenance = Provenance(relative_name(path, root), str(record.get("id", "")), line.offset)
    return RawSample(sample_id, CORPUS, options.split, tuple(segments), provenance)


def _exchange(user: _Turn, reply: _Turn, options: Options) -> list[RawSegment]:
    """One question and its answer."""
    answer = [*reply.parts, *([reply.speech] if reply.speech is not None else [])]
    if user.speech is None or options.speech == "both":
        return [*([user.speech] if user.speech is not None else []), *user.parts, *answer]
    media = [part for part in user.parts if isinstance(part, RawMedia)]
    heard = [RawText(TRANSCRIPT, user.words)] if user.words else []
    return [user.speech, *media, *heard, *answer]


def _turn(root: Path, folder: Path, message: Any, options: Options) -> _Turn:
    if not isinstance(message, dict):
        raise SampleError("record_malformed", f"expected a message object in chat, found {type(message).__name__}")
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise SampleError("role_unknown", f"expected a role of {' '.join(ROLES)}, found {message.get('role')!r}")
    text = clean_text(message.get("message"), what="message")
    parts = _parts(root, folder, role, text, _media(message))
    speech = None
    if options.speech != "text" and message.get("speech") is not None:
        speech = RawMedia(role, Modality.SPEECH, read_media(folder / "speech", message["speech"], root=root))
    return _Turn(role, parts, speech)


def _media(message: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Placeholder -> folder and file name."""
    files: dict[str, tuple[str, Any]] = {}
    for kind, (key, file_key, folder) in _FILES.items():
        entries = message.get(key) or []
        if not isinstance(entries, list):
            raise SampleError("record_malformed", f"expected a list of {key}, found {type(entries).__name__}")
        for index, entry in enumerate(entries, start=1):
            files[f"<{kind}{index}>"] = (folder, entry.get(file_key) if isinstance(entry, dict) else None)
    return files


def _parts(root: Path, folder: Path, role: str, text: str, files: dict[str, tuple[str, Any]]) -> tuple[RawSegment, ...]:
    """Text and media in the order in which a message has them; every placeholder and every file exactly once."""
    placeholders = [match.group() for match in _PLACEHOLDER.finditer(text)]
    if sorted(placeholders) != sorted(files):
        raise SampleError(
            "placeholder_unmatched", f"expected one placeholder for each of {sorted(files)}, found {placeholders}"
        )
    parts: list[RawSegment] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += _text_part(role, text[position : match.start()])
        subfolder, name = files[match.group()]
        modality = Modality.IMAGE if match[1] == "image" else Modality.MUSIC
        parts.append(RawMedia(role, modality, read_media(folder / subfolder, name, root=root)))
        position = match.end()
    return (*parts, *_text_part(role, text[position:]))


def _text_part(role: str, text: str) -> list[RawSegment]:
    return [RawText(role, text.strip())] if text.strip() else []
