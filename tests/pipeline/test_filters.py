"""Filters: off until a key is set, one named reason each, nothing lost."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.filters.apply import filter_decoded, filter_raw, measure
from pipeline.filters.config import FilterConfig, filter_facts
from pipeline.filters.rules.language_foreign import LONG_KNOWN
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject
from pipeline.tokenization import Clip, DecodedMedia, DecodedSample
from shards.errors import ConfigError
from shards.records import Provenance, Segment
from shards.vocabulary import Modality

WHERE = Provenance("a.tar")
ENGLISH = "two people in rubber boots walk through the rain"


def pair(caption: str = "a cat", **quality: float) -> RawSample:
    segments = (RawMedia("image", Modality.IMAGE, b"x"), RawText("caption", caption))
    return RawSample("c/1", "c", "train", segments, WHERE, quality)


def page(pictures: int, size: tuple[int, int] = (60, 60), text: tuple[str, ...] = ("words",)) -> RawSample:
    """A document whose first picture has the size; the corpus tells none."""
    sizes = [size, *[(60, 60)] * (pictures - 1)]
    media = [RawMedia("image", Modality.IMAGE, jpeg(Image.new("RGB", one))) for one in sizes]
    return RawSample("c/1", "c", "train", (*media, *(RawText("text", one) for one in text)), WHERE)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def spoken(seconds: float, transcript: str = "hello there", pause_s: float = 0.0) -> DecodedSample:
    wave = np.full(round(seconds * 16_000), 0.1, np.float32)
    wave[8_000 : 8_000 + round(pause_s * 16_000)] = 0.0005
    clip = DecodedMedia("speech", Modality.SPEECH, Clip(wave, "0"))
    return DecodedSample("c/1", "c", "train", (clip, Segment("transcript", Modality.TEXT, text=transcript)), WHERE)


def played(silent_share: float, level: float = 0.1) -> DecodedSample:
    """A second that begins silent."""
    wave = np.full(32_000, level, np.float32)
    wave[: round(silent_share * 32_000)] = 0.0
    clip = DecodedMedia("music", Modality.MUSIC, Clip(wave, "0"))
    return DecodedSample("c/1", "c", "train", (clip, Segment("caption", Modality.TEXT, text="a tone")), WHERE)


def drawn(spread: int, sha256: str = "0") -> DecodedSample:
    """A board of squares that differ from their mean by ``spread``."""
    board = np.indices((224, 224)).sum(0) // 32 % 2
    pixels = np.repeat((128 - spread + 2 * spread * board)[..., None], 3, axis=2).astype(np.uint8)
    clip = DecodedMedia("image", Modality.IMAGE, Clip(pixels, sha256))
    return DecodedSample("c/1", "c", "train", (clip, Segment("caption", Modality.TEXT, text="a board")), WHERE)


def reason(result: object) -> str:
    return result.reason if isinstance(result, Filtered) else "kept"


@given(
    st.dictionaries(st.sampled_from(["similarity", "punsafe", "width", "height"]), st.floats(allow_nan=True)), st.text()
)
def test_without_a_threshold_everything_is_kept(quality: dict[str, float], caption: str):
    sample = pair(caption, **quality)
    assert filter_raw(sample, FilterConfig()) is sample


@pytest.mark.parametrize(
    ("config", "bad", "good", "name"),
    [
        ({"min_caption_chars": 5}, pair("cat"), pair("a cat"), "caption_too_short"),
        ({"max_caption_chars": 5}, pair("a cats"), pair("a cat"), "caption_too_long"),
        ({"min_side_px": 200}, pair(width=300, height=100), pair(width=300, height=200), "picture_too_small"),
        ({"max_aspect_ratio": 2}, pair(width=100, height=300), pair(width=100, height=200), "picture_too_long"),
        ({"min_similarity": 0.3}, pair(similarity=0.29), pair(similarity=0.3), "similarity_too_low"),
        ({"max_punsafe": 0.5}, pair(punsafe=0.6), pair(punsafe=0.5), "unsafe"),
        ({"max_pwatermark": 0.5}, pair(pwatermark=0.6), pair(pwatermark=0.5), "watermarked"),
        ({"min_aesthetic": 6}, pair(aesthetic=5.9), pair(aesthetic=6.0), "aesthetic_too_low"),
        ({"min_words": 2}, pair("cat"), pair("a cat"), "word_count"),
        ({"max_words": 2}, pair("a cat sleeps"), pair("a cat"), "word_count"),
        ({"min_letter_share": 0.5}, pair("12 x 34 cm"), pair("cat 12"), "letters_too_few"),
        ({"max_repeated_characters": 0.3}, pair("no!!!!!!!!"), pair("no!!! really not"), "characters_repeated"),
        ({"max_repeated_words": 0.3}, pair("buy shoes now " * 4), pair("red shoes on a red rug"), "words_repeated"),
        (
            {"boilerplate": ["Click to enlarge"]},
            pair("Shoe.  CLICK to\nenlarge!"),
            pair("a click to enlarger"),
            "boilerplate",
        ),
        ({"languages": ["en"]}, pair("ein Foto einer Katze auf dem Tisch"), pair(ENGLISH), "language_foreign"),
        ({"min_pictures": 2}, page(1), page(2), "picture_count"),
        ({"max_pictures": 2}, page(3), page(2), "picture_count"),
        ({"min_side_px": 40}, page(2, (60, 39)), page(2, (60, 40)), "picture_too_small"),
        ({"max_aspect_ratio": 2}, page(2, (121, 60)), page(2, (60, 120)), "picture_too_long"),
        ({"min_words": 4}, page(1, text=("one", "two three")), page(1, text=("one two", "three four")), "word_count"),
    ],
)
def test_a_rule_on_what_the_corpus_says(config: dict[str, float], bad: RawSample, good: RawSample, name: str):
    assert reason(filter_raw(bad, FilterConfig.model_validate(config))) == name
    assert reason(filter_raw(good, FilterConfig.model_validate(config))) == "kept"


@pytest.mark.parametrize(
    ("config", "bad", "good", "name"),
    [
        ({"min_speech_s": 1.0}, spoken(0.9), spoken(1.0), "speech_duration"),
        ({"max_speech_s": 1.0}, spoken(1.1), spoken(1.0), "speech_duration"),
        ({"max_chars_per_s": 20}, spoken(0.5), spoken(1.0), "speech_rate"),
        ({"min_chars_per_s": 5}, spoken(3.0), spoken(1.0), "speech_rate"),
        ({"max_silence_share": 0.5}, played(0.8), played(0.4), "music_silent"),
        ({"max_head_silence_s": 0.5}, played(0.6), played(0.5), "music_head_silent"),
        ({"max_clipped_share": 0.1}, played(0.5, level=1.0), played(0.92, level=-1.0), "music_clipped"),
        ({"max_speech_silence_share": 0.5}, spoken(2.0, pause_s=1.2), spoken(2.0, pause_s=0.8), "speech_silent"),
        ({"max_pause_s": 1.0}, spoken(4.0, pause_s=1.2), spoken(4.0, pause_s=0.8), "speech_pause"),
        ({"min_picture_spread": 4}, drawn(3), drawn(5), "picture_flat"),
        ({"placeholders": ["A" * 64]}, drawn(50, sha256="a" * 64), drawn(50, sha256="b" * 64), "placeholder"),
    ],
)
def test_a_rule_on_what_was_measured(config: dict[str, float], bad: DecodedSample, good: DecodedSample, name: str):
    results = list(filter_decoded([bad, good], FilterConfig.model_validate(config)))
    assert [reason(result) for result in results] == [name, "kept"]


@pytest.mark.parametrize("quality", [{}, {"similarity": float("nan")}])
def test_an_unknown_number_keeps_a_sample_unless_asked_otherwise(quality: dict[str, float]):
    assert reason(filter_raw(pair(**quality), FilterConfig(min_similarity=0.3))) == "kept"
    strict = FilterConfig(min_similarity=0.3, keep_unknown=False)
    assert reason(filter_raw(pair(**quality), strict)) == "similarity_too_low"


def test_rules_of_other_media_do_not_touch_a_sample():
    """A threshold for pictures, in a config shared by all corpora, drops no speech for want of a number."""
    strict = FilterConfig(min_similarity=0.3, min_side_px=100, max_silence_share=0.1, keep_unknown=False)
    (kept,) = filter_decoded([spoken(1.0)], strict)
    assert reason(kept) == "kept"


def test_what_was_measured_stays_with_the_sample():
    (speech,) = filter_decoded([spoken(2.0)], FilterConfig())
    (music,) = filter_decoded([played(0.5)], FilterConfig())
    assert isinstance(speech, DecodedSample) and speech.quality["chars_per_s"] == 5.5
    assert isinstance(music, DecodedSample) and music.quality["silence_share"] == pytest.approx(0.5, abs=0.03)
    assert measure(spoken(2.0))["speech_s"] == 2.0


def test_rejects_and_filtered_inputs_pass_through_in_order():
    reject = Reject("c/2", "c", "text_empty", "m", WHERE)
    filtered = Filtered("c/3", "c", "garbage_tag", "m", WHERE)
    items = [reject, spoken(1.0), filtered]
    assert [item.sample_id for item in filter_decoded(items, FilterConfig())] == ["c/2", "c/1", "c/3"]


def test_a_picture_whose_header_cannot_be_read_is_left_to_the_decoder():
    """It must end as a reject with the fault's own name, also where unknown numbers do not do."""
    strict = FilterConfig(min_side_px=100, max_aspect_ratio=2.0, keep_unknown=False)
    assert reason(filter_raw(pair(), strict)) == "kept"


def test_sizes_that_the_corpus_tells_go_before_those_of_the_file():
    sample = pair(width=300, height=300)
    assert reason(filter_raw(sample, FilterConfig(min_side_px=200))) == "kept"


@pytest.mark.parametrize("text", ["cat", "Nike Air Max 90", "12345", ""])
def test_a_text_of_unknown_language_is_kept_unless_asked_otherwise(text: str):
    assert reason(filter_raw(pair(text), FilterConfig(languages=("en",)))) == "kept"
    assert reason(filter_raw(pair(text), FilterConfig(languages=("en",), keep_unknown=False))) == "language_foreign"


@pytest.mark.parametrize("languages", [(), ("english",), ("en", "xx")])
def test_a_language_that_nobody_tells_is_an_error_of_the_config(languages: tuple[str, ...]):
    with pytest.raises(ValueError, match="expected codes of languages"):
        FilterConfig(languages=languages)


@pytest.mark.parametrize("text", ["ein kaltes Bild", "नमस्ते दुनिया", "สวัสดีชาวโลก", "真っ昼間なのに"])
def test_letters_of_every_script_are_letters(text: str):
    assert reason(filter_raw(pair(text), FilterConfig(min_letter_share=1.0))) == "kept"


def test_lists_may_stand_in_files_with_comments(tmp_path: Path):
    phrases, hashes = tmp_path / "phrases.txt", tmp_path / "hashes.txt"
    phrases.write_text("# buttons\n\nbuy now\n", encoding="utf-8")
    hashes.write_text(f"# dead links\n{'c' * 64} seen 40 times\n", encoding="utf-8")
    config = FilterConfig(boilerplate_file=phrases, placeholders_file=hashes)
    assert [reason(filter_raw(pair(text), config)) for text in ("Buy now: shoes", "# buttons")] == [
        "boilerplate",
        "kept",
    ]
    results = filter_decoded([drawn(50, "c" * 64), drawn(50)], config)
    assert [reason(result) for result in results] == ["placeholder", "kept"]
    assert set(filter_facts(config)) == {"version", "boilerplate_file", "placeholders_file"}


def test_what_a_list_holds_is_a_fact_of_the_dataset_and_its_comments_are_not(tmp_path: Path):
    facts = []
    for name, text in (("a", "buy now\n"), ("b", "# a comment\nbuy now"), ("c", "sold out\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        facts.append(filter_facts(FilterConfig(boilerplate_file=tmp_path / name)))
    assert facts[0] == facts[1] != facts[2]


def test_a_list_that_is_not_there_or_holds_no_hash_is_an_error_that_names_its_key(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"filters\.boilerplate_file = .*none\.txt: expected a text file"):
        filter_raw(pair(), FilterConfig(boilerplate_file=tmp_path / "none.txt"))
    (tmp_path / "hashes.txt").write_text("deadbeef\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"filters\.placeholders_file = .*found 'deadbeef'"):
        list(filter_decoded([drawn(50)], FilterConfig(placeholders_file=tmp_path / "hashes.txt")))
    with pytest.raises(ValueError, match="64 hex digits, found 'deadbeef'"):
        FilterConfig(placeholders=("deadbeef",))


def test_the_worst_of_several_media_counts():
    quiet, loud = played(0.9), played(0.1)
    both = DecodedSample("c/1", "c", "train", (*loud.segments, *quiet.segments), WHERE)
    assert reason(next(iter(filter_decoded([both], FilterConfig(max_head_silence_s=0.5))))) == "music_head_silent"


def test_the_languages_that_need_no_loading_are_known_to_py3langid():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) >= LONG_KNOWN
