"""What the page and its server say to one another: a message comes as JSON, its answer goes as JSON lines.

A message::

    {"text": "what is it?", "files": [{"id": "...", "as": "image" | "speech" | "music" | "voice"}], "to": "auto" | ...}

The lines of an answer::

    {"kind": "waiting", "before": 1}                 so many people are before this one; 0: it is being written
    {"kind": "text", "text": "...", "heard": false}  more words; heard: they repeat what was said aloud
    {"kind": "medium", "modality": "image", "url": "/media/..."}
    {"kind": "done", "notices": ["..."]}
    {"kind": "error", "message": "..."}              it broke off and is forgotten
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from configs.load import Config
from inference.chat_messages import FilePart, Finished, MediaReady, TextDelta, TextPart, UserMessage
from inference.web_queue import Waiting
from inference.web_uploads import Refused, Upload
from shards.modality import Modality

_VOICE = "voice"


class _AskedFile(Config):
    id: str
    use: Literal["image", "speech", "music", "voice"] = Field(alias="as")


class _Asked(Config):
    text: str = Field(default="", max_length=20_000)
    files: tuple[_AskedFile, ...] = ()
    to: str = "auto"


def read_message(body: str, uploads: Mapping[str, Upload], modalities: Collection[Modality]) -> UserMessage:
    """A message of the page: its files first, as the model was trained, then its words.

    Args:
        modalities: that may be asked for besides text.

    Raises:
        Refused: not of that form; nothing said; a file of another session; a picture to be heard.
    """
    try:
        asked = _Asked.model_validate_json(body)
    except ValidationError as error:
        raise Refused(
            400, f"expected a message of the page, found {error.error_count()} faults; reload the page"
        ) from error
    if asked.to not in {"auto", Modality.TEXT, *modalities}:
        raise Refused(400, f"this model does not answer in {asked.to!r}; choose another answer")
    files = [(_upload(file.id, uploads), file.use) for file in asked.files]
    for upload, use in files:
        if (upload.kind == "sound") != (use != Modality.IMAGE):
            raise Refused(400, f"“{upload.name}” is a {upload.kind} and cannot be used as {use}; choose another use")
    voices = [upload.path for upload, use in files if use == _VOICE]
    if len(voices) > 1:
        raise Refused(400, "expected one voice to answer in, found two; choose one")
    parts: list[TextPart | FilePart] = [FilePart(one.path, Modality(use)) for one, use in files if use != _VOICE]
    if words := asked.text.strip():
        parts.append(TextPart(words))
    if not parts:
        raise Refused(400, "there is nothing to answer: write something, or add a picture or a sound")
    wanted = None if asked.to == "auto" else Modality(asked.to)
    return UserMessage(tuple(parts), to_modality=wanted, voice_prompt=voices[0] if voices else None)


def message_line(message: UserMessage, uploads: Mapping[str, Upload]) -> dict[str, Any]:
    """A message as the page shows it again."""
    names = {upload.path: (key, upload) for key, upload in uploads.items()}
    files = [(part.path, str(part.modality)) for part in message.parts if isinstance(part, FilePart)]
    if message.voice_prompt:
        files.append((message.voice_prompt, _VOICE))
    text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
    shown = [
        {"url": f"/media/{names[path][0]}", "name": names[path][1].name, "as": use}
        for path, use in files
        if path in names
    ]
    return {"text": text, "files": shown}


def event_line(event: Waiting | TextDelta | MediaReady | Finished, publish: Callable[[Path], str]) -> dict[str, Any]:
    """An event of an answer as the page reads it; ``publish`` gives a file its name in an address."""
    match event:
        case Waiting(before):
            return {"kind": "waiting", "before": before}
        case TextDelta(text, heard):
            return {"kind": "text", "text": text, "heard": heard}
        case MediaReady(modality, path):
            return {"kind": "medium", "modality": str(modality), "url": f"/media/{publish(path)}"}
        case Finished(reply):
            return {"kind": "done", "notices": list(reply.all_notices)}


def without_paths(message: str, uploads: Mapping[str, Upload]) -> str:
    """An error in the names the person knows: where files lie here is nothing to them."""
    for upload in uploads.values():
        message = message.replace(str(upload.path), f"“{upload.name}”")
    return message


def remember(answer: list[dict[str, Any]], line: dict[str, Any]) -> None:
    """Add a line to what is shown of an answer later: words that follow words join them, waiting is forgotten."""
    if line["kind"] == "waiting":
        return
    if line["kind"] == "text" and answer and answer[-1]["kind"] == "text" and answer[-1]["heard"] == line["heard"]:
        answer[-1] = {**answer[-1], "text": answer[-1]["text"] + line["text"]}
    else:
        answer.append(line)


def _upload(key: str, uploads: Mapping[str, Upload]) -> Upload:
    if key not in uploads:
        raise Refused(404, "a file of the message is not in this chat any more; add it again")
    return uploads[key]
