"""From a message to a user's turn: files become codes, and the words of a task are put around them.

The published chat model was told in words what to do (anygpt-compat 3.5): a spoken message ends with "Please recognize the
voice command and give reply and voice". The rows that this project packs of spoken conversations have no such words, and a
model is spoken to as it was trained: published weights get them, our own exports do not.
"""

from __future__ import annotations

from pathlib import Path

from inference.chat_messages import FilePart, UserMessage
from inference.media_in import kind_of_file
from inference.model import VOCABULARY_NAME
from inference.runtime import Runtime
from pipeline.dialogues import USER, Turn, chat_request
from pipeline.templates import DialogueTemplate
from shards.errors import SampleError
from shards.records import Segment
from shards.vocabulary import Modality

SPOKEN_TASK = "Speech-Instruction"


def user_turn(message: UserMessage, runtime: Runtime) -> tuple[Turn, tuple[Path, ...]]:
    """The turn as the model reads it, and the files of its media in order.

    Raises:
        SampleError: a file that cannot be read, or neither words nor media.
        ConfigError: no codec for a medium.
    """
    segments: list[Segment] = []
    files: list[Path] = []
    for part in message.parts:
        if isinstance(part, FilePart):
            segments.append(_as_user(runtime.encode(part.path, part.modality or guess_modality(part.path))))
            files.append(part.path)
        elif words := part.text.strip():
            segments.append(_text(words))
    if not segments:
        raise SampleError(
            "dialogue_empty", "expected words, a picture or a sound, found an empty message; say something"
        )
    return word_task(segments, message.task, runtime.templates.dialogue, suffix=is_published(runtime)), tuple(files)


def word_task(segments: list[Segment], task: str, template: DialogueTemplate, *, suffix: bool) -> Turn:
    """A user's turn in the words of its task; without one, as it was said, with the words of a spoken message behind it.

    Args:
        suffix: whether the model was told those words.
    """
    if task in template.tasks:
        words = " ".join(segment.text for segment in segments if segment.text)
        return chat_request(task, words, [one for one in segments if one.codes is not None], template)
    if suffix and any(segment.modality == Modality.SPEECH for segment in segments):
        words = template.tasks.get(SPOKEN_TASK, "").partition("{instruction}")[2].strip()
        segments = [*segments, _text(words)] if words else segments
    return Turn(USER, tuple(segments))


def guess_modality(path: Path) -> Modality:
    """What an unnamed file is: a picture, or a sound, which is taken for speech."""
    return Modality.SPEECH if kind_of_file(path) == "sound" else Modality.IMAGE


def is_published(runtime: Runtime) -> bool:
    """Whether the weights are somebody's release: an export of ours says what its ids mean."""
    return not (runtime.config.model / VOCABULARY_NAME).is_file()


def _as_user(segment: Segment) -> Segment:
    return Segment(USER, segment.modality, None, segment.codes, segment.duration_s, segment.media_sha256)


def _text(words: str) -> Segment:
    return Segment(USER, Modality.TEXT, words)
