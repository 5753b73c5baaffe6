"""Speech-only dialogues out of text instruction sets, as the published ``speech_conv`` has them.

Source: AnyGPT section 4.2. Reads: files of one JSON object a line, plain or gzip, each of one of these forms:

* ``{"instruction", "input", "output"}``, as Alpaca has it; ``input`` may be missing or empty;
* ``{"conversations": [{"from": "human" | "gpt", "value"}]}``, as ShareGPT has it;
* ``{"messages": [{"role": "user" | "assistant", "content"}]}``.

What cannot be said aloud is filtered (:mod:`synthesis.spoken_rules`), what is no dialogue is rejected. A question at the end
that nobody answered is dropped, and so is what comes after ``max_rounds``. The rest goes where dialogues go
(:mod:`synthesis.media_job`): the same layout, ledger, rejects and card, each side with one voice.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from pydantic import Field

from configs.load import Config
from pipeline.sample_corpora.draws import stable_hex
from pipeline.samples import Filtered, Reject
from shards.errors import ConfigError, SampleError
from shards.records import Provenance
from shards.writer import file_sha256
from synthesis.dialogues import ASSISTANT, USER, Dialogue, DialogueTurn
from synthesis.media_config import CorpusMediaConfig
from synthesis.media_job import run_media
from synthesis.media_unit import CORPUS, Input, MediaTask
from synthesis.spoken_rules import RULES_VERSION, ReadabilityConfig, unspeakable

_MAX_LINE_BYTES = 8 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SIDES = {
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
}
_ID_DIGITS = 16


class SpeakConfig(Config):
    """Instruction sets into a corpus of speech."""

    output: Path
    files: tuple[Path, ...] = Field(min_length=1)
    max_rounds: int = Field(default=3, ge=1)
    """Of a conversation, the first so many."""
    readability: ReadabilityConfig = ReadabilityConfig()
    media: CorpusMediaConfig = CorpusMediaConfig()
    """Who speaks, and how the work runs; everything is spoken, whatever ``spoken_share`` says."""


@dataclass(frozen=True, slots=True)
class InstructionReader:
    """Reads dialogues out of lines; goes to the workers.

    Attributes:
        names: of the files, as ids, rejects and the ledger have them; no two are equal.
    """

    config: SpeakConfig
    names: Mapping[Path, str]

    def __call__(self, path: Path, start: int, stop: int, offset: int) -> Iterator[Input]:
        """Lines ``[start, stop)`` of a file, blank ones not counted; ``offset`` is the first one's byte."""
        name = self.names[path]
        with _opened(path) as file:
            file.seek(offset)
            for place, (begin, line) in zip(range(start, stop), _records(file), strict=False):
                dialogue_id = stable_hex(name, place, digits=_ID_DIGITS)
                provenance = Provenance(name, f"line {place}", offset + begin)
                try:
                    turns = read_turns(line)[: 2 * self.config.max_rounds]
                except SampleError as error:
                    message = str(error).removeprefix(f"{error.reason}: ")
                    yield Reject(dialogue_id, CORPUS, error.reason, message, provenance)
                    continue
                found = unspeakable([turn.text for turn in turns], self.config.readability)
                if found is not None:
                    yield Filtered(dialogue_id, CORPUS, *found, provenance)
                    continue
                said = tuple(DialogueTurn(turn.role, " ".join(turn.text.split())) for turn in turns)
                yield Dialogue(dialogue_id, said, scenario="spoken instructions")


def speak_instructions(config: SpeakConfig) -> dict[str, Any]:
    """Make the corpus; the same call again goes on where it stopped.

    Returns:
        The report, as :func:`synthesis.media_job.make_media` gives it.

    Raises:
        ConfigError: a file is missing, or two have one name.
    """
    names = _names(config.files)
    every = config.media.unit_dialogues
    found = [_index(path, every) for path in config.files]
    origin = {
        "rules_version": RULES_VERSION,
        "files": [[names[path], file_sha256(path)] for path in config.files],
        **config.model_dump(mode="json", include={"readability", "max_rounds"}),
    }
    media = config.media.model_copy(update={"spoken_share": 1.0, "spoken_rounds": 0})
    reader = InstructionReader(config, names)
    task = MediaTask(media, config.output, config.files, tuple(names.values()), reader)
    return run_media(task, [count for count, _ in found], origin=origin, offsets=[offsets for _, offsets in found])


def read_turns(line: bytes) -> list[DialogueTurn]:
    """The turns of a record, user and assistant in turn, the last one an answer.

    Raises:
        SampleError: ``record_malformed``, ``record_unknown``, ``role_unknown``, ``turn_empty``, ``turns_out_of_order``.
    """
    if len(line) >= _MAX_LINE_BYTES:
        raise SampleError("line_too_long", f"expected at most {_MAX_LINE_BYTES} bytes")
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SampleError("record_malformed", f"expected a JSON object, found {line[:60]!r}") from error
    if not isinstance(record, dict):
        raise SampleError("record_malformed", f"expected a JSON object, found {type(record).__name__}")
    turns = list(_turns(cast("dict[str, Any]", record)))
    turns = turns[: len(turns) - len(turns) % 2]
    if not turns or [turn.role for turn in turns] != [USER, ASSISTANT] * (len(turns) // 2):
        raise SampleError("turns_out_of_order", f"expected user and assistant in turn, found {[t.role for t in turns]}")
    if not all(turn.text.strip() for turn in turns):
        raise SampleError("turn_empty", "expected words in every turn, found none")
    return turns


def _turns(record: dict[str, Any]) -> Iterator[DialogueTurn]:
    if "instruction" in record and "output" in record:
        given = [_text(record["instruction"])]
        if record.get("input"):
            given.append(_text(record["input"]))
        yield DialogueTurn(USER, "\n".join(given))
        yield DialogueTurn(ASSISTANT, _text(record["output"]))
        return
    for key, role_key, text_key in (("conversations", "from", "value"), ("messages", "role", "content")):
        if isinstance(record.get(key), list):
            for message in record[key]:
                if not isinstance(message, dict):
                    raise SampleError("record_malformed", f"expected an object in {key}, found {message!r:.60}")
                role = _SIDES.get(str(message.get(role_key)).lower())
                if role is None:
                    raise SampleError(
                        "role_unknown", f"expected user or assistant, found {message.get(role_key)!r:.60}"
                    )
                yield DialogueTurn(cast(Any, role), _text(message.get(text_key)))
            return
    raise SampleError("record_unknown", f"expected instruction or conversations, found {', '.join(record)[:60]}")


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise SampleError("record_malformed", f"expected text, found {type(found).__name__}")
    return found


def _names(files: tuple[Path, ...]) -> dict[Path, str]:
    """A name for every file that does not depend on where the folder lies."""
    names: dict[Path, str] = {}
    for path in files:
        if not path.is_file():
            raise ConfigError(f"files: expected a file of instructions, found none at {path}; correct the path")
        if path.name in names.values():
            raise ConfigError(f"files: expected names that differ, found {path.name} twice; rename one")
        names[path] = path.name
    return names


def _index(path: Path, every: int) -> tuple[int, list[int]]:
    """Number of records of a file, and where each ``every``-th begins."""
    offsets: list[int] = []
    count = 0
    with _opened(path) as file:
        for begin, _ in _records(file):
            if count % every == 0:
                offsets.append(begin)
            count += 1
    return count, offsets


def _opened(path: Path) -> IO[bytes]:
    """A plain or a gzip file, told by its first bytes."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return cast("IO[bytes]", gzip.open(path, "rb") if is_gzip else path.open("rb"))


def _records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, and where each begins, from where the file is; a line that is too long ends early."""
    position = 0
    while line := file.readline(_MAX_LINE_BYTES):
        begin, position = position, position + len(line)
        while len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n") and (rest := file.readline(_MAX_LINE_BYTES)):
            position += len(rest)
            if rest.endswith(b"\n"):
                break
        content = line.removeprefix(_BYTE_ORDER_MARK).strip() if len(line) < _MAX_LINE_BYTES else line
        if content:
            yield begin, content
