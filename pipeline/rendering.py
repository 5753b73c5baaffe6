"""From a tokenized sample to a document: AnyGPT's strings as ids, with loss spans and borders.

Source: AnyGPT section 4.1 and its released stage 1 (anygpt-compat 3.2, which is what was trained; the paper prints it
differently)::

    X to text    [Human]: {instruction} {medium}<eoh> [MMGPT]: {text}<eos>
    text to X    [Human]: {instruction} This is input: {text}<eoh> [MMGPT]: {medium}<eos>
    interleaved  {the document as it is}

with ``<s>`` before and ``</s>`` after. In these every id is trained, the instruction too. Dialogues are in
:mod:`pipeline.dialogues`.
"""

from __future__ import annotations

from pipeline.dialogues import dialogue_pieces, exchanges_of
from pipeline.documents import Document
from pipeline.pieces import MarkerPiece, MediaPiece, Piece, TextEncoder, TextPiece, segment_pieces, write_token_ids
from pipeline.templates import (
    DIALOGUE,
    INTERLEAVED,
    Shares,
    Templates,
    directions_of,
    draw_direction,
    draw_fractions,
    split_direction,
)
from shards.errors import SampleError
from shards.records import Segment, TokenizedSample
from shards.vocabulary import Modality, TokenIds, Vocabulary

HUMAN, ASSISTANT, HUMAN_END, ASSISTANT_END = "[Human]", "[MMGPT]", "<eoh>", "<eos>"


def render_document(
    sample: TokenizedSample,
    templates: Templates,
    vocabulary: Vocabulary,
    text_tokenizer: TextEncoder,
    *,
    draw: int,
    seed: int,
    directions: Shares | None = None,
) -> Document:
    """Write draw number ``draw`` of a sample; a pure function of its arguments.

    Args:
        directions: direction -> share; None takes what the templates say about the sample's corpus.

    Raises:
        SampleError: the sample cannot be told that way: ``text_missing``, ``media_missing``, ``media_unexpected``,
            ``turns_out_of_order``, ``dialogue_unanswered``, ``dialogue_empty``, or codes that do not fit.
    """
    shares = directions if directions is not None else directions_of(sample, templates)
    which, sentence, wording = draw_fractions(sample.sample_id, draw=draw, seed=seed, count=3)
    direction = draw_direction(shares, which)
    if direction == INTERLEAVED:
        pieces = interleaved_pieces(sample)
    elif direction == DIALOGUE:
        pieces = dialogue_pieces(sample, templates.preset)
    else:
        pool = templates.pool(direction)
        instruction = pool[int(sentence * len(pool))]
        text, medium = _pair(sample, split_direction(direction)[0], wording)
        pieces = pair_pieces(direction, instruction=instruction, text=text, medium=medium)
    written = write_token_ids(pieces, vocabulary, text_tokenizer)
    borders, exchanges = (written.borders, ()) if direction != DIALOGUE else ((), exchanges_of(written))
    return Document(sample.sample_id, draw, direction, written.token_ids, written.loss_spans, borders, exchanges)


def pair_pieces(direction: str, *, instruction: str, text: str, medium: Segment) -> list[Piece]:
    """A text and a medium, told in one direction; no borders, because half a pair teaches nothing."""
    _, to_text = split_direction(direction)
    prompt = prompt_pieces(direction, instruction=instruction, text=text, medium=medium)
    reply = [TextPiece(f" {text}")] if to_text else [TextPiece(" "), _medium_piece(medium)]
    return [*prompt, *reply, MarkerPiece(ASSISTANT_END)]


def prompt_pieces(
    direction: str, *, instruction: str, text: str | None = None, medium: Segment | None = None
) -> list[Piece]:
    """What the model is given to answer in one direction, up to and with the colon after the assistant's name.

    Its ids, written with ``complete=False``, are the first ids of the document that :func:`pair_pieces` makes.
    """
    if split_direction(direction)[1]:
        if medium is None:
            raise SampleError("media_missing", f"{direction}: expected a medium to ask about, found none")
        asked: list[Piece] = [TextPiece(f": {instruction} "), _medium_piece(medium)]
    else:
        if text is None:
            raise SampleError("text_missing", f"{direction}: expected a text to start from, found none")
        asked = [TextPiece(f": {instruction} This is input: {text}")]
    return [MarkerPiece(HUMAN), *asked, MarkerPiece(HUMAN_END), TextPiece(" "), MarkerPiece(ASSISTANT), TextPiece(":")]


def prompt_token_ids(
    direction: str,
    vocabulary: Vocabulary,
    text_tokenizer: TextEncoder,
    *,
    instruction: str,
    text: str | None = None,
    medium: Segment | None = None,
    start_medium: bool = True,
) -> TokenIds:
    """(n,) ids a generation starts from: ``<s>`` and :func:`prompt_pieces`.

    Args:
        start_medium: where a medium is wanted, go on up to and with its start marker, so that only codes can follow.
    """
    pieces = prompt_pieces(direction, instruction=instruction, text=text, medium=medium)
    modality, to_text = split_direction(direction)
    if start_medium and not to_text:
        pieces += [TextPiece(" "), MarkerPiece(vocabulary.block(modality).start)]
    return write_token_ids(pieces, vocabulary, text_tokenizer, complete=False).token_ids


def custom_prompt_pieces(request: str) -> list[Piece]:
    """The base model's prompt for a request in the user's own words; upstream spaces it differently, and so do we."""
    return [
        MarkerPiece(HUMAN),
        TextPiece(f": {request}"),
        MarkerPiece(HUMAN_END),
        MarkerPiece(ASSISTANT),
        TextPiece(": "),
    ]


def interleaved_pieces(sample: TokenizedSample) -> list[Piece]:
    """A document as it is, which may be split in front of any of its segments.

    Raises:
        SampleError: ``text_missing`` if nothing is in it.
    """
    pieces = segment_pieces(sample.segments, borders=True)
    if not pieces:
        raise SampleError("text_missing", f"{sample.sample_id}: expected a document of text and media, found it empty")
    return pieces


def _pair(sample: TokenizedSample, modality: Modality, fraction: float) -> tuple[str, Segment]:
    """The one medium of a sample and one of its texts; several texts are alternatives, drawn like the instruction."""
    media = [segment for segment in sample.segments if segment.codes is not None]
    texts = [segment.text for segment in sample.segments if segment.text and not segment.text.isspace()]
    if not texts:
        raise SampleError("text_missing", f"{sample.sample_id}: expected a text beside the {modality}, found none")
    if not media:
        raise SampleError("media_missing", f"{sample.sample_id}: expected one {modality}, found no medium")
    if len(media) > 1 or media[0].modality != modality:
        found = [str(segment.modality) for segment in media]
        raise SampleError("media_unexpected", f"{sample.sample_id}: expected one {modality}, found {found}")
    return texts[int(fraction * len(texts))], media[0]


def _medium_piece(medium: Segment) -> MediaPiece:
    if medium.codes is None:
        raise SampleError("media_missing", f"expected codes in the segment {medium.slot!r}, found text")
    return MediaPiece(medium.modality, medium.codes)
