"""Documents: AnyGPT's strings exactly, drawn the same way everywhere, with media whole and markers in pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pieces import MarkerPiece, TextPiece, segment_pieces, write_text, write_token_ids
from pipeline.rendering import custom_prompt_pieces, pair_pieces, prompt_pieces, prompt_token_ids, render_document
from pipeline.templates import Templates, split_direction
from pipeline.text import TextTokenizer
from pipeline.token_text import spell_token_ids
from shards.errors import ConfigError, SampleError
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary

PAIR_DIRECTIONS = [f"{m}_to_text" for m in ("image", "speech", "music")] + [
    f"text_to_{m}" for m in ("image", "speech", "music")
]
RATES = {Modality.IMAGE: (8192, 1), Modality.SPEECH: (1024, 8), Modality.MUSIC: (2048, 4)}


def medium(modality: Modality, frames: int = 32, seed: int = 0) -> Segment:
    """Random codes at rest: speech keeps all of its 8 levels."""
    codebook, levels = RATES[modality]
    frames = 32 if modality == Modality.IMAGE else frames
    codes = np.random.default_rng(seed).integers(0, codebook, (frames, levels)).astype(np.uint16)
    return Segment(str(modality), modality, codes=codes, duration_s=frames / 50)


def text(words: str, slot: str = "caption") -> Segment:
    return Segment(slot, Modality.TEXT, words)


def sample(*segments: Segment, sample_id: str = "c/0", corpus: str = "corpus") -> TokenizedSample:
    return TokenizedSample(sample_id, corpus, "train", segments, Provenance("f"))


def media_of(ids: np.ndarray, vocabulary: Vocabulary) -> Counter[str]:
    """Media by name in a row of ids; every code must lie between its own markers."""
    found: Counter[str] = Counter()
    inside = ""
    for token_id in ids.tolist():
        block = next((b for b in vocabulary.blocks.values() if b.first_id <= token_id <= b.end_id), None)
        if block is None:
            assert not inside, "text or a marker inside a medium"
        elif token_id == block.start_id:
            assert not inside
            inside = block.name
        elif token_id == block.end_id:
            assert inside == block.name
            found[inside], inside = found[inside] + 1, ""
        else:
            assert inside == block.name
    assert not inside
    return found


segments_of_any_kind = st.lists(
    st.one_of(
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=12).map(text),
        st.tuples(st.sampled_from(list(RATES)), st.integers(1, 6)).map(lambda args: medium(*args)),
    ),
    min_size=1,
    max_size=8,
)


def test_a_caption_is_written_as_the_released_code_writes_it(vocabulary: Vocabulary):
    picture = replace(medium(Modality.IMAGE), codes=np.array([[5], [8191]], np.uint16))
    pieces = pair_pieces("image_to_text", instruction="What is this?", text="A cat.", medium=picture)
    eyes = "\U0001f440"
    assert write_text(pieces, vocabulary) == (
        f"[Human]: What is this? <soim><{eyes}5><{eyes}8191><eoim><eoh> [MMGPT]: A cat.<eos>"
    )


def test_speech_from_text_reads_level_one_and_keeps_the_variation_selector(vocabulary: Vocabulary):
    voice = replace(medium(Modality.SPEECH), codes=np.array([[7, 1, 1, 1, 1, 1, 1, 1]], np.uint16))
    pieces = pair_pieces("text_to_speech", instruction="Read it.", text="hello there", medium=voice)
    assert write_text(pieces, vocabulary) == (
        "[Human]: Read it. This is input: hello there<eoh> [MMGPT]: <sosp><\U0001f5e3\ufe0f7><eosp><eos>"
    )


def test_music_is_written_frame_by_frame(vocabulary: Vocabulary):
    clip = replace(medium(Modality.MUSIC), codes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint16))
    pieces = pair_pieces("text_to_music", instruction="Play.", text="slow", medium=clip)
    written = write_token_ids(pieces, vocabulary, _Letters()).token_ids
    block = vocabulary.block("music")
    inside = written[(written >= block.first_id) & (written < block.stop_id)] - block.first_id
    assert inside.tolist() == [1, 2050, 4099, 6148, 5, 2054, 4103, 6152]


@pytest.mark.parametrize("direction", PAIR_DIRECTIONS)
def test_a_document_is_bos_instruction_eos_and_all_of_it_is_trained(
    direction: str, templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    modality, _ = split_direction(direction)
    one = sample(medium(modality, frames=20), text("a red circle"))
    document = render_document(one, templates, vocabulary, text_tokenizer, draw=0, seed=1, directions={direction: 1.0})
    ids = document.token_ids
    assert (ids[0], ids[-1], ids[-2]) == (vocabulary.bos_id, vocabulary.eos_id, vocabulary.marker("<eos>"))
    assert document.loss_spans == ((0, len(ids)),)
    assert document.borders == ()
    assert document.direction == direction
    assert media_of(ids, vocabulary) == {str(modality): 1}
    assert int(ids.max()) < vocabulary.size <= 1 << 16


@pytest.mark.parametrize("direction", PAIR_DIRECTIONS)
def test_the_ids_of_a_prompt_are_the_first_ids_of_the_document(
    direction: str, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    modality, to_text = split_direction(direction)
    told = {"instruction": "Do as asked.", "text": "two stars, a cross", "medium": medium(modality)}
    document = write_token_ids(pair_pieces(direction, **told), vocabulary, text_tokenizer).token_ids
    for start_medium in (False, True):
        prompt = prompt_token_ids(direction, vocabulary, text_tokenizer, **told, start_medium=start_medium)
        assert prompt.tolist() == document[: len(prompt)].tolist()
    if not to_text:
        assert prompt[-1] == vocabulary.block(modality).start_id


@given(segments=segments_of_any_kind)
def test_a_document_of_any_segments_keeps_media_whole_and_texts_in_order(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, segments: list[Segment]
):
    pieces = segment_pieces(segments, borders=True)
    written = write_token_ids(pieces, vocabulary, text_tokenizer)
    ids = written.token_ids
    expected = Counter(str(s.modality) for s in segments if s.codes is not None)
    assert media_of(ids, vocabulary) == expected
    assert list(written.borders) == sorted(set(written.borders))
    assert all(0 < border < len(ids) for border in written.borders)
    # No border is inside a medium: what is left of it is balanced by itself.
    for border in written.borders:
        media_of(ids[:border], vocabulary)
    said = "".join("".join((s.text or "").split()) for s in segments)
    text_ids = [i for i in ids[1:-1].tolist() if i < vocabulary.text_size]
    assert "".join(text_tokenizer.decode(text_ids).split()) == said


@given(segments=segments_of_any_kind)
def test_ids_spell_the_string_that_was_written(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, segments: list[Segment]
):
    """The two writings of one list of pieces say the same, letter for letter, and every start marker has its end."""
    pieces = [MarkerPiece("[Human]"), *segment_pieces(segments), MarkerPiece("<eos>")]
    spelled = spell_token_ids(write_token_ids(pieces, vocabulary, text_tokenizer).token_ids, vocabulary, text_tokenizer)
    assert spelled == f"<s>{write_text(pieces, vocabulary)}</s>"
    for block in vocabulary.blocks.values():
        assert spelled.count(block.start) == spelled.count(block.end) == sum(s.modality == block.name for s in segments)


@given(segments=segments_of_any_kind)
def test_borders_never_change_the_ids(vocabulary: Vocabulary, text_tokenizer: TextTokenizer, segments: list[Segment]):
    with_borders = write_token_ids(segment_pieces(segments, borders=True), vocabulary, text_tokenizer)
    without = write_token_ids(segment_pieces(segments), vocabulary, text_tokenizer)
    assert with_borders.token_ids.tolist() == without.token_ids.tolist()


def test_segments_are_joined_by_one_space_unless_there_is_white_space(vocabulary: Vocabulary):
    picture = replace(medium(Modality.IMAGE), codes=np.array([[1]], np.uint16))
    shown = "<soim><\U0001f4401><eoim>"
    cases: list[tuple[list[Segment | str], str]] = [
        (["a", "b"], "a b"),
        (["a ", "b"], "a b"),
        (["a ", " b"], "a  b"),
        (["a\n\n", "b"], "a\n\nb"),
        (["a", picture, "b"], f"a {shown} b"),
        (["a\n", picture, "\nb"], f"a\n{shown}\nb"),
        ([picture, picture], f"{shown} {shown}"),
        (["a", "", "b"], "a b"),
    ]
    for given_segments, expected in cases:
        segments = [text(item) if isinstance(item, str) else item for item in given_segments]
        assert write_text(segment_pieces(segments), vocabulary) == expected


def test_an_interleaved_document_may_be_split_in_front_of_any_segment(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    one = sample(text("red", "text"), medium(Modality.IMAGE), text("circle", "text"), text("red", "text"))
    document = render_document(one, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    assert document.direction == "interleaved"
    red, circle, space = (text_tokenizer.encode(word) for word in ("red", " circle", " "))
    first = 1 + len(red)
    after_picture = first + len(space) + 34
    assert document.borders == (first, after_picture, after_picture + len(circle))
    assert document.token_ids[after_picture - 1] == vocabulary.block("image").end_id


def test_the_same_draw_is_the_same_document_and_draws_differ(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    one = sample(medium(Modality.MUSIC), text("a slow drone"))

    def draw(number: int, seed: int = 3) -> tuple[int, ...]:
        return tuple(
            render_document(one, templates, vocabulary, text_tokenizer, draw=number, seed=seed).token_ids.tolist()
        )

    assert draw(0) == draw(0)
    assert len({draw(number) for number in range(44)}) > 35, "44 epochs of music must not be the same 44 strings"
    assert draw(0, seed=4) != draw(0)


def test_directions_come_in_the_configured_shares(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    shares = {"speech_to_text": 0.25, "text_to_speech": 0.75}
    found = Counter(
        render_document(
            sample(medium(Modality.SPEECH, 2), text("hi"), sample_id=f"s/{n}"),
            templates,
            vocabulary,
            text_tokenizer,
            draw=0,
            seed=0,
            directions=shares,
        ).direction
        for n in range(1000)
    )
    assert 200 < found["speech_to_text"] < 300


def test_several_texts_are_alternatives(templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
    one = sample(medium(Modality.IMAGE), text("first wording"), text("second wording"), text("  "))
    documents = {
        text_tokenizer.decode([i for i in document.token_ids[1:-1].tolist() if i < vocabulary.text_size])
        for draw in range(60)
        for document in [render_document(one, templates, vocabulary, text_tokenizer, draw=draw, seed=0)]
    }
    told = "".join(documents)
    assert "first wording" in told
    assert "second wording" in told
    assert not any("first" in document and "second wording" in document for document in documents)


@pytest.mark.parametrize(
    ("segments", "direction", "reason"),
    [
        ([medium(Modality.IMAGE)], "image_to_text", "text_missing"),
        ([medium(Modality.IMAGE), text(" \n")], "text_to_image", "text_missing"),
        ([text("a")], "text_to_image", "media_missing"),
        ([medium(Modality.IMAGE), medium(Modality.IMAGE), text("a")], "image_to_text", "media_unexpected"),
        ([medium(Modality.MUSIC), text("a")], "image_to_text", "media_unexpected"),
        ([text("")], "interleaved", "text_missing"),
        ([text("a")], "dialogue", "turns_out_of_order"),
    ],
)
def test_a_sample_that_cannot_be_told_that_way_has_a_reason(
    segments: list[Segment],
    direction: str,
    reason: str,
    templates: Templates,
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
):
    with pytest.raises(SampleError) as raised:
        render_document(
            sample(*segments), templates, vocabulary, text_tokenizer, draw=0, seed=0, directions={direction: 1.0}
        )
    assert raised.value.reason == reason


def test_a_prompt_without_what_it_asks_about_has_a_reason():
    with pytest.raises(SampleError, match="media_missing"):
        prompt_pieces("image_to_text", instruction="What is this?")
    with pytest.raises(SampleError, match="text_missing"):
        prompt_pieces("text_to_image", instruction="Draw this.")


def test_a_request_in_own_words_is_spaced_as_upstream_spaces_it(vocabulary: Vocabulary):
    assert write_text(custom_prompt_pieces("Sing."), vocabulary) == "[Human]: Sing.<eoh>[MMGPT]: "


def test_a_marker_the_vocabulary_lacks_is_an_error_or_text(vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
    with pytest.raises(ConfigError, match="'<eom>'"):
        write_token_ids([MarkerPiece("<eom>")], vocabulary, text_tokenizer)
    spelled = write_token_ids([TextPiece("x"), MarkerPiece("<eom>", as_text=True)], vocabulary, text_tokenizer)
    assert spelled.token_ids[1:-1].tolist() == text_tokenizer.encode("x<eom>")


class _Letters:
    """A tokenizer of one id a letter."""

    opening = ""

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        del continues
        return [3 + ord(letter) % 64 for letter in text]
