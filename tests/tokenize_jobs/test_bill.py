"""The plan before the bill: the paper's numbers, laws of proportion, and what a corpus on disk is expected to give."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from pipeline.tokenizers import codecs, compact_music, compact_speech
from pipeline.tokenizers.compact import save_family
from pipeline.tokenizers.compact_image import MASK
from shards.errors import ConfigError
from shards.ledger import Entry, commit_entry, unit_name
from shards.modality import MEDIA, SOUNDS, Modality
from tokenize_jobs.bill import Bill, CorpusPlan, Expected, bill_from_file, estimate, is_bill
from tokenize_jobs.bill_text import amount, format_bill
from tokenize_jobs.calibration import Measurement
from tokenize_jobs.expectations import done_so_far, plan_corpus
from tokenize_jobs.plan import TokenizeConfig, plan_units
from tokenize_jobs.rates import default_rates

DEFAULT_CODEC = {
    Modality.IMAGE: "seed2",
    Modality.SPEECH: "speechtokenizer",
    Modality.MUSIC: "encodec_32khz",
    Modality.AUDIO: "encodec_24khz",
}
plans = st.lists(
    st.builds(
        lambda modality, amount: CorpusPlan("c", 1, 1, 1, (Expected(modality, amount, DEFAULT_CODEC[modality]),)),
        st.sampled_from(MEDIA),
        st.floats(1, 1e9),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def paper(repository: Path) -> Bill:
    return bill_from_file(repository / "configs/bills/paper.toml", gpus=64, kind="A100", usd_per_hour=2.0)


def test_the_papers_set_has_the_papers_numbers(paper: Bill):
    """300 M pictures are 9.6 G codes, 57,000 hours 10.26 G, and 81,000 x 480 x 4,500 ids of two bytes about 350 GB."""
    by_name = {line.plan.name: line.plan for line in paper.lines}
    pictures = by_name["image-text pairs"].media[0]
    assert (pictures.amount, pictures.tokens) == (300e6, 9_600_000_000)
    speech = [medium for line in paper.lines for medium in line.plan.media if medium.modality is Modality.SPEECH]
    assert sum(medium.amount for medium in speech) == 57_000 * 3600
    assert paper.tokens()[Modality.SPEECH] == 10_260_000_000
    assert paper.tokens()[Modality.MUSIC] == 10**9
    assert paper.training is not None
    assert (paper.training.slots, paper.training.num_bytes) == (174_960_000_000, 349_920_000_000)


def test_the_printed_bill_says_them_too(paper: Bill):
    text = format_bill(paper)
    for words in (
        "speech: 10.26 G codes from 57,000 h speech",
        "9.6 G codes from 300 M pictures",
        "174.96 G (about 175 G) token slots",
        "(about 350 GB) of 16-bit ids",
        "A100",
        "assumed",
    ):
        assert words in text, words
    assert re.search(r"image-text pairs +300,000 +300,000,000 +7\.5 TB +300 M pictures +image 9\.6 G", text)
    total = next(line for line in text.splitlines() if line.startswith("total"))
    assert f"{paper.usd:,.2f}" in total
    assert max(map(len, text.splitlines()[: len(paper.lines) + 2])) < 160


@given(plans, st.integers(1, 1000), st.floats(0.01, 100))
def test_more_devices_take_less_time_and_cost_the_same(plans, gpus: int, usd: float):
    one = estimate(plans, gpus=1, kind="H100", usd_per_hour=usd)
    many = estimate(plans, gpus=gpus, kind="H100", usd_per_hour=usd)
    assert many.usd == one.usd == pytest.approx(one.device_hours * usd)
    assert many.wall_hours == pytest.approx(one.wall_hours / gpus)


@given(plans, st.floats(1, 100))
def test_hours_and_tokens_are_proportional_to_what_there_is(plans, times: float):
    more = [
        CorpusPlan(p.name, p.units, p.inputs, p.num_bytes, tuple(_times(medium, times) for medium in p.media))
        for p in plans
    ]
    small, large = (estimate(one, gpus=1, kind="A100") for one in (plans, more))
    assert large.device_hours == pytest.approx(small.device_hours * times)
    assert large.core_hours == pytest.approx(small.core_hours * times)
    for modality, tokens in small.tokens().items():
        assert large.tokens()[modality] == pytest.approx(tokens * times, rel=1e-3, abs=2000)


def _times(medium: Expected, times: float) -> Expected:
    return Expected(medium.modality, medium.amount * times, medium.codec, medium.precision)


@pytest.mark.parametrize("modality", SOUNDS)
def test_a_second_of_sound_is_what_table_1_says(modality: Modality):
    second = Expected(modality, 1.0, "x")
    rate = modality.rate
    assert second.tokens == rate.frames_for(rate.sample_rate_hz) * rate.levels_read
    assert second.stored_bytes == 2 * rate.frames_for(rate.sample_rate_hz) * rate.levels_at_rest


def test_a_measured_speed_is_taken_before_an_assumed_one():
    plan = CorpusPlan("c", 1, 1, 1, (Expected(Modality.IMAGE, 36_000.0, "seed2", fingerprint="f" * 16),))
    measured = Measurement("NVIDIA A100-SXM4-80GB", "image", "f" * 16, "d", 3, 1000.0, 10.0, 20.0)
    bill = estimate([plan], gpus=1, kind="A100", measurements=[measured])
    assert (bill.device_hours, bill.core_hours) == (pytest.approx(0.1), pytest.approx(0.2))
    assert "measured on NVIDIA A100-SXM4-80GB over 3 units" in format_bill(bill)
    other = estimate([plan], gpus=1, kind="H100", measurements=[measured])
    assert "assumed" in other.lines[0].speeds[0].basis


def test_on_cpus_the_same_cores_decode_and_encode():
    rates = default_rates().codecs["speechtokenizer"]
    plan = CorpusPlan("c", 1, 1, 1, (Expected(Modality.SPEECH, 3600.0, "speechtokenizer"),))
    bill = estimate([plan], gpus=4, kind="cpu")
    assert bill.device_hours == pytest.approx(1 / rates.cpu_rate + 1 / rates.decode_rate)


def test_what_nobody_knows_is_an_error_that_says_what_to_add(repository: Path):
    path = repository / "configs/bills/paper.toml"
    with pytest.raises(ConfigError, match=r"--kind TPU9: expected cpu, one of .*A100.* configs/rates\.toml"):
        bill_from_file(path, gpus=1, kind="TPU9")
    with pytest.raises(ConfigError, match="expected one device at least"):
        bill_from_file(path, gpus=0, kind="A100")


def test_a_codec_nobody_knows_has_tokens_and_no_hours():
    """A dry run still says what it can, and what is missing to say more."""
    strange = CorpusPlan("c", 1, 1, 1, (Expected(Modality.IMAGE, 100.0, "vqgan"),))
    for usd in (None, 2.0):
        text = format_bill(estimate([strange], gpus=1, kind="A100", usd_per_hour=usd))
        assert re.search(r"^c .*image 3\.2 k +\? +\? +[?-]$", text, flags=re.MULTILINE)
        assert "nan" not in text
        assert "speed of vqgan on A100: unknown: add it to configs/rates.toml" in text


def test_every_codec_there_is_has_its_assumptions():
    known = default_rates().codecs
    compact = {f"compact-{modality}" for modality in (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)}
    assert set(known) == {*codecs.codec_names(), *compact}


def test_a_file_of_sizes_is_told_from_a_corpus_and_checked(repository: Path, tmp_path: Path):
    assert is_bill(repository / "configs/bills/paper.toml")
    assert not is_bill(repository / "configs/corpora/mls.toml")
    path = tmp_path / "b.toml"
    path.write_text(
        '[[corpora]]\nname = "a"\nitems = 1\nunit_items = 1\nbytes_per_item = 1\nmedia.image = { codec = "seed2" }\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="expected one of amount_per_item and total"):
        bill_from_file(path, gpus=1, kind="A100")


def test_small_amounts_are_not_rounded_to_nothing():
    assert amount(Modality.SPEECH, 36.0) == "0.01 h speech"
    assert amount(Modality.IMAGE, 12) == "12 pictures"


# A corpus on disk


def speech_corpus(folder: Path, seconds: list[float]) -> Path:
    """An MLS folder: a table of transcripts beside its recordings."""
    split = folder / "mls_english" / "train"
    lines: list[str] = []
    for number, length in enumerate(seconds):
        path = split / "audio" / "1" / "2" / f"1_2_{number:06d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        noise = np.random.Generator(np.random.PCG64(number)).normal(0, 0.1, round(length * 16_000))
        soundfile.write(buffer, noise.astype(np.float32), 16_000, format="FLAC")
        path.write_bytes(buffer.getvalue())
        lines.append(f"1_2_{number:06d}\tsome words\n")
    (split / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codecs of noise: real files of real shapes, fitted to nothing."""
    noise = np.random.Generator(np.random.PCG64(0))
    sounds = {Modality.SPEECH: compact_speech.SHAPES, Modality.MUSIC: compact_music.SHAPES}
    family: dict[Modality, dict[str, np.ndarray]] = {
        medium: {name: noise.integers(1, 99, size=shape).astype(np.int16) for name, shape in shapes.items()}
        for medium, shapes in sounds.items()
    }
    family[Modality.IMAGE] = {
        "palettes": noise.uniform(0, 255, size=(2048, 6)).astype(np.float32),
        "patterns": noise.uniform(0, 1, size=(64, MASK**2)).astype(np.float32),
    }
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    save_family(path, family)
    return path


@pytest.fixture
def mls(tmp_path: Path, repository: Path, codec: Path) -> TokenizeConfig:
    root = speech_corpus(tmp_path / "root", [1.0, 2.0, 3.0, 6.0])
    overrides = [f"root={root}", f"output={tmp_path / 'out'}", f"tokenizers.speech={codec}", "unit_items=2"]
    return load_config(repository / "configs/corpora/mls.toml", TokenizeConfig, overrides)


def test_a_corpus_on_disk_is_estimated_from_headers_and_then_from_what_is_done(mls: TokenizeConfig):
    units = plan_units(mls)
    every = np.arange(len(units))
    plan = plan_corpus(mls, units, every)
    assert (plan.units, plan.inputs) == (2, 4)
    assert plan.media[0].amount == pytest.approx(12.0)
    assert plan.media[0].tokens == 600
    assert "4 inputs of 1 raw files" in plan.basis
    recordings = sum(path.stat().st_size for path in mls.root.rglob("*.flac"))
    assert recordings <= plan.num_bytes <= 1.01 * recordings + 100
    commit_entry(
        mls.output,
        Entry(unit_name(0), "f", "transcripts.txt", 1, 0, 2, 2, 2, seconds={"speech": 3.0}, tokens={"speech": 150}),
    )
    left = plan_corpus(mls, units, every[1:])
    assert (left.units, left.inputs, left.media[0].amount) == (1, 2, pytest.approx(3.0))
    assert "from the 1 unit that is done" in left.basis
    assert done_so_far(mls.output).inputs == 2
    bill = estimate([left], gpus=2, kind="cpu")
    assert bill.wall_hours == bill.device_hours / 2 > 0


@pytest.mark.parametrize(
    ("name", "modality", "per_input"),
    [("laion2b", "image", 1.0), ("musiccaps", "music", 5.0), ("youtube_music", "music", 5.0)],
)
def test_real_small_corpora_are_expected_as_they_are(
    shared_corpora: Path, repository: Path, codec: Path, name: str, modality: str, per_input: float
):
    """A picture an input, and one window of five seconds of every track."""
    overrides = [f"root={shared_corpora / name}", "output=none", f"tokenizers.{modality}={codec}"]
    config = load_config(repository / f"configs/corpora/{name}.toml", TokenizeConfig, overrides)
    units = plan_units(config)
    plan = plan_corpus(config, units, np.arange(len(units)))
    assert [(medium.modality, medium.amount) for medium in plan.media] == [(modality, per_input * plan.inputs)]
    assert plan.num_bytes > 10_000
