"""The codec report: laws of its figures, and the page end to end."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import codec_report, inspect_cli
from pipeline.codec_page import spectrogram, usage_chart, write_codec_page
from pipeline.codec_report import (
    LevelUsage,
    MeasuredOn,
    WayBack,
    figures,
    measure_codec,
    open_codec,
    usage_by_level,
)
from pipeline.tokenizers import codecs
from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.compact import load_codec, save_family
from pipeline.tokenizers.compact_image import fit_image
from pipeline.tokenizers.fit import measure
from shards.errors import ConfigError, TokenizerError
from shards.vocabulary import Modality
from tests.fixtures.fitted_codecs import music_codec, music_tensors, played, speech_codec, speech_tensors, spoken
from tests.fixtures.miniature_corpora import laion_coco, mls, youtube_music

ON = MeasuredOn(("corpus.toml",))
TIMINGS = re.compile(r"<dt>(?:en|de)code</dt><dd>[^<]*</dd>")


@st.composite
def coded(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    """Items of one codec, and the size of its codebook."""
    size, levels = draw(st.integers(1, 50)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    return [generator.integers(0, size, (length, levels)).astype(np.uint16) for length in lengths], size


@given(coded())
def test_counts_sum_to_what_was_observed_and_entropy_stays_below_its_ceiling(drawn):
    items, size = drawn
    for level in usage_by_level(items, size):
        column = np.concatenate(items)[:, level.level - 1].tolist()
        assert level.num_observed == len(column) == sum(level.counts)
        assert sorted(level.counts) == sorted(Counter(column).values())
        assert level.num_used + level.num_dead == size
        assert 0 <= level.entropy_bits <= level.ceiling_bits + 1e-9 <= np.log2(min(len(column), size)) + 2e-9
        assert level.perplexity == pytest.approx(2**level.entropy_bits)
        assert 1 - 1e-9 <= level.perplexity <= level.num_used + 1e-9
        assert 1 / level.num_used - 1e-9 <= level.most_common_share <= 1


@given(coded())
def test_figures_do_not_depend_on_the_order_of_items(drawn):
    items, size = drawn
    assert usage_by_level(items, size) == usage_by_level(items[::-1], size)


@given(st.integers(1, 300), st.integers(1, 5))
def test_uniform_codes_give_log2_of_the_codebook(size, times):
    codes = np.tile(np.arange(size, dtype=np.uint16), times)[:, None]
    (level,) = usage_by_level([codes], size)
    assert level.entropy_bits == pytest.approx(np.log2(size))
    assert level.perplexity == pytest.approx(size)
    assert level.num_dead == 0


@given(st.integers(0, 99), st.integers(1, 50))
def test_constant_codes_give_no_entropy(code, length):
    (level,) = usage_by_level([np.full((length, 1), code, np.uint16)], 100)
    assert (level.entropy_bits, level.perplexity, level.most_common_share, level.num_dead) == (0, 1, 1, 99)


def test_a_code_outside_of_the_codebook_is_refused():
    with pytest.raises(TokenizerError, match="below 8, found 8"):
        usage_by_level([np.full((3, 1), 8, np.uint16)], 8)


@given(coded())
def test_a_chart_stays_within_its_frame_and_reaches_the_last_used_code(drawn):
    items, size = drawn
    for level in usage_by_level(items, size):
        path = re.search(r' d="([^"]+)"', usage_chart(level))[1]
        points = [tuple(map(float, point.split())) for point in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]
        assert all(34 <= x <= 260 and 4 <= y <= 104 for x, y in points)
        assert max(x for x, _ in points) == pytest.approx(
            34 + 226 * np.log(level.num_used + 1) / np.log(size + 1), abs=0.1
        )


def test_a_spectrogram_has_low_tones_at_the_bottom():
    wave = (0.5 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)).astype(np.float32)
    picture = spectrogram(wave, 16_000)
    assert (picture.dtype, picture.shape) == (np.uint8, (80, 100, 3))
    assert picture[:, 50].sum(axis=1).argmax() > 60


def test_rates_are_those_of_table_1():
    one = measure_codec(speech_codec(), WayBack(None, "nothing"), spoken(2), ON)
    assert (one.codes_per_unit, one.bits_per_unit) == (400, 4_000)
    other = measure_codec(music_codec(), WayBack(None, "nothing"), [wave for _, wave in played(2)], ON)
    assert (other.codes_per_unit, other.bits_per_unit) == (200, 2_200)
    assert 0 < other.used_bits_per_unit < other.bits_per_unit


def test_quality_figures_are_those_of_a_fit():
    codec, media = speech_codec(), spoken(3, held_out=True)
    report = measure_codec(codec, WayBack(codec), media, ON)
    assert dict(report.quality) == pytest.approx(measure(codec, media))
    assert report.media_s == pytest.approx(sum(map(len, media)) / 16_000)
    assert report.levels == usage_by_level(codec.encode(media), codec.codebook_size)


def test_equal_inputs_give_equal_pages_but_for_timings():
    codec = speech_codec()
    pages, numbers = [], []
    for _ in range(2):
        report = measure_codec(codec, WayBack(codec), spoken(2), ON)
        pages.append(TIMINGS.sub("", write_codec_page("Codec", [report])))
        numbers.append({key: value for key, value in figures(report).items() if key != "timing"})
    assert pages[0] == pages[1]
    assert numbers[0] == numbers[1]
    json.dumps(numbers[0], allow_nan=False)


def test_a_generative_way_back_is_shown_and_not_measured():
    codec = speech_codec()
    report = measure_codec(codec, WayBack(codec, generative=True), spoken(1), ON)
    assert report.quality == ()
    assert len(report.shown[0].decoded) == 2
    assert "would measure nothing" in write_codec_page("Codec", [report])


def test_no_media_is_one_message():
    with pytest.raises(ConfigError, match="expected speech to measure on"):
        measure_codec(speech_codec(), WayBack(None), [], ON)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted file of three modalities that remembers held-out corpora, these corpora, and their configs."""
    folder = tmp_path_factory.mktemp("made")
    for builder in (laion_coco, mls, youtube_music):
        builder(folder / builder.__name__)
        (folder / f"{builder.__name__}.toml").write_text(
            f'corpus = "{builder.__name__}"\nroot = "{folder / builder.__name__}"\noutput = "{folder}/out"\n',
            encoding="utf-8",
        )
    shades = np.arange(0, 200, 10, dtype=np.uint8)[:, None, None, None]
    tensors = {
        Modality.IMAGE: fit_image(np.broadcast_to(shades, (20, 224, 224, 3)).copy()),
        Modality.SPEECH: speech_tensors(),
        Modality.MUSIC: music_tensors(),
    }
    sections = {"image": "laion_coco", "speech": "mls", "music": "youtube_music"}
    header = {name: {"heldout": [f"{folder}/{corpus}.toml"], "heldout_items": 2} for name, corpus in sections.items()}
    save_family(folder / "compact.safetensors", tensors, config=header)
    save_family(folder / "unknown.safetensors", tensors, config={})
    return folder


def test_a_fitted_file_is_measured_on_the_corpora_it_remembers(made, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert inspect_cli.inspect(["--codec", str(made / "compact.safetensors"), "--output", str(page)]) == 0
    assert "page.json" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert set(numbers) == {"image", "speech", "music"}
    assert numbers["image"]["num_items"] == 2
    assert numbers["image"]["levels"][0]["num_observed"] == 64
    assert [len(numbers[name]["levels"]) for name in ("image", "speech", "music")] == [1, 8, 4]
    assert {"speech_mel", "speech_mel_shuffled", "speech_mel_level1"} == set(numbers["speech"]["quality"])
    assert numbers["music"]["timing"]["encode_realtime_factor"] > 0
    text = page.read_text(encoding="utf-8")
    assert load_codec(made / "compact.safetensors", Modality.IMAGE).fingerprint in text
    assert text.count("<svg") == 13
    assert text.count("<audio") == 2 * (2 + 1) + 2 * 2
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import|url\(', text)


def test_given_corpora_decide_what_is_measured(made, tmp_path, capsys):
    given = ["--corpus", str(made / "mls.toml"), "--items", "1", "--output", str(tmp_path / "p.html")]
    assert inspect_cli.inspect(["--codec", str(made / "unknown.safetensors"), *given]) == 0
    numbers = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert set(numbers) == {"speech"}
    assert numbers["speech"]["num_items"] == 1
    assert "speech_mel_shuffled" not in numbers["speech"]["quality"]
    assert "expected image to fit a codec on, found none" in capsys.readouterr().out


def test_a_file_without_memory_asks_for_corpora(made, capsys):
    assert inspect_cli.inspect(["--codec", str(made / "unknown.safetensors")]) == 2
    assert "--corpus configs/corpora/NAME.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["folder", "--codec", "x.toml"], ["folder", "--items", "3"], ["--codec", "x.toml", "--items", "0"]],
)
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        inspect_cli.inspect(arguments)
    assert "anygpt-inspect: error" in capsys.readouterr().err


def test_without_a_way_back_the_page_has_codes_and_figures_and_says_why(made, tmp_path, monkeypatch):
    """A codec config whose optional folder of the way back is not there, as SEED-2's without unCLIP."""
    config = tmp_path / "painted.toml"
    config.write_text('codec = "seed2"\n', encoding="utf-8")
    absent = WeightFile("unclip", tmp_path / "unclip", "decode", "published", required=False)
    codec = load_codec(made / "compact.safetensors", Modality.IMAGE)
    monkeypatch.setattr(codec_report, "open_tokenizer", lambda path, modality: codec)
    monkeypatch.setattr(codec_report, "codec_weight_files", lambda path: [absent])
    monkeypatch.setattr(codec_report, "open_detokenizer", _never)
    monkeypatch.setattr(inspect_cli, "served_modalities", lambda path: [Modality.IMAGE])
    monkeypatch.chdir(tmp_path)
    assert inspect_cli.inspect(["--codec", str(config), "--corpus", str(made / "laion_coco.toml")]) == 0
    text = (tmp_path / "painted.inspect.html").read_text(encoding="utf-8")
    assert "No way back is configured (options.unclip = " in text
    assert "Originals and their codes" in text
    numbers = json.loads((tmp_path / "painted.inspect.json").read_text(encoding="utf-8"))["image"]
    assert (numbers["way_back"], numbers["quality"]) == ("none", {})
    assert "decode_s" not in numbers["timing"]


def test_a_way_back_that_is_there_is_opened(made):
    codec, back = open_codec(made / "compact.safetensors", Modality.SPEECH)
    assert back.detokenizer is not None
    assert back.detokenizer.name == codec.name
    assert codecs.served_modalities(made / "compact.safetensors") == ["image", "music", "speech"]


def test_a_level_without_codes_is_no_division_by_zero():
    level = LevelUsage(1, 16, ())
    assert (level.entropy_bits, level.ceiling_bits, level.most_common_share, level.num_dead) == (0, 0, 0, 16)


def _never(path: Path, modality: Modality) -> None:
    raise AssertionError("opened a way back that is not there")
