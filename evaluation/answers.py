"""An assistant's turn, taken apart: what it heard, what it says, and the media it shows, plays and speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dialogues import REPLY_MARKS
from pipeline.text import TextTokenizer
from shards.records import Segment
from shards.vocabulary import Codes, Modality, Vocabulary


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of the assistant.

    Attributes:
        heard: what it took a spoken request to be, between ``<-Ins->`` and ``<-Res->``; None without these marks.
        text: its words.
        media: in their order.
    """

    heard: str | None
    text: str
    media: tuple[tuple[Modality, Codes], ...]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it answers in: the modalities of its media in their order, else text."""
        return tuple(modality for modality, _ in self.media) or (Modality.TEXT,)

    def codes(self, modality: Modality) -> Codes | None:
        """Those of its first medium of a modality."""
        return next((codes for one, codes in self.media if one == modality), None)


def said_in(segments: Sequence[Segment]) -> Said:
    """A true turn."""
    words = " ".join(segment.text.strip() for segment in segments if segment.text)
    media = tuple((segment.modality, segment.codes) for segment in segments if segment.codes is not None)
    return _said(words, media)


def said_by_ids(ids: Sequence[int], vocabulary: Vocabulary, text_tokenizer: TextTokenizer) -> Said:
    """A generated turn, without or with its end; every medium in it is whole, as the grammar of tokens has it."""
    names, index = vocabulary.modality_names(), vocabulary.modality_index()
    marks = {vocabulary.markers[mark]: mark for mark in REPLY_MARKS if mark in vocabulary.markers}
    parts: list[str] = []
    words: list[int] = []
    media: list[tuple[Modality, Codes]] = []
    position = 0
    while position < len(ids):
        token_id, name = ids[position], names[index[ids[position]]]
        if token_id in marks:
            parts += [text_tokenizer.decode(words), marks[token_id]]
            words = []
        elif name == "text":
            words += [token_id] if token_id < vocabulary.text_size else []
        else:
            block = vocabulary.block(name)
            stop = list(ids).index(block.end_id, position)
            media.append((Modality(name), block.to_codes(np.array(ids[position + 1 : stop], np.int64))))
            position = stop
        position += 1
    return _said("".join([*parts, text_tokenizer.decode(words)]), tuple(media))


def _said(words: str, media: tuple[tuple[Modality, Codes], ...]) -> Said:
    """Split at the marks, be they tokens or spelled out; one that says only half of them heard nothing."""
    before, mark, rest = words.partition(REPLY_MARKS[0])
    heard, answer_mark, reply = rest.partition(REPLY_MARKS[1])
    if not mark or not answer_mark:
        return Said(None, words.strip(), media)
    return Said(heard.strip(), f"{before.strip()} {reply.strip()}".strip(), media)
