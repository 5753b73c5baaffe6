r"""The history of a chat, as token ids and as nothing else.

A chat is the head of a packed dialogue row (:mod:`pipeline.dialogues`)::

    <s>{system}\n  [Human]: {user}<eoh>\n[MMGPT]:  {answer}<eos>  \n  [Human]: ...
    head           asked                           answered       separator

Every part begins right behind an id that is no text, so each is written once and for itself, and together they are the ids
of the row. What the model said is kept as the ids it chose. The released code decodes it, puts spaces between the
tokens of media, and tokenizes that again (anygpt-compat U-20); and where an answer has no end, it loses the answer and keeps
the question, so that all later turns change sides (U-21). Here an exchange is kept whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pipeline.dialogues import USER, Turn, chat_prompt_pieces
from pipeline.pieces import TextEncoder, write_token_ids
from pipeline.templates import DialoguePreset
from shards.errors import ConfigError
from shards.records import Segment
from shards.vocabulary import Modality, TokenIds, Vocabulary

SEPARATOR = "\n"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question with its answer.

    Attributes:
        asked: from ``[Human]`` to the colon behind the assistant's name.
        answered: what the model chose, closed by the end of the turn.
    """

    asked: tuple[int, ...]
    answered: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.asked) + len(self.answered)


class ChatForm:
    """How the turns of a chat are written: a vocabulary, its text tokenizer, and the strings of a preset."""

    def __init__(self, vocabulary: Vocabulary, text_tokenizer: TextEncoder, preset: DialoguePreset) -> None:
        """Write what every chat begins with.

        Raises:
            ConfigError: the vocabulary has no token that ends a turn of this preset.
        """
        if missing := [name for name in (preset.user, preset.assistant_end) if name not in vocabulary.markers]:
            raise ConfigError(
                f"vocabulary {vocabulary.name}: expected tokens for {preset.user!r} and {preset.assistant_end!r}, where a "
                f"turn of a chat begins and ends, found none for {missing[0]!r}; choose another dialogue_preset"
            )
        self.vocabulary, self.preset = vocabulary, preset
        self.user_id, self.end_id = vocabulary.marker(preset.user), vocabulary.marker(preset.assistant_end)
        self.separator = tuple(text_tokenizer.encode(SEPARATOR))
        self._text_tokenizer = text_tokenizer
        probe = Turn(USER, (Segment(USER, Modality.TEXT, "."),))
        self.head, _ = self._write(probe)

    def ask(self, turn: Turn) -> tuple[int, ...]:
        """The ids of a user's turn, and of the assistant's name behind it.

        Raises:
            SampleError: codes that do not fit their codebook.
        """
        return self._write(turn)[1]

    def user_ids(self, asked: Sequence[int]) -> tuple[int, ...]:
        """Of the ids of :meth:`ask`, those of what the user said, from the colon behind the name."""
        end_id = self.vocabulary.markers.get(self.preset.user_end)
        ids = list(asked)
        return tuple(ids[1 : ids.index(end_id)] if end_id in ids else ids[1:])

    def close(self, answer: Sequence[int]) -> tuple[int, ...]:
        """An answer as it stands in a row: whole media, then the end of the turn, whatever generation ended with.

        An answer may have ended with ``<eos>``, with ``</s>``, or for lack of room; a medium that was cut goes.
        """
        ids = list(answer)
        while ids and ids[-1] in (self.end_id, self.vocabulary.eos_id):
            ids.pop()
        starts = {block.start_id: block.end_id for block in self.vocabulary.blocks.values()}
        opened = [place for place, token_id in enumerate(ids) if token_id in starts]
        if opened and starts[ids[opened[-1]]] not in ids[opened[-1] :]:
            del ids[opened[-1] :]
        return (*ids, self.end_id)

    def prompt(self, exchanges: Sequence[Exchange], asked: Sequence[int]) -> TokenIds:
        """(n,) int64: what the model is fed to answer ``asked`` after ``exchanges``."""
        return np.array([*self.head, *self._joined(exchanges), *asked], np.int64)

    def num_ids(self, exchanges: Sequence[Exchange], asked: Sequence[int]) -> int:
        """Length of :meth:`prompt`."""
        return len(self.head) + sum(len(one) + len(self.separator) for one in exchanges) + len(asked)

    def row(self, exchanges: Sequence[Exchange]) -> TokenIds:
        """(n,) int64: the finished chat as a packed row holds it, ``</s>`` behind the last answer."""
        ids = list(self._joined(exchanges))
        body = ids[: len(ids) - len(self.separator)] if exchanges else ids
        return np.array([*self.head, *body, self.vocabulary.eos_id], np.int64)

    def _joined(self, exchanges: Sequence[Exchange]) -> chain[int]:
        return chain.from_iterable((*one.asked, *one.answered, *self.separator) for one in exchanges)

    def _write(self, turn: Turn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The head of a chat, and a user's first turn; they part where the turn may begin a row."""
        pieces = chat_prompt_pieces([turn], self.preset)
        written = write_token_ids(pieces, self.vocabulary, self._text_tokenizer, complete=False)
        ids, start = written.token_ids.tolist(), written.borders[0]
        return tuple(ids[:start]), tuple(ids[start:])


def oldest_to_drop(
    form: ChatForm, exchanges: Sequence[Exchange], asked: Sequence[int], *, context: int, room: int
) -> int:
    """How many of the oldest exchanges have to go, so that ``room`` ids of an answer fit behind the prompt."""
    dropped = 0
    while dropped < len(exchanges) and form.num_ids(exchanges[dropped:], asked) + room > context:
        dropped += 1
    return dropped
