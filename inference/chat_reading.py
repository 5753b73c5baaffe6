"""Reading ids as they come: words at once, media when they are closed.

Words are shown in whole characters: what is still half of one waits for the other half. Spaces around a section of words are
not shown. The answer to a spoken message is a chain, ``<-Ins->`` what was heard ``<-Res->`` the reply and then its voice
(anygpt-compat 3.5); the two marks are ids, or are spelled out where the vocabulary lacks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from inference.chat_messages import TextDelta
from pipeline.dialogues import REPLY_MARKS
from shards.vocabulary import Codes, Modality, Vocabulary

HEARD, _ = REPLY_MARKS
_HALF = "\ufffd"  # what a tokenizer makes of bytes that are no character yet


_OtherT = TypeVar("_OtherT")


class TextDecoder(Protocol):
    """What reading needs of a text tokenizer."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of text ids."""
        ...


@dataclass(frozen=True, slots=True)
class ClosedMedium:
    """A medium whose end marker was read."""

    modality: Modality
    codes: Codes


class IdReader:
    """Ids in, words and media out; markers of the dialogue are not shown."""

    def __init__(self, vocabulary: Vocabulary, text_tokenizer: TextDecoder) -> None:
        self._vocabulary, self._tokenizer = vocabulary, text_tokenizer
        self._blocks = {block.start_id: block for block in vocabulary.blocks.values()}
        self._marks = {vocabulary.markers[mark]: mark for mark in REPLY_MARKS if mark in vocabulary.markers}
        self._words = _Words(spelled=tuple(mark for mark in REPLY_MARKS if mark not in vocabulary.markers))
        self._run: list[int] = []
        self._start_id: int | None = None
        self._medium: list[int] = []

    def push(self, token_id: int) -> list[TextDelta | ClosedMedium]:
        """What the next id lets be shown.

        Raises:
            SampleError: ``levels_out_of_order``: codes that no medium has (U-23); the grammar lets none through.
        """
        if self._start_id is not None:
            return self._push_code(token_id)
        if token_id < self._vocabulary.text_size:
            self._run.append(token_id)
            return list(self._words.show(self._tokenizer.decode(self._run)))
        shown: list[TextDelta | ClosedMedium] = list(self.finish())
        if token_id in self._blocks:
            self._start_id, self._medium = token_id, []
        elif token_id in self._marks:
            self._words.turn(self._marks[token_id])
        return shown

    def finish(self) -> list[TextDelta]:
        """What was held back, where no more words of this section can come."""
        shown = self._words.end()
        self._run = []
        return list(shown)

    def _push_code(self, token_id: int) -> list[TextDelta | ClosedMedium]:
        block = self._blocks[self._start_id] if self._start_id is not None else None
        assert block is not None
        if token_id != block.end_id:
            self._medium.append(token_id)
            return []
        codes = block.to_codes(np.array(self._medium, np.int64))
        self._start_id = None
        return [ClosedMedium(Modality(block.name), codes)] if block.name in list(Modality) else []


def read_ids(ids: Iterable[int], vocabulary: Vocabulary, text_tokenizer: TextDecoder) -> list[TextDelta | ClosedMedium]:
    """All that is in some ids, neighbouring words joined."""
    reader = IdReader(vocabulary, text_tokenizer)
    shown: list[TextDelta | ClosedMedium] = []
    for token_id in ids:
        shown += reader.push(token_id)
    return join_words([*shown, *reader.finish()])


def join_words(events: Iterable[TextDelta | _OtherT]) -> list[TextDelta | _OtherT]:
    """The same, consecutive words of one kind as one."""
    joined: list[TextDelta | _OtherT] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and event.heard == last.heard:
            joined[-1] = TextDelta(last.text + event.text, event.heard)
        else:
            joined.append(event)
    return joined


class _Words:
    """The text of a run of ids, as it grows; shown once, in whole characters, marks that are spelled out taken away."""

    def __init__(self, *, spelled: tuple[str, ...]) -> None:
        self._spelled = spelled
        self._heard = False
        self._taken = ""  # of the run's text, what went into the buffer
        self._buffer = ""  # not shown yet
        self._begun = False  # whether this section has words before the buffer

    def show(self, text: str) -> Iterable[TextDelta]:
        """Take the whole text of the run so far."""
        whole = text.rstrip(_HALF)
        # Bytes may unmake a character before they make the next one; then nothing is new yet.
        if not whole.startswith(self._taken):
            return []
        self._buffer += whole[len(self._taken) :]
        self._taken = whole
        return self._release(final=False)

    def end(self) -> Iterable[TextDelta]:
        """The run is over; so is the section."""
        shown = list(self._release(final=True))
        self._taken, self._buffer, self._begun = "", "", False
        return shown

    def turn(self, mark: str) -> None:
        """What follows was heard, or is the reply."""
        self._heard = mark == HEARD

    def _release(self, *, final: bool) -> Iterable[TextDelta]:
        shown: list[TextDelta] = []
        while found := [(place, mark) for mark in self._spelled if (place := self._buffer.find(mark)) >= 0]:
            place, mark = min(found)
            shown += self._cut(place, final=True)
            self._buffer = self._buffer[len(mark) :]
            self._begun = False
            self.turn(mark)
        held = 0 if final else self._start_of_mark()
        return [*shown, *self._cut(len(self._buffer) - held, final=final)]

    def _cut(self, length: int, *, final: bool) -> Iterable[TextDelta]:
        """Show this much of the buffer, without the spaces that end it: only more words make them ones between words."""
        text, rest = self._buffer[:length], self._buffer[length:]
        kept = text.rstrip()
        self._buffer = rest if final else text[len(kept) :] + rest
        kept = kept if self._begun else kept.lstrip()
        self._begun = self._begun or bool(kept)
        return [TextDelta(kept, self._heard)] if kept else []

    def _start_of_mark(self) -> int:
        """Length of the longest end of the buffer that a spelled mark may begin with."""
        lengths = range(max((len(mark) for mark in self._spelled), default=0), 0, -1)
        starts = (n for n in lengths if any(mark.startswith(self._buffer[-n:]) for mark in self._spelled))
        return next((n for n in starts if n <= len(self._buffer)), 0)
