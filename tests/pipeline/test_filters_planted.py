"""Planted faults among clean samples, under the filters that are shipped: each is found, none besides, all are counted.

Run on the sample corpora, which are always there, and on the real inputs of ../shared/corpora, where they are.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from configs.load import load_config
from pipeline.corpus import CorpusConfig, corpus_names, load_corpus
from pipeline.filters.apply import filter_decoded, filter_raw
from pipeline.media import make_decoder
from pipeline.sample_corpora.build import build, plan_build
from pipeline.sample_corpora.config import SampleCorporaConfig
from pipeline.samples import Filtered, RawMedia, RawSample, RawSegment, RawText
from pipeline.tokenization import Decoded, DecodedSample, decode_samples

Fault = Callable[[RawSample], RawSample]


@pytest.fixture(scope="module")
def sample_corpora(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few items of every sample corpus, as the default route writes them."""
    output = tmp_path_factory.mktemp("corpora") / "sample"
    config = load_config(
        repository / "configs" / "sample_corpora" / "tiny.toml", SampleCorporaConfig, [f"output={output}", "workers=1"]
    )
    build(plan_build(config, limit=6))
    return output


@pytest.fixture(params=["sample", "shared"])
def corpora(request: pytest.FixtureRequest) -> Path:
    """Clean corpora of our own making, and real ones."""
    return request.getfixturevalue("sample_corpora" if request.param == "sample" else "shared_corpora")


def shipped(corpus: str, root: Path, repository: Path) -> CorpusConfig:
    """The corpus's config in this repository, with another folder to read and its lists where they are."""
    config = load_config(repository / "configs" / "corpora" / f"{corpus}.toml", CorpusConfig, [f"root={root}"])
    listed = config.filters.boilerplate_file
    filters = config.filters.model_copy(update={"boilerplate_file": repository / listed if listed else None})
    return config.model_copy(update={"filters": filters})


def clean_samples(config: CorpusConfig) -> list[RawSample]:
    reader = load_corpus(config)
    results = [result for source in reader.sources() for result in reader.read(source)]
    # GigaSpeech's own tags for noise; whatever else a clean corpus gives is a sample.
    assert all(isinstance(result, RawSample) or result.reason == "garbage_tag" for result in results)
    return [result for result in results if isinstance(result, RawSample)]


def sift(samples: Sequence[RawSample], config: CorpusConfig) -> list[Decoded]:
    raw = [filter_raw(sample, config.filters) for sample in samples]
    return list(filter_decoded(decode_samples(raw, make_decoder(config.media, config.windows)), config.filters))


def media(change: Callable[[bytes], bytes]) -> Fault:
    """Other bytes for every picture or sound, and no word of the corpus about its size."""

    def plant(sample: RawSample) -> RawSample:
        def changed(segment: RawSegment) -> RawSegment:
            return replace(segment, data=change(segment.data)) if isinstance(segment, RawMedia) else segment

        quality = {name: number for name, number in sample.quality.items() if name not in ("width", "height")}
        return replace(sample, segments=tuple(map(changed, sample.segments)), quality=quality)

    return plant


def text(words: str) -> Fault:
    """Another text."""

    def plant(sample: RawSample) -> RawSample:
        segments = [replace(s, text=words) if isinstance(s, RawText) else s for s in sample.segments]
        return replace(sample, segments=tuple(segments))

    return plant


def one_text(words: str) -> Fault:
    """Another text, and no more of the document's."""

    def plant(sample: RawSample) -> RawSample:
        pictures = [segment for segment in sample.segments if isinstance(segment, RawMedia)]
        return replace(sample, segments=(*pictures, RawText("text", words)))

    return plant


def number(**said: float) -> Fault:
    """Other numbers of the corpus."""
    return lambda sample: replace(sample, quality={**sample.quality, **said})


def picture(size: tuple[int, int], *, noise: int = 90, text_share: float = 0.0) -> Callable[[bytes], bytes]:
    """A picture of noise, or of one grey with a line of something lighter on it."""

    def draw(_: bytes) -> bytes:
        pixels = np.random.default_rng(0).integers(128 - noise, 129 + noise, (size[1], size[0], 3)).astype(np.uint8)
        pixels[: round(text_share * size[1])] += np.uint8(20)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return draw


def sound(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[bytes], bytes]:
    """The same sound, changed and stored as wav."""

    def stored(data: bytes) -> bytes:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        file = io.BytesIO()
        soundfile.write(file, change(wave, rate), rate, format="WAV", subtype="FLOAT")
        return file.getvalue()

    return stored


def silence(wave: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Not digital silence: noise at -70 dB."""
    noise = np.random.default_rng(0).uniform(-0.0003, 0.0003, (round(seconds * rate), wave.shape[1]))
    return noise.astype(np.float32)


def silent_head(wave: np.ndarray, rate: int) -> np.ndarray:
    return np.concatenate([silence(wave, rate, 1.5), wave, wave])


def silent_in_between(wave: np.ndarray, rate: int) -> np.ndarray:
    return np.concatenate([wave[: rate // 2], silence(wave, rate, 4.9), wave])


def pause(sample: RawSample) -> RawSample:
    """Said five times, with a pause before the last one that is longer than any that is allowed, yet no half of it."""
    paused = sound(lambda wave, rate: np.concatenate([*[wave] * 4, silence(wave, rate, 5.5), wave]))
    segments = [replace(s, text=" ".join([s.text] * 5)) if isinstance(s, RawText) else s for s in sample.segments]
    return media(paused)(replace(sample, segments=tuple(segments)))


def far_too_loud(wave: np.ndarray, rate: int) -> np.ndarray:
    return np.clip(wave / np.abs(wave).max() * 30, -1, 1)


GERMAN = "Zwei Menschen in Gummistiefeln laufen durch den Regen und lachen"
BANNER = "Wireless mouse, black. Click image to enlarge"
SPAM = "cheap shoes online " * 5

FAULTS: list[tuple[str, str, Fault]] = [
    ("laion2b", "language_foreign", text(GERMAN)),
    ("laion2b", "boilerplate", text(BANNER)),
    ("laion2b", "words_repeated", text(SPAM)),
    ("laion2b", "characters_repeated", text("Look at this woooooooooooooooooow")),
    ("laion2b", "letters_too_few", text("4-1/2 x 38 x 0.75 (100-2004) cm")),
    ("laion2b", "caption_too_short", text("cat")),
    ("laion2b", "caption_too_long", text(" ".join(map(str, range(300))))),
    ("laion2b", "similarity_too_low", number(similarity=0.2)),
    ("laion2b", "unsafe", number(punsafe=0.9)),
    ("laion2b", "watermarked", number(pwatermark=0.95)),
    ("laion2b", "picture_too_small", number(width=120, height=400)),
    ("laion2b", "picture_too_small", media(picture((120, 300)))),
    ("laion2b", "picture_too_long", media(picture((800, 200)))),
    ("laion2b", "picture_flat", media(picture((300, 300), noise=0))),
    ("laion2b", "picture_flat", media(picture((300, 300), noise=3))),
    ("laion_aesthetics", "aesthetic_too_low", number(aesthetic=5.2)),
    ("laion_coco", "picture_flat", media(picture((300, 300), noise=1, text_share=0.02))),
    ("journeydb", "picture_flat", media(picture((300, 300), noise=0))),
    ("mmc4_core_ff", "words_repeated", text(SPAM)),
    ("mmc4_core_ff", "language_foreign", one_text(GERMAN)),
    ("mmc4_core_ff", "picture_count", lambda sample: replace(sample, segments=sample.segments * 31)),
    ("mls", "speech_rate", text("so many words that nobody could say them in the time there is " * 12)),
    ("mls", "speech_rate", text("no")),
    ("mls", "speech_pause", pause),
    ("mls", "speech_silent", media(sound(lambda wave, rate: silence(wave, rate, len(wave) / rate)))),
    ("commonvoice", "speech_pause", pause),
    ("youtube_music", "music_head_silent", media(sound(silent_head))),
    ("youtube_music", "music_silent", media(sound(silent_in_between))),
    ("youtube_music", "music_clipped", media(sound(far_too_loud))),
    ("musiccaps", "music_head_silent", media(sound(silent_head))),
]


@pytest.mark.parametrize("corpus", corpus_names())
def test_the_shipped_filters_leave_nothing_out_of_clean_corpora(corpus: str, corpora: Path, repository: Path):
    if not (corpora / corpus).is_dir():
        pytest.skip(f"{corpora.name} has no {corpus}")
    config = shipped(corpus, corpora / corpus, repository)
    samples = clean_samples(config)
    assert samples
    assert [getattr(one, "reason", "kept") for one in sift(samples, config)] == ["kept"] * len(samples)


@pytest.mark.parametrize(("corpus", "kind"), [("mls", "speech"), ("youtube_music", "music")])
def test_nor_out_of_synthetic_sounds(corpus: str, kind: str, shared_corpora: Path, repository: Path):
    config = shipped(corpus, shared_corpora / "synthetic" / kind, repository)
    samples = clean_samples(config)
    assert [getattr(one, "reason", "kept") for one in sift(samples, config)] == ["kept"] * len(samples)


@pytest.mark.parametrize(("corpus", "reason", "fault"), FAULTS, ids=[f"{name}-{why}" for name, why, _ in FAULTS])
def test_exactly_what_was_planted_is_left_out(corpus: str, reason: str, fault: Fault, corpora: Path, repository: Path):
    config = shipped(corpus, corpora / corpus, repository)
    clean = clean_samples(config)[:6]
    planted = [replace(fault(sample), sample_id=f"{sample.sample_id}-planted") for sample in clean[::2]]
    results = sift([*clean, *planted], config)
    left_out = [result for result in results if not isinstance(result, DecodedSample)]
    assert Counter(result.reason for result in left_out) == {reason: len(planted)}
    assert all(isinstance(result, Filtered) for result in left_out)
    assert [result.sample_id for result in left_out] == [sample.sample_id for sample in planted]


def test_listed_placeholders_are_found_wherever_they_occur(corpora: Path, repository: Path, tmp_path: Path):
    """The picture of a server that has no picture: the same bytes under many captions."""
    config = shipped("laion_coco", corpora / "laion_coco", repository)
    clean = clean_samples(config)[:6]
    dead_link = picture((300, 300), text_share=0.5)
    planted = [replace(media(dead_link)(sample), sample_id=f"{sample.sample_id}-planted") for sample in clean[:3]]
    before = sift(planted, config)
    assert all(isinstance(result, DecodedSample) for result in before), "it looks like any other picture"
    hashes = {segment.clip.media_sha256 for sample in before for segment in sample.segments if hasattr(segment, "clip")}
    (tmp_path / "placeholders.txt").write_text("\n".join(hashes), encoding="utf-8")
    filters = config.filters.model_copy(update={"placeholders_file": tmp_path / "placeholders.txt"})
    results = sift([*clean, *planted], config.model_copy(update={"filters": filters}))
    left_out = [(r.sample_id, r.reason) for r in results if not isinstance(r, DecodedSample)]
    assert left_out == [(sample.sample_id, "placeholder") for sample in planted]
