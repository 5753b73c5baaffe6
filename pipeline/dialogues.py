r"""Stage 2: multi-turn dialogues, trained on what the assistant says and on nothing else.

Source: AnyGPT's released chat form (anygpt-compat 3.5, template ``MMGPT``)::

    {system}\n[Human]: {user}<eoh>\n[MMGPT]: {assistant}<eos>\n[Human]: ...

with ``<s>`` before and ``</s>`` after. Loss is on every assistant turn (its text, media and ``<eos>``) and on the final
``</s>``. The spans are kept while the pieces are written. The released script finds them by tokenizing strings again and
comparing lengths, and with its own template masks everything (anygpt-compat U-02).

The system message is the preset's, unless the sample has one of its own (slot ``system``, in front). A question that no
reply follows at the end of a dialogue teaches nothing and is left out; a dialogue without any reply, or with a turn that
says nothing, is refused: an answer to nothing would be trained to be made up.

A reply begins with its space: the prompt of a generation ends with the colon, so the first id a model has to find is the
one that holds this space, be it of a word (``▁Here``) or of its own (before a medium). It is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

from pipeline.pieces import MarkerPiece, Piece, TextPiece, WrittenIds, segment_pieces, untrained
from pipeline.templates import DialoguePreset, DialogueTemplate
from shards.errors import ConfigError, SampleError
from shards.records import Segment, TokenizedSample
from shards.vocabulary import Modality

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# What a spoken request says, if the corpus has it. It heads the reply: ``<-Ins-> {transcript}\n <-Res-> {reply}``.
TRANSCRIPT = "transcript"
# Inside an assistant's turn: the transcript of a spoken request, then the reply to it. A stage-1 vocabulary spells them out.
REPLY_MARKS = ("<-Ins->", "<-Res->")
_REPLY_MARKS = re.compile("(" + "|".join(map(re.escape, REPLY_MARKS)) + ")")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says before the other answers."""

    role: str
    segments: tuple[Segment, ...]


def turns_of(sample: TokenizedSample) -> list[Turn]:
    """Questions and answers in turn; consecutive segments of one slot make one, a transcript joins the reply after it.

    Raises:
        SampleError: ``turns_out_of_order`` unless user and assistant alternate, user first; ``dialogue_unanswered`` if no
            reply is there; ``dialogue_empty`` if somebody's turn says nothing.
    """
    runs = [Turn(slot, tuple(segments)) for slot, segments in groupby(sample.segments, key=lambda s: s.slot)]
    turns = _join_transcripts(runs[1:] if runs and runs[0].role == SYSTEM else runs)
    roles = [turn.role for turn in turns]
    if not roles or roles != ([USER, ASSISTANT] * len(roles))[: len(roles)]:
        raise SampleError(
            "turns_out_of_order", f"{sample.sample_id}: expected user and assistant in turn, found {roles[:8]}"
        )
    # What nobody answered at the end is no part of what can be learned.
    turns = turns[: len(turns) // 2 * 2]
    if not turns:
        raise SampleError("dialogue_unanswered", f"{sample.sample_id}: expected a reply, found a question alone")
    for number, turn in enumerate(turns, start=1):
        if not any(segment.codes is not None or (segment.text or "").strip() for segment in turn.segments):
            raise SampleError(
                "dialogue_empty",
                f"{sample.sample_id}: expected words or media in every turn, found none in turn {number}",
            )
    return turns


def system_of(sample: TokenizedSample) -> str | None:
    """The sample's own system message, or None for the preset's.

    Raises:
        SampleError: ``media_unexpected`` if there is more than text in it.
    """
    segments = list(takewhile(lambda segment: segment.slot == SYSTEM, sample.segments))
    if any(segment.codes is not None for segment in segments):
        raise SampleError("media_unexpected", f"{sample.sample_id}: expected text as system message, found a medium")
    return " ".join((segment.text or "").strip() for segment in segments).strip() or None


def dialogue_pieces(sample: TokenizedSample, preset: DialoguePreset) -> list[Piece]:
    """A whole dialogue, the loss on the assistant's turns, borders where every exchange begins and ends."""
    return conversation_pieces(turns_of(sample), preset, system=system_of(sample))


def exchanges_of(written: WrittenIds) -> tuple[tuple[int, int], ...]:
    """The ranges of ids of every question with its answer, from the borders of a whole dialogue's ids."""
    edges = [*written.borders, len(written.token_ids) - 1]  # the last exchange ends where ``</s>`` stands
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def conversation_pieces(turns: Sequence[Turn], preset: DialoguePreset, *, system: str | None = None) -> list[Piece]:
    """Turns as they are trained on, and as they stand in the history of a chat.

    Args:
        system: instead of the preset's message.
    """
    pieces: list[Piece] = [TextPiece((preset.system if system is None else system) + "\n", trained=False)]
    for number, turn in enumerate(turns):
        if turn.role == USER:
            pieces += _user_pieces(turn, preset)
        else:
            pieces += [_marker(preset.assistant, preset, trained=False), TextPiece(":", trained=False)]
            pieces += [TextPiece(" "), *_reply_pieces(turn.segments), _marker(preset.assistant_end, preset)]
        if number + 1 < len(turns):
            pieces.append(TextPiece("\n", trained=False, border=turn.role == ASSISTANT))
    return pieces


def chat_prompt_pieces(
    turns: Sequence[Turn],
    preset: DialoguePreset,
    *,
    reply_prefix: str = "",
    force_start: str = "",
    system: str | None = None,
) -> list[Piece]:
    """History and a last user turn, then the assistant's name; ends with the colon unless something is forced.

    Args:
        reply_prefix: words the reply must begin with.
        force_start: start marker of the medium the reply must go on with, e.g. ``<soim>``.
        system: instead of the preset's message.
    """
    if not turns or turns[-1].role != USER:
        raise SampleError("turns_out_of_order", "expected a user's turn to answer, found none at the end")
    history = conversation_pieces(turns, preset, system=system)
    pieces = [*history, TextPiece("\n"), _marker(preset.assistant, preset), TextPiece(":")]
    if reply_prefix:
        pieces.append(TextPiece(f" {reply_prefix}"))
    if force_start:
        pieces += [TextPiece(" "), MarkerPiece(force_start)]
    return untrained(pieces)


def chat_request(task: str, instruction: str, media: Sequence[Segment], template: DialogueTemplate) -> Turn:
    """A user's turn as the published chat model was told it: media first, then the words of the task.

    Args:
        task: a name of ``[tasks]``; any other is plain chat, or a spoken instruction if speech is among the media.

    Raises:
        ConfigError: a pattern with an unknown placeholder.
    """
    plain = "Speech-Instruction" if any(medium.modality == Modality.SPEECH for medium in media) else "Chat"
    pattern = template.tasks.get(task, template.tasks[plain])
    words = instruction.strip()
    parts: dict[str, list[Segment]] = {
        "{media}": list(media),
        "{numbered_media}": list(_numbered(media)),
        "{instruction}": [_text(words)],
        "{sentence}": [_text(words if words.endswith((".", "!", "?")) else f"{words}.")],
    }
    segments: list[Segment] = []
    for part in re.split(r"(\{\w*\})", pattern):
        if part.startswith("{") and part not in parts:
            raise ConfigError(f"task {task!r}: expected placeholders of {sorted(parts)}, found {part!r}; correct it")
        segments += parts.get(part, [_text(part.strip())])
    return Turn(USER, tuple(segment for segment in segments if segment.codes is not None or segment.text))


def _join_transcripts(runs: Sequence[Turn]) -> list[Turn]:
    """Put a transcript at the head of the reply after it; one that no reply follows stays, to be refused."""
    turns: list[Turn] = []
    for turn in runs:
        if turn.role == ASSISTANT and turns and turns[-1].role == TRANSCRIPT:
            heard = " ".join(segment.text or "" for segment in turns.pop().segments).strip()
            opening = Segment(ASSISTANT, Modality.TEXT, f"{REPLY_MARKS[0]} {heard}\n {REPLY_MARKS[1]} ")
            turn = Turn(ASSISTANT, (opening, *turn.segments))
        turns.append(turn)
    return turns


def _user_pieces(turn: Turn, preset: DialoguePreset) -> list[Piece]:
    said = segment_pieces(turn.segments)
    human = replace(_marker(preset.user, preset), border=True)
    return untrained([human, TextPiece(": "), *said, _marker(preset.user_end, preset)])


def _reply_pieces(segments: Sequence[Segment]) -> Iterable[Piece]:
    for piece in segment_pieces(segments):
        if not isinstance(piece, TextPiece):
            yield piece
            continue
        for part in _REPLY_MARKS.split(piece.text):
            if part in REPLY_MARKS:
                yield MarkerPiece(part, as_text=True)
            elif part:
                yield TextPiece(part)


def _marker(name: str, preset: DialoguePreset, *, trained: bool = True) -> MarkerPiece:
    return MarkerPiece(name, trained, as_text=name in preset.text_markers)


def _numbered(media: Sequence[Segment]) -> Iterable[Segment]:
    for number, medium in enumerate(media):
        ordinal = _ORDINALS[number] if number < len(_ORDINALS) else f"{number + 1}th"
        yield _text(f"This is the {ordinal} {medium.modality}.")
        yield medium


def _text(text: str) -> Segment:
    return Segment(USER, Modality.TEXT, text)
