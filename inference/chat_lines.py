"""Lines that are typed into a chat.

Source: AnyGPT's chat command line (anygpt-compat 5.1)::

    interleaved|instruction|to_modality|voice_prompt|images|speech|music
    interleaved|instruction|to_modality|images|voice_prompt|speech|music     as its README has it
    |clear  |save FILE  |load FILE  |transcript FILE  |help  quit

Images, speech and music are separated by commas; fields at the end may be left out. Whether the voice or the images come
first is told by what the files are. In place of ``interleaved`` may stand a task of the dialogue template.

Any other line is a sentence, in which paths of files stand for what they hold: ``what is in "my cat.png"?``. Spaces in a
path are quoted or escaped. A sound is taken for speech unless the path begins with ``music:``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.chat_messages import FilePart, TextPart, UserMessage
from inference.media_in import kind_of_file
from shards.errors import ConfigError
from shards.modality import Modality

INTERLEAVED = "interleaved"
COMMANDS = {
    "clear": "|clear              forget what was said",
    "save": "|save FILE          write the chat to a file",
    "load": "|load FILE          go on with a saved chat",
    "transcript": "|transcript FILE    write the chat as a page with its pictures and sounds",
    "help": "|help               show this",
    "quit": "quit                leave",
}
_WITH_FILE = ("save", "load", "transcript")
_FIELDS = 7
# A word that is meant as a file, so that a slip of the pen is not sent to the model as words.
_MEDIA_NAME = re.compile(r"\S\.(png|jpe?g|webp|gif|bmp|tiff?|wav|flac|mp3|ogg|opus|m4a)$", re.IGNORECASE)
_TAGS = {f"{modality}:": modality for modality in (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)}
_PIECE = re.compile(r"""(?<!\S)((?:image:|speech:|music:)?(?:"[^"]+"|'[^']+'|(?:\\.|[^\s\\])+))""")
_AFTER_PATH = ".,;:!?)\"'"


@dataclass(frozen=True, slots=True)
class Command:
    """One of :data:`COMMANDS`, and the file it names."""

    name: str
    file: Path | None = None


def read_line(line: str, *, tasks: Collection[str] = ()) -> Command | UserMessage | None:
    """What a line says; None for an empty one.

    Args:
        tasks: names of the dialogue template's tasks.

    Raises:
        ConfigError: an unknown command, a field too many, or a file that is not there or not what its field holds.
    """
    line = line.strip()
    if not line:
        return None
    first, bar, _ = line.partition("|")
    first = first.strip()
    if (not first and bar) or line.lower() in ("quit", "exit"):
        return _command(line.removeprefix("|").strip())
    if bar and (kind := _kind_of_line(first, (INTERLEAVED, *tasks))) is not None:
        return _fields(line, task="" if kind == INTERLEAVED else kind)
    if bar and first in list(Modality) and line.split("|")[1].strip() in list(Modality):
        raise ConfigError(f"{line!r}: expected a line of a chat, found a task; anygpt-generate does tasks")
    return UserMessage(sentence_parts(line))


def sentence_parts(line: str) -> tuple[TextPart | FilePart, ...]:
    """The words of a sentence and the files named in it, in order.

    Raises:
        ConfigError: a word that looks like the path of a medium, where none is.
    """
    parts: list[TextPart | FilePart] = []
    begin = position = 0
    while found := _PIECE.search(line, position):
        file = _file_in(found[1])
        if file is None:
            # What follows a quote that is no path may still be one.
            position = found.start(1) + 1 if found[1][0] in "\"'" else found.end(1)
            continue
        part, length = file
        parts += [TextPart(text)] if (text := line[begin : found.start(1)].strip()) else []
        parts.append(part)
        begin = position = found.start(1) + length
    return (*parts, TextPart(text)) if (text := line[begin:].strip()) else tuple(parts)


def _command(text: str) -> Command:
    name, _, argument = text.partition(" ")
    name, argument = name.lower(), argument.strip().strip("\"'")
    name = "quit" if name == "exit" else name
    if name not in COMMANDS:
        known = ", ".join(f"|{known}" for known in COMMANDS)
        raise ConfigError(f"|{name}: expected a command of {known}, found none of them; |help explains them")
    if (name in _WITH_FILE) != bool(argument):
        raise ConfigError(f"|{text}: expected {COMMANDS[name].partition('  ')[0]}; correct the line")
    return Command(name, Path(argument).expanduser() if argument else None)


def _kind_of_line(first: str, kinds: Sequence[str]) -> str | None:
    """Which of the kinds a first field means, however it is written; None: the line is a sentence with bars in it."""
    known = {kind.lower(): kind for kind in kinds}
    if first.lower() in known:
        return known[first.lower()]
    if near := difflib.get_close_matches(first.lower(), known, n=1, cutoff=0.8):
        raise ConfigError(
            f"{first!r}: expected {known[near[0]]!r} before the first bar, found a word much like it; correct it"
        )
    return None


def _fields(line: str, *, task: str) -> UserMessage:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) > _FIELDS:
        raise ConfigError(
            f"line: expected at most {_FIELDS} fields, found {len(fields)}: "
            f"{INTERLEAVED}|instruction|to_modality|voice_prompt|images|speech|music; leave bars out of the instruction"
        )
    _, instruction, wanted, one, other, speech, music = fields + [""] * (_FIELDS - len(fields))
    voice, images = _voice_and_images(one, other)
    # Media first, pictures, music, speech, then the words: as the published model was told (anygpt-compat 5.1).
    parts: list[TextPart | FilePart] = [FilePart(path, Modality.IMAGE) for path in images]
    for field, modality in ((music, Modality.MUSIC), (speech, Modality.SPEECH)):
        parts += [FilePart(_checked(path, "sound", str(modality)), modality) for path in _paths(field)]
    if instruction:
        parts.append(TextPart(instruction))
    return UserMessage(tuple(parts), _modality(wanted), voice, task)


def _voice_and_images(one: str, other: str) -> tuple[Path | None, list[Path]]:
    """Fields 4 and 5: the code has the voice first, the README the images; a picture is no voice."""
    first, second = _paths(one), _paths(other)
    readme_order = any(kind_of_file(path) == "picture" for path in first) or (
        not first and any(kind_of_file(path) == "sound" for path in second)
    )
    voices, images = (second, first) if readme_order else (first, second)
    if len(voices) > 1:
        raise ConfigError(f"voice_prompt: expected one sound, found {len(voices)}; a model speaks with one voice")
    images = [_checked(path, "picture", "images") for path in images]
    return (_checked(voices[0], "sound", "voice_prompt") if voices else None), images


def _paths(field: str) -> list[Path]:
    """Paths separated by commas; a path that has a comma in it is one if it is there."""
    if field and Path(field).expanduser().is_file():
        return [Path(field).expanduser()]
    return [Path(name.strip()).expanduser() for name in field.split(",") if name.strip()]


def _checked(path: Path, kind: str, field: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"{field}: expected the path of a {kind}, found no file {str(path)!r}; mend the path")
    if (found := kind_of_file(path)) != kind:
        raise ConfigError(f"{field}: expected a {kind}, found {found or 'neither a picture nor a sound'} in {path}")
    return path


def _modality(text: str) -> Modality | None:
    """What the answer must hold; nothing, ``auto`` and ``interleaved`` leave it to the model."""
    known = {str(modality): modality for modality in (Modality.TEXT, *_TAGS.values())}
    if text.lower() in ("", "auto", INTERLEAVED):
        return None
    if text.lower() not in known:
        raise ConfigError(f"to_modality: expected one of {', '.join(known)} or nothing, found {text!r}; correct it")
    return known[text.lower()]


def _file_in(piece: str) -> tuple[FilePart, int] | None:
    """The medium a piece of a sentence names, and how many characters name it; None if it is words."""
    tag = next((tag for tag in _TAGS if piece.startswith(tag)), "")
    name = piece[len(tag) :]
    quoted = len(name) > 1 and name[0] in "\"'" and name[-1] == name[0]
    candidates: Sequence[str] = [name] if quoted else [name[:end] for end in _ends(name)]
    for candidate in candidates:
        path = _path_of(candidate[1:-1] if quoted else re.sub(r"\\(.)", r"\1", candidate))
        if path is None:
            continue
        kind = kind_of_file(path)
        meant = bool(tag) or bool(_MEDIA_NAME.search(str(path)))
        if kind is None and not meant:
            continue
        modality = _TAGS.get(tag) or (Modality.SPEECH if kind == "sound" else Modality.IMAGE)
        if kind is None or (kind == "sound") != modality.is_sound:
            found = kind or "neither a picture nor a sound"
            raise ConfigError(f"{path}: expected {'a sound' if modality.is_sound else 'a picture'}, found {found}")
        return FilePart(path, modality), len(tag) + len(candidate)
    bare = name[1:-1] if quoted else name.rstrip(_AFTER_PATH)
    if (tag and bare) or _MEDIA_NAME.search(bare):
        raise ConfigError(f"{bare!r}: expected the path of a picture or a sound, found no file there; mend the path")
    return None


def _ends(name: str) -> list[int]:
    """Where a path in a sentence may end: at the next space, or before the signs that stand there."""
    least = len(name.rstrip(_AFTER_PATH))
    return list(range(len(name), least - 1, -1)) if least else []


def _path_of(text: str) -> Path | None:
    try:
        path = Path(text.removeprefix("file://")).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None
