"""What is said in a chat: a user's message as it is typed, and an answer as it comes and when it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.vocabulary import Modality

_CUT = "The answer ran out of room and was ended there."


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class FilePart:
    """A picture or a sound of a message.

    Attributes:
        modality: None lets the file say; a sound that nobody named is speech.
    """

    path: Path
    modality: Modality | None = None


@dataclass(frozen=True, slots=True)
class UserMessage:
    """What a user says before the other answers.

    Attributes:
        parts: words and files in the order in which the model reads them.
        to_modality: what the answer must contain; ``text`` lets no medium in, None leaves it to the model.
        voice_prompt: a recording of the voice that an answer is to be spoken in.
        task: a name of ``[tasks]`` in the dialogue template, whose words are put to the message; any other is plain chat.
    """

    parts: tuple[TextPart | FilePart, ...]
    to_modality: Modality | None = None
    voice_prompt: Path | None = None
    task: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next words of an answer, whole characters only; ``heard``: they repeat what the user said aloud."""

    text: str
    heard: bool = False


@dataclass(frozen=True, slots=True)
class MediaReady:
    """A medium of the answer is whole; ``path`` is the file it was saved as."""

    modality: Modality
    path: Path


ReplyPart = TextDelta | MediaReady


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        parts: its words and media in order, words that follow each other as one part.
        token_ids: as generated, and the end of the turn behind them.
        ended: ``end`` if the model ended its turn, ``length`` if it ran out of room.
        notices: what a person should know, e.g. that the oldest exchanges were left out.
    """

    parts: tuple[ReplyPart, ...]
    token_ids: tuple[int, ...]
    ended: Literal["end", "length"] = "end"
    notices: tuple[str, ...] = ()

    @property
    def all_notices(self) -> tuple[str, ...]:
        """The notices, and that the answer was cut, if it was."""
        return (*self.notices, *([_CUT] if self.ended == "length" else []))

    @property
    def text(self) -> str:
        """The words of the answer, without what was heard."""
        return " ".join(part.text for part in self.parts if isinstance(part, TextDelta) and not part.heard)

    @property
    def heard(self) -> str:
        """What the model understood of a spoken message; empty if it did not say."""
        return " ".join(part.text for part in self.parts if isinstance(part, TextDelta) and part.heard)

    @property
    def media(self) -> tuple[MediaReady, ...]:
        """Its pictures and sounds, all of them, in order."""
        return tuple(part for part in self.parts if isinstance(part, MediaReady))


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer."""

    reply: Reply
