"""One line of AnyGPT's own data files, to samples and back, byte for byte.

Source: the files OpenMOSS/AnyGPT publishes under ``data/`` (anygpt-compat 3.1). A line is either a pair
``{"text": ..., "image": "<soim>...<eoim>"}`` in any order of keys, or a dialogue
``{"id": 1, "conversation": [[{"role": "user", "message": ...}, ...]]}`` with media inside the messages.

How a line was written (order of keys, escapes, other fields) is no part of a sample's meaning, so it is kept beside it: as
a small JSON object in ``provenance.member``, the :class:`LineForm`. A sample from elsewhere has none and gets the
published form.

Reading is strict: a token without its variation selector, an index out of range, a space or leading zeros inside a medium,
a picture of 31 codes each refuse the line with a reason, because trained on, each would teach something false.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, cast

from shards.errors import SampleError
from shards.rates import FRAMES_PER_SECOND, rate_fault
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import MediaBlock, Modality, lay_out

ANYGPT_MARKERS = ("[Human]", "[MMGPT]", "<eoh>", "<eos>")
ANYGPT_MEDIA: tuple[Mapping[str, Any], ...] = (
    {"name": "image", "prefix": "\U0001f440", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1},
    {
        "name": "speech",
        "prefix": "\U0001f5e3\ufe0f",
        "start": "<sosp>",
        "end": "<eosp>",
        "codebook_size": 1024,
        "levels": 1,
    },
    {"name": "music", "prefix": "\U0001f3b6", "start": "<somu>", "end": "<eomu>", "codebook_size": 2048, "levels": 4},
)
"""The strings of the published files; ``configs/vocabulary/anygpt-stage1.toml`` says the same, and a test that it does."""

BLOCKS = lay_out("anygpt-stage1", text_size=32000, markers=ANYGPT_MARKERS, media=ANYGPT_MEDIA).blocks

_COMPACT = (",", ":")
_SPACED = (", ", ": ")
_VARIATION_SELECTOR = "\ufe0f"


@dataclass(frozen=True, slots=True)
class LineForm:
    """How a line is written, apart from what it says.

    Attributes:
        keys: in order.
        ascii: everything beyond ASCII is escaped, as in ``gigaspeech.jsonl``.
        compact: no space after ``,`` and ``:``.
        carriage_return: the line ends in CR LF.
        extra: fields that are neither text nor media nor conversation.
        dialogue: number of this dialogue in its line, and how many the line has.
    """

    keys: tuple[str, ...]
    ascii: bool = False
    compact: bool = False
    carriage_return: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dialogue: tuple[int, int] | None = None


def parse_line(data: bytes, *, corpus: str, source_file: str, number: int) -> list[TokenizedSample | SampleError]:
    """One line, without its line feed, as one sample; a line of several dialogues as several.

    Args:
        number: of the line in its file, from 0; becomes ``provenance.offset``.

    Returns:
        In order; a dialogue that cannot be used is the error it failed with.

    Raises:
        SampleError: nothing of the line can be used.
    """
    fields, form = _open_line(data)
    sample_id = f"{source_file.removesuffix('.jsonl')}/{number:06d}"
    if "conversation" not in fields:
        segments = _pair_segments(fields)
        return [_sample(sample_id, corpus, segments, form, source_file, number)]
    dialogues = fields["conversation"]
    if not isinstance(dialogues, list) or not dialogues:
        raise SampleError("conversation_malformed", f"expected a list of dialogues, found {str(dialogues)[:60]!r}")
    out: list[TokenizedSample | SampleError] = []
    for k, dialogue in enumerate(cast(list[Any], dialogues)):
        member = replace(form, dialogue=(k, len(dialogues)))
        dialogue_id = sample_id if len(dialogues) == 1 else f"{sample_id}/{k}"
        try:
            out.append(_sample(dialogue_id, corpus, _dialogue_segments(dialogue), member, source_file, number))
        except SampleError as error:
            out.append(error)
    return out


def format_line(samples: Sequence[TokenizedSample]) -> bytes:
    """Inverse of :func:`parse_line`: the samples of one line, in order, as its bytes without the line feed.

    Raises:
        SampleError: ``not_a_pair`` if a sample is neither one text and one medium nor a dialogue.
    """
    form = form_of(samples[0])
    fields: dict[str, Any] = dict(form.extra)
    if "conversation" in form.keys:
        fields["conversation"] = [_messages(sample, verbatim=has_form(sample)) for sample in samples]
    else:
        fields |= _pair_fields(samples[0])
    ordered = {key: fields[key] for key in form.keys}
    text = json.dumps(ordered, ensure_ascii=form.ascii, separators=_COMPACT if form.compact else _SPACED)
    return text.encode() + (b"\r" if form.carriage_return else b"")


def has_form(sample: TokenizedSample) -> bool:
    """Whether a sample was read from such a line; one of another origin was not."""
    return sample.provenance.member.startswith('{"keys"')


def form_of(sample: TokenizedSample) -> LineForm:
    """The form a sample came in, or the published one for a sample of another origin."""
    if has_form(sample):
        data = json.loads(sample.provenance.member)
        keys, dialogue = tuple(data.pop("keys")), data.pop("dialogue")
        return LineForm(keys, dialogue=(dialogue[0], dialogue[1]) if dialogue else None, **data)
    if any(segment.slot in ("user", "assistant") for segment in sample.segments):
        return LineForm(("id", "conversation"), extra={"id": sample.sample_id}, dialogue=(0, 1))
    media = [str(segment.modality) for segment in sample.segments if segment.codes is not None]
    return LineForm(("text", *media))


def split_message(message: str, slot: str, blocks: Mapping[str, MediaBlock] = BLOCKS) -> tuple[Segment, ...]:
    """Cut a message at its media; texts keep their white space, so the pieces join to the same string.

    Raises:
        SampleError: ``token_text_malformed`` if a medium is not whole.
    """
    modalities = {block.start: block for block in blocks.values()}
    media = "|".join(f"{re.escape(b.start)}.*?{re.escape(b.end)}" for b in blocks.values())
    segments: list[Segment] = []
    for part in re.split(f"({media})", message, flags=re.DOTALL):
        block = next((modalities[start] for start in modalities if part.startswith(start)), None)
        if block is not None:
            segments.append(_medium(block, part, slot))
            continue
        for known in blocks.values():
            if known.start in part or known.end in part or f"<{known.prefix}" in part:
                raise SampleError("token_text_malformed", f"{known.name}: expected whole media, found {part[:60]!r}")
        if part:
            segments.append(Segment(slot, Modality.TEXT, _utf8(part)))
    return tuple(segments) or (Segment(slot, Modality.TEXT, ""),)


def _open_line(data: bytes) -> tuple[dict[str, Any], LineForm]:
    carriage_return = data.endswith(b"\r")
    line = data.removesuffix(b"\r")
    if not line.strip():
        raise SampleError("line_empty", "expected a JSON object, found an empty line")
    try:
        fields: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SampleError("json_malformed", f"expected a JSON object in UTF-8, found {str(error)[:120]}") from error
    if not isinstance(fields, dict):
        raise SampleError("json_malformed", f"expected a JSON object, found a {type(fields).__name__}")
    table = cast(dict[str, Any], fields)
    compact = json.dumps(table, ensure_ascii=line.isascii(), separators=_COMPACT).encode() == line
    known = {"text", "conversation", *BLOCKS}
    extra = {key: value for key, value in table.items() if key not in known}
    return table, LineForm(tuple(table), line.isascii(), compact, carriage_return, extra)


def _pair_segments(fields: Mapping[str, Any]) -> tuple[Segment, ...]:
    media = [name for name in fields if name in BLOCKS]
    if len(media) != 1:
        raise SampleError("fields_unexpected", f"expected one of {sorted(BLOCKS)}, found fields {sorted(fields)[:8]}")
    if "text" not in fields:
        raise SampleError("text_missing", f"expected the fields 'text' and {media[0]!r}, found {sorted(fields)[:8]}")
    text, tokens = fields["text"], fields[media[0]]
    if not isinstance(text, str) or not isinstance(tokens, str):
        raise SampleError("fields_unexpected", f"expected strings in 'text' and {media[0]!r}, found something else")
    if not text.strip():
        raise SampleError("text_empty", "expected a text, found none in the field 'text'")
    caption = Segment("transcript" if media[0] == Modality.SPEECH else "caption", Modality.TEXT, _utf8(text))
    medium = _medium(BLOCKS[media[0]], tokens, media[0])
    # Media first, as every corpus reader has it; the order of the fields is in the form.
    return (medium, caption)


def _dialogue_segments(dialogue: Any) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for turn in dialogue if isinstance(dialogue, list) else [None]:
        match turn:
            case {"role": ("user" | "assistant") as role, "message": str(message)}:
                segments += split_message(message, role)
            case _:
                raise SampleError("conversation_malformed", f"expected role and message, found {str(turn)[:60]!r}")
    if not segments:
        raise SampleError("conversation_malformed", "expected at least one turn, found none")
    return tuple(segments)


def _medium(block: MediaBlock, text: str, slot: str) -> Segment:
    try:
        codes = block.from_text(text)
    except SampleError as error:
        bare = block.prefix.removesuffix(_VARIATION_SELECTOR)
        if bare != block.prefix and re.search(rf"<{bare}[0-9]", text):
            message = f"{block.name}: expected U+FE0F after U+{ord(bare):04X} in every token, found none"
            raise SampleError("variation_selector_missing", message) from error
        raise
    modality = Modality(block.name)
    duration_s = len(codes) / FRAMES_PER_SECOND[modality] if modality in FRAMES_PER_SECOND else None
    if fault := rate_fault(modality, codes.reshape(-1), block.levels, duration_s):
        raise SampleError("length_mismatch", fault)
    return Segment(slot, modality, codes=codes, duration_s=duration_s)


def _utf8(text: str) -> str:
    """JSON can escape half a surrogate pair; nothing on disk can hold one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError(
            "text_malformed", f"expected Unicode text, found a lone surrogate at {error.start}"
        ) from error
    return text


def _sample(
    sample_id: str, corpus: str, segments: tuple[Segment, ...], form: LineForm, source_file: str, number: int
) -> TokenizedSample:
    member = json.dumps(asdict(form), ensure_ascii=True)
    return TokenizedSample(sample_id, corpus, "train", segments, Provenance(source_file, member, number))


def _pair_fields(sample: TokenizedSample) -> dict[str, str]:
    texts = [segment.text for segment in sample.segments if segment.text is not None]
    media = [segment for segment in sample.segments if segment.codes is not None]
    if len(texts) != 1 or len(media) != 1:
        raise SampleError(
            "not_a_pair", f"{sample.sample_id}: expected one text and one medium, found {len(texts)} and {len(media)}"
        )
    return {"text": texts[0], str(media[0].modality): _segment_text(media[0])}


def _messages(sample: TokenizedSample, *, verbatim: bool) -> list[dict[str, str]]:
    """Turns as role and message; ``verbatim`` if the texts have their white space, else one space joins segments."""
    messages: list[dict[str, str]] = []
    for slot, run in groupby(sample.segments, key=lambda segment: segment.slot):
        texts = [_segment_text(segment) for segment in run]
        messages.append({"role": slot, "message": "".join(texts) if verbatim else " ".join(map(str.strip, texts))})
    return messages if verbatim else _join_transcripts(messages)


def _join_transcripts(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """What a spoken request said heads the reply to it, as in the published file."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if message["role"] == "assistant" and joined and joined[-1]["role"] == "transcript":
            heard = joined.pop()["message"]
            message = {"role": "assistant", "message": f"<-Ins-> {heard}\n <-Res-> {message['message']}"}
        joined.append(message)
    return joined


def _segment_text(segment: Segment) -> str:
    if segment.codes is None:
        return segment.text or ""
    return BLOCKS[segment.modality].to_text(segment.codes)
