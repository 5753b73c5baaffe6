"""Filters: off until a key is set, one named reason each, nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.apply import filter_decoded, filter_raw, measure
from pipeline.filters.config import DECODED_RULES, RAW_RULES, FilterConfig
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject
from pipeline.tokenization import Clip, DecodedMedia, DecodedSample
from shards.records import Provenance, Segment
from shards.vocabulary import Modality

WHERE = Provenance("a.tar")


def pair(caption: str = "a cat", **quality: float) -> RawSample:
    segments = (RawMedia("image", Modality.IMAGE, b"x"), RawText("caption", caption))
    return RawSample("c/1", "c", "train", segments, WHERE, quality)


def spoken(seconds: float, transcript: str = "hello there") -> DecodedSample:
    wave = np.full(round(seconds * 16_000), 0.1, np.float32)
    clip = DecodedMedia("speech", Modality.SPEECH, Clip(wave, "0"))
    return DecodedSample("c/1", "c", "train", (clip, Segment("transcript", Modality.TEXT, text=transcript)), WHERE)


def played(silent_share: float) -> DecodedSample:
    wave = np.full(32_000, 0.1, np.float32)
    wave[: round(silent_share * 32_000)] = 0.0
    clip = DecodedMedia("music", Modality.MUSIC, Clip(wave, "0"))
    return DecodedSample("c/1", "c", "train", (clip, Segment("caption", Modality.TEXT, text="a tone")), WHERE)


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


def test_every_rule_has_its_own_name_and_says_why():
    names = [rule.__name__ for rule in (*RAW_RULES, *DECODED_RULES)]
    assert len(set(names)) == len(names)
    assert all(rule.__doc__ for rule in (*RAW_RULES, *DECODED_RULES))


def test_filters_of_the_shipped_configs_are_off(repository: Path):
    from configs.load import load_config
    from pipeline.corpus import CorpusConfig, corpus_names

    for name in corpus_names():
        config = load_config(repository / "configs" / "corpora" / f"{name}.toml", CorpusConfig)
        assert config.filters == FilterConfig()
