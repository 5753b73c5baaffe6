"""Laws of all filters: the order of rules decides nothing, thresholds are monotone, a folder of files is the whole truth."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.filters.rules
from pipeline.filters.apply import filter_decoded, filter_raw
from pipeline.filters.config import DECODED_RULES, RAW_RULES, SCORED_RULES, FilterConfig, rule_name, rules_in_force
from pipeline.filters.measurements import measure_sounds
from pipeline.filters.view import RuleConfig, view_decoded
from pipeline.samples import Filtered, RawMedia, RawSample, RawText
from pipeline.sounds import silence_share
from pipeline.tokenization import Clip, Decoded, DecodedMedia, DecodedSample
from shards.records import Provenance, Segment
from shards.vocabulary import Modality

WHERE = Provenance("a.tar")
WORDS = st.sampled_from(["a", "cat", "red", "the", "buy now", "42", "!!!!!!", "Katze", "auf dem Tisch", "shoe"])
SHARES = st.floats(0.0, 1.0, allow_nan=False)
AMOUNTS = st.floats(0.0, 6.0, allow_nan=False)

# Key -> how its thresholds are drawn, and whether a larger one keeps more.
RAW_KEYS = {
    "min_caption_chars": (st.integers(0, 40), False),
    "max_caption_chars": (st.integers(1, 40), True),
    "min_words": (st.integers(0, 12), False),
    "max_words": (st.integers(1, 12), True),
    "min_letter_share": (SHARES, False),
    "max_repeated_words": (SHARES, True),
    "max_repeated_characters": (SHARES, True),
    "min_pictures": (st.integers(1, 4), False),
    "max_pictures": (st.integers(1, 4), True),
    "min_similarity": (SHARES, False),
    "max_punsafe": (SHARES, True),
    "max_pwatermark": (SHARES, True),
    "min_aesthetic": (SHARES, False),
    "min_side_px": (st.integers(1, 400), False),
    "max_aspect_ratio": (st.floats(1.0, 5.0), True),
}
DECODED_KEYS = {
    "min_speech_s": (AMOUNTS, False),
    "max_speech_s": (st.floats(0.1, 6.0), True),
    "min_chars_per_s": (st.floats(0.0, 40.0), False),
    "max_chars_per_s": (st.floats(0.1, 40.0), True),
    "max_speech_silence_share": (SHARES, True),
    "max_pause_s": (AMOUNTS, True),
    "max_silence_share": (SHARES, True),
    "max_head_silence_s": (AMOUNTS, True),
    "max_clipped_share": (SHARES, True),
    "min_picture_spread": (st.floats(0.0, 120.0), False),
}


@st.composite
def raw_samples(draw: st.DrawFn) -> RawSample:
    pictures = [RawMedia("image", Modality.IMAGE, b"x")] * draw(st.integers(1, 4))
    captions = [
        RawText("caption", " ".join(draw(st.lists(WORDS, max_size=10)))) for _ in range(draw(st.integers(0, 2)))
    ]
    sides = st.sampled_from([50.0, 100.0, 250.0, 500.0])
    quality = {"width": draw(sides), "height": draw(sides)}
    for name in ("similarity", "punsafe", "pwatermark", "aesthetic"):
        if draw(st.booleans()):
            quality[name] = draw(SHARES)
    return RawSample("c/1", "c", "train", (*pictures, *captions), WHERE, quality)


@st.composite
def waves(draw: st.DrawFn, rate: int) -> np.ndarray:
    """Pieces of silence, sound and sound at full scale, a tenth of a second or more each."""
    pieces = draw(
        st.lists(st.tuples(st.sampled_from([0.0, 0.0005, 0.2, 1.0]), st.integers(1, 20)), min_size=1, max_size=5)
    )
    return np.concatenate([np.full(tenths * rate // 10 + 7, level, np.float32) for level, tenths in pieces])


@st.composite
def decoded_samples(draw: st.DrawFn) -> DecodedSample:
    kind = draw(st.sampled_from([Modality.IMAGE, Modality.SPEECH, Modality.MUSIC]))
    if kind is Modality.IMAGE:
        shades = np.array(draw(st.lists(st.integers(0, 255), min_size=4, max_size=4)), np.uint8).reshape(2, 2, 1)
        medium = np.repeat(np.kron(shades, np.ones((112, 112, 1), np.uint8)), 3, axis=2)
    else:
        medium = draw(waves(kind.rate.sample_rate_hz))
    text = Segment("transcript", Modality.TEXT, text=draw(WORDS))
    return DecodedSample("c/1", "c", "train", (DecodedMedia(str(kind), kind, Clip(medium, "0")), text), WHERE)


def configs(keys: dict[str, tuple[st.SearchStrategy[float], bool]]) -> st.SearchStrategy[FilterConfig]:
    drawn = st.fixed_dictionaries({}, optional={key: values for key, (values, _) in keys.items()})
    return st.builds(lambda some, unknown: FilterConfig(**some, keep_unknown=unknown), drawn, st.booleans())


def decoded_outcome(sample: DecodedSample, config: FilterConfig, rules: tuple = DECODED_RULES) -> Decoded:
    (outcome,) = filter_decoded([sample], config, rules=rules)
    return outcome


@given(raw_samples(), configs(RAW_KEYS), st.permutations(RAW_RULES))
def test_the_order_of_rules_does_not_change_what_is_kept(sample: RawSample, config: FilterConfig, rules: list):
    one, other = filter_raw(sample, config), filter_raw(sample, config, rules=tuple(rules))
    assert isinstance(one, Filtered) == isinstance(other, Filtered)
    if isinstance(one, RawSample):
        assert one == other == sample


@given(decoded_samples(), configs(DECODED_KEYS), st.permutations(DECODED_RULES))
def test_nor_does_the_order_of_those_that_measure(sample: DecodedSample, config: FilterConfig, rules: list):
    one, other = decoded_outcome(sample, config), decoded_outcome(sample, config, tuple(rules))
    assert isinstance(one, Filtered) == isinstance(other, Filtered)
    if isinstance(one, DecodedSample):
        assert isinstance(other, DecodedSample) and dict(one.quality) == dict(other.quality)


@settings(max_examples=30)
@given(st.data(), raw_samples(), st.booleans())
@pytest.mark.parametrize("key", RAW_KEYS)
def test_a_milder_threshold_keeps_whatever_a_stricter_one_keeps(
    key: str, data: st.DataObject, sample: RawSample, unknown: bool
):
    values, larger_is_milder = RAW_KEYS[key]
    low, high = sorted([data.draw(values), data.draw(values)])
    strict, mild = (low, high) if larger_is_milder else (high, low)
    if isinstance(filter_raw(sample, FilterConfig(**{key: strict}, keep_unknown=unknown)), RawSample):
        assert isinstance(filter_raw(sample, FilterConfig(**{key: mild}, keep_unknown=unknown)), RawSample)


@settings(max_examples=30)
@given(st.data(), decoded_samples())
@pytest.mark.parametrize("key", DECODED_KEYS)
def test_the_same_holds_for_what_is_measured(key: str, data: st.DataObject, sample: DecodedSample):
    values, larger_is_milder = DECODED_KEYS[key]
    low, high = sorted([data.draw(values), data.draw(values)])
    strict, mild = (low, high) if larger_is_milder else (high, low)
    if isinstance(decoded_outcome(sample, FilterConfig(**{key: strict})), DecodedSample):
        assert isinstance(decoded_outcome(sample, FilterConfig(**{key: mild})), DecodedSample)


@given(waves(32_000))
def test_silence_and_clipping_are_what_a_plain_count_finds(wave: np.ndarray):
    clip = DecodedMedia("music", Modality.MUSIC, Clip(wave, "0"))
    numbers = measure_sounds(view_decoded(DecodedSample("c/1", "c", "train", (clip,), WHERE)))
    loud = np.flatnonzero(np.abs(wave) >= 0.001)
    head_s = (loud[0] if len(loud) else len(wave)) / 32_000
    assert head_s - 0.02 <= numbers["head_silence_s"] <= head_s
    assert numbers["silence_share"] == silence_share(wave, 32_000)
    assert numbers["clipped_share"] == np.mean(wave == 1.0)


@given(waves(16_000))
def test_the_longest_pause_is_the_longest_run_of_silent_frames(wave: np.ndarray):
    clip = DecodedMedia("speech", Modality.SPEECH, Clip(wave, "0"))
    numbers = measure_sounds(view_decoded(DecodedSample("c/1", "c", "train", (clip,), WHERE)))
    frames = "".join("x" if np.abs(wave[at : at + 320]).max() >= 0.001 else "." for at in range(0, len(wave), 320))
    assert numbers["longest_pause_s"] == pytest.approx(0.02 * max(map(len, frames.split("x"))))
    assert numbers["speech_silence_share"] == pytest.approx(frames.count(".") / len(frames))


def test_every_file_in_the_folder_is_one_rule_and_every_rule_a_file():
    files = {module.name for module in pkgutil.iter_modules(pipeline.filters.rules.__path__)}
    rules = [*RAW_RULES, *DECODED_RULES, *SCORED_RULES]
    assert sorted(files) == sorted(map(rule_name, rules))
    assert len(rules) == len(files)


@pytest.mark.parametrize("rule", [*RAW_RULES, *DECODED_RULES, *SCORED_RULES], ids=rule_name)
def test_a_rule_has_a_reason_to_be_and_keys_of_its_own_that_switch_it_on(rule):
    module = import_module(rule.__name__)
    assert module.__doc__ and module.leaves_out.__doc__ and module.Keys.__doc__
    assert issubclass(FilterConfig, module.Keys) and issubclass(module.Keys, RuleConfig)
    assert rules_in_force(FilterConfig(), (module,)) == ()
    others = [other for other in (*RAW_RULES, *DECODED_RULES, *SCORED_RULES) if other is not module]
    assert all(module.Keys.__annotations__.keys().isdisjoint(other.Keys.__annotations__) for other in others)


def test_every_threshold_is_held_to_these_laws():
    """A new rule's keys are listed above, or here with the reason why not."""
    others = {"keep_unknown", "boilerplate", "boilerplate_file", "placeholders", "placeholders_file"}  # no numbers
    others |= {"languages", "min_language_confidence"}  # test_filters.py
    others |= {"min_clip_score", "clip_plug", "clip_model", "clip_batch"}  # test_filters_clip.py
    assert set(FilterConfig.model_fields) == {*RAW_KEYS, *DECODED_KEYS, *others}
