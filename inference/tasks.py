"""What a model is asked, one task a line: ``SOURCE|TARGET|INPUT``.

Source: AnyGPT's base command line (anygpt-compat 5.1)::

    text|image|a red circle        image|text|photo.png
    text|music|a slow piano piece  music|text|clip.wav
    text|speech|hello there        speech|text|voice.wav
    text|speech|hello there|voice.wav                       in the voice of that recording
    text|text|what is a circle                              the user's own words, no instruction

The rule of the bars: the first two split, every other belongs to the input, so a text may hold bars. One exception: of
``text|speech`` the last field is a voice prompt if it is the path of a sound file that exists. What it is, its content says.

Or one JSON object a line, with ``task`` (such a line), or ``source``, ``target`` and ``input`` (no bar means anything), and
``voice_prompt``, ``instruction`` and ``id`` if wanted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.load import Config, validate
from inference.config import SPOKEN_OF
from inference.media_in import kind_of_file
from shards.errors import ConfigError
from shards.modality import Modality

_FORM = "SOURCE|TARGET|INPUT, e.g. text|image|a red circle"
_NAMES = tuple(str(modality) for modality in (Modality.TEXT, *SPOKEN_OF))
_SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm"})
_SHOWN_FAULTS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """One thing asked of a model.

    Attributes:
        text: what is asked about, if that is a text.
        path: what is asked about, if that is a file.
        voice: a sound file in whose voice speech is wanted.
        instruction: asked with; None: one drawn from the templates.
        name: of the user's choosing; unique in its file.
        where: file and line, for messages.
    """

    source: Modality
    target: Modality
    text: str | None = None
    path: Path | None = None
    voice: Path | None = None
    instruction: str | None = None
    name: str | None = None
    where: str = ""

    @property
    def direction(self) -> str:
        """``text_to_image`` and so on."""
        return f"{self.source}_to_{self.target}"

    @property
    def asked(self) -> str:
        """The text, or the path of the file."""
        return self.text if self.text is not None else str(self.path)


class TaskRow(Config):
    """One line of a ``.jsonl`` file of tasks."""

    task: str | None = None
    source: Modality | None = None
    target: Modality | None = None
    input: str | None = None
    voice_prompt: Path | None = None
    instruction: str | None = None
    id: str | None = None


def parse_task(line: str, *, where: str = "task") -> Task:
    """Read one line.

    Raises:
        ConfigError: naming ``where``, what is wrong with it and the form it should have.
    """
    fields = line.strip().split("|", 2)
    if len(fields) < 3:
        raise ConfigError(f"{where}: expected {_FORM}, found {_shown(line)}")
    source, target = (_modality(name, where) for name in fields[:2])
    asked, voice = fields[2].strip(), None
    if (source, target) == (Modality.TEXT, Modality.SPEECH):
        asked, voice = _split_voice(asked, where)
    return make_task(source, target, asked, voice=voice, where=where)


def make_task(
    source: Modality,
    target: Modality,
    asked: str,
    *,
    voice: Path | None = None,
    instruction: str | None = None,
    name: str | None = None,
    where: str = "task",
) -> Task:
    """A task from its fields.

    Raises:
        ConfigError: two media, nothing asked, a voice where no speech is wanted, or text that is no Unicode.
    """
    if Modality.TEXT not in (source, target):
        raise ConfigError(
            f"{where}: expected text on one side, found {source}|{target}; ask in two steps, by way of text"
        )
    if not asked.strip():
        wanted = "a text" if source is Modality.TEXT else f"the path of a file ({source})"
        raise ConfigError(f"{where}: expected {wanted} after {source}|{target}|, found nothing")
    if voice is not None and (source, target) != (Modality.TEXT, Modality.SPEECH):
        raise ConfigError(f"{where}: expected a voice prompt with text|speech only, found one with {source}|{target}")
    for text in (asked, instruction or "", name or ""):
        _check_unicode(text, where)
    if source is Modality.TEXT:
        return Task(source, target, asked, None, voice, instruction, name, where)
    return Task(source, target, None, Path(asked).expanduser(), voice, instruction, name, where)


def read_tasks(path: Path) -> list[Task]:
    """All tasks of a file: JSON lines if its name ends in ``.jsonl``, else lines; blank ones and ``# ...`` are skipped.

    Raises:
        ConfigError: no such file, or lines that are wrong; names the first ten.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: expected a file of tasks, found none: {error.strerror}; mend the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8, found {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    tasks: list[Task] = []
    faults: list[str] = []
    for where, line in _lines(path, content):
        try:
            tasks.append(_parse_json(line, where) if path.suffix == ".jsonl" else parse_task(line, where=where))
        except ConfigError as error:
            faults.append(str(error))
    faults += _repeated_names(tasks)
    if faults:
        more = f"\n... and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise ConfigError("\n".join(faults[:_SHOWN_FAULTS]) + more)
    if not tasks:
        raise ConfigError(f"{path}: expected tasks, found none; write one a line: {_FORM}")
    return tasks


def with_keys(tasks: Sequence[Task]) -> list[tuple[str, Task]]:
    """Each task with the key of its answer: its name, or a digest of what is asked.

    Of a file its content counts, not where it lies. What is asked twice has two keys, and is answered twice.
    """
    seen: Counter[str] = Counter()
    keyed: list[tuple[str, Task]] = []
    for task in tasks:
        key = task.name or _digest(task)
        seen[key] += 1
        keyed.append((key if seen[key] == 1 else f"{key}-{seen[key]}", task))
    return keyed


def _lines(path: Path, content: str) -> Iterator[tuple[str, str]]:
    # Not splitlines(), which also splits at characters that a text may hold.
    for number, line in enumerate(content.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield f"{path}, line {number}", line


def _parse_json(line: str, where: str) -> Task:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: expected a JSON object, found {_shown(line)}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {_shown(line)}")
    row = validate(data, TaskRow, where=where)
    if row.task is not None:
        if (row.source, row.target, row.input) != (None, None, None):
            raise ConfigError(f"{where}: expected task, or source with target and input, found both; keep one form")
        task = parse_task(row.task, where=where)
        if row.voice_prompt is not None and task.voice is not None:
            raise ConfigError(f"{where}: expected one voice prompt, found two; keep one")
    elif row.source is None or row.target is None or row.input is None:
        raise ConfigError(f"{where}: expected task, or source with target and input, found {sorted(data)}")
    else:
        source, target = (_modality(name, where) for name in (row.source, row.target))
        task = make_task(source, target, row.input, where=where)
    if row.id is not None and not row.id.strip():
        raise ConfigError(f"{where}: expected an id with something in it, found {row.id!r}; leave it out")
    voice = _checked_voice(row.voice_prompt, where) if row.voice_prompt is not None else task.voice
    checked = make_task(
        task.source, task.target, task.asked, voice=voice, instruction=row.instruction, name=row.id, where=where
    )
    return replace(checked, text=task.text, path=task.path)


def _modality(name: str, where: str) -> Modality:
    name = name.strip().lower()
    if name in _NAMES:
        return Modality(name)
    if name == Modality.AUDIO:
        raise ConfigError(
            f"{where}: expected one of {', '.join(_NAMES)}, found audio; no published model was trained on it, say speech "
            "or music"
        )
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the form is {_FORM}"
    raise ConfigError(f"{where}: expected one of {', '.join(_NAMES)}, found {_shown(name)}; {hint}")


def _split_voice(asked: str, where: str) -> tuple[str, Path | None]:
    text, bar, last = asked.rpartition("|")
    if not bar or not last.strip():
        return asked, None
    path = Path(last.strip()).expanduser()
    if _is_file(path):
        return (text.strip(), path) if kind_of_file(path) == "sound" else (asked, None)
    if path.suffix.lower() in _SOUND_SUFFIXES and not any(character.isspace() for character in last.strip()):
        raise ConfigError(
            f"{where}: expected a sound file as voice prompt, found no file {path}; mend the path (a text that ends like "
            "this can be given as JSON)"
        )
    return asked, None


def _checked_voice(path: Path, where: str) -> Path:
    path = path.expanduser()
    if kind_of_file(path) != "sound":
        raise ConfigError(f"{where}: expected a sound file as voice prompt, found none at {path}; mend the path")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # Longer than a path may be, or with a NUL in it: a text.
        return False


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: expected Unicode text, found half of a surrogate pair at character {error.start}; mend that text"
        ) from error


def _repeated_names(tasks: Sequence[Task]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"{task.where}: expected an id of its own, found {task.name!r} again, as in {first[task.name]}; rename one"
        for task in tasks
        if task.name is not None and first.setdefault(task.name, task.where) != task.where
    ]


def _digest(task: Task) -> str:
    parts = [task.direction, task.instruction or ""]
    parts.append(task.text if task.text is not None else _content(task.path))
    if task.voice is not None:
        parts.append(_content(task.voice))
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8"), digest_size=8).hexdigest()


def _content(path: Path | None) -> str:
    assert path is not None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        # Asked about all the same: that the file is not there is said when it is this task's turn.
        return str(path)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
