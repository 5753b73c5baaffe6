"""``anygpt-fit``: a stable choice from corpora, the same bytes every time, no work twice, figures on what is held out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from pipeline import cli
from pipeline.corpus import CorpusConfig
from pipeline.sample_corpora.build import build, plan_build
from pipeline.sample_corpora.config import HeldoutCounts, SampleCorporaConfig, TrainCounts
from pipeline.tokenizers.chosen_media import choose_media
from pipeline.tokenizers.compact import load_codec, read_family_info
from pipeline.tokenizers.fit import FitConfig, measure, plan_fit, report_path, run_fit
from shards.errors import CorpusError
from shards.vocabulary import Modality

NONE = dict.fromkeys(TrainCounts.model_fields, 0)
NONE_HELD_OUT = dict.fromkeys(HeldoutCounts.model_fields, 0)
SECTIONS = {"image": "laion_coco", "speech": "mls", "music": "youtube_music"}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """Tiny sample corpora, their configs beside them."""
    folder = tmp_path_factory.mktemp("corpora")
    train = TrainCounts(**{**NONE, "laion_coco": 24, "mls": 24, "commonvoice": 8, "youtube_music": 8})
    heldout = HeldoutCounts(**{**NONE_HELD_OUT, "laion_coco": 6, "mls": 4, "youtube_music": 3})
    build(plan_build(SampleCorporaConfig(output=folder / "sample", train=train, heldout=heldout, workers=1)))
    for name in ("laion_coco", "mls", "youtube_music", "commonvoice"):
        for side in ("", "heldout/"):
            path = folder / side / f"{name}.toml"
            path.parent.mkdir(exist_ok=True)
            root = folder / "sample" / side / name
            path.write_text(f'corpus = "{name}"\nroot = "{root}"\noutput = "{folder}/out"\n', encoding="utf-8")
    return folder


def fit_config(corpora: Path, output: Path, **changes) -> FitConfig:
    sections = {
        modality: {
            "corpora": [str(corpora / f"{name}.toml")],
            "items": 16,
            "heldout": [str(corpora / "heldout" / f"{name}.toml")],
            "heldout_items": 3,
        }
        for modality, name in SECTIONS.items()
    }
    return FitConfig.model_validate({"output": str(output), **sections, **changes})


@pytest.fixture(scope="module")
def fitted(corpora, tmp_path_factory) -> FitConfig:
    config = fit_config(corpora, tmp_path_factory.mktemp("fitted") / "compact.safetensors")
    run_fit(plan_fit(config))
    return config


def test_a_fit_gives_a_codec_for_each_section_and_honest_figures(fitted):
    report = json.loads(report_path(fitted.output).read_text(encoding="utf-8"))
    assert report_path(fitted.output).name == "compact.report.json"
    fingerprints = {str(modality): load_codec(fitted.output, modality).fingerprint for modality in fitted.sections()}
    assert report["fingerprints"] == fingerprints
    assert report["image_psnr_db"] > 20
    assert report["speech_mel"] < 0.5 * report["speech_mel_shuffled"]
    assert report["speech_mel"] < report["speech_mel_level1"] < report["speech_mel_shuffled"]
    assert report["music_mel"] < 0.5 * report["music_mel_shuffled"]


def test_the_same_again_does_nothing(fitted):
    before = [path.stat().st_mtime_ns for path in (fitted.output, report_path(fitted.output))]
    plan = plan_fit(fitted)
    assert plan.is_done
    assert run_fit(plan, say=pytest.fail) == json.loads(report_path(fitted.output).read_text())
    assert [path.stat().st_mtime_ns for path in (fitted.output, report_path(fitted.output))] == before


def test_the_same_fit_elsewhere_gives_the_same_bytes(fitted, corpora, tmp_path):
    again = fit_config(corpora, tmp_path / "compact.safetensors")
    run_fit(plan_fit(again))
    one, other = fitted.output.read_bytes(), again.output.read_bytes()
    assert one == other


def test_only_what_changed_is_fitted_again(fitted, corpora, tmp_path):
    output = tmp_path / "compact.safetensors"
    shutil.copy(fitted.output, output)
    music = {"corpora": [str(corpora / "youtube_music.toml")], "items": 4}
    plan = plan_fit(fit_config(corpora, output, music=music))
    assert not plan.is_done and plan.kept == (Modality.IMAGE, Modality.SPEECH)
    lines: list[str] = []
    report = run_fit(plan, say=lines.append)
    assert {"image: already fitted", "speech: already fitted"} <= set(lines)
    assert "music_mel" not in report  # its new section has nothing held out
    before, after = read_family_info(fitted.output).fingerprints, read_family_info(output).fingerprints
    assert [before[one] == after[one] for one in (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)] == [
        True,
        True,
        False,
    ]
    assert plan_fit(fit_config(corpora, output, music=music)).is_done


def test_a_fit_that_was_interrupted_before_its_report_is_finished(fitted, tmp_path):
    output = tmp_path / "compact.safetensors"
    shutil.copy(fitted.output, output)
    plan = plan_fit(fitted.model_copy(update={"output": output}))
    assert not plan.is_done and len(plan.kept) == 3
    run_fit(plan)
    assert output.read_bytes() == fitted.output.read_bytes()
    assert plan_fit(fitted.model_copy(update={"output": output})).is_done


def test_another_seed_or_corpus_is_another_fit(fitted, corpora):
    assert not plan_fit(fitted.model_copy(update={"seed": 1})).kept
    more = {"corpora": [str(corpora / "mls.toml"), str(corpora / "commonvoice.toml")], "items": 16}
    changed = plan_fit(fit_config(corpora, fitted.output, speech=more))
    assert changed.kept == (Modality.IMAGE, Modality.MUSIC)


def test_the_choice_depends_on_ids_alone(corpora):
    """Fewer items are some of the same ones; another corpus before it changes the order, not the draw."""
    mls, commonvoice = (load_config(corpora / f"{name}.toml", CorpusConfig) for name in ("mls", "commonvoice"))

    def chosen(configs, count: int, seed: int = 0) -> set[bytes]:
        drawn = choose_media(configs, Modality.SPEECH, count, seed=seed, max_s=10)
        assert drawn.num_undecodable == 0
        return {medium.tobytes() for medium in drawn.media}

    everything = chosen([mls, commonvoice], 1000)
    assert len(everything) == 32
    assert chosen([mls, commonvoice], 12) < everything
    assert chosen([mls, commonvoice], 12) == chosen([commonvoice, mls], 12)
    assert chosen([mls], 6) < chosen([mls], 12) != chosen([mls], 12, seed=1)


def test_long_sounds_are_cut(corpora):
    mls = load_config(corpora / "mls.toml", CorpusConfig)
    drawn = choose_media([mls], Modality.SPEECH, 4, seed=0, max_s=0.5)
    assert {medium.shape for medium in drawn.media} == {(8000,)}


def test_a_corpus_without_the_modality_is_named(corpora):
    mls = load_config(corpora / "mls.toml", CorpusConfig)
    with pytest.raises(CorpusError, match=r"mls: expected music to fit a codec on, found none"):
        choose_media([mls], Modality.MUSIC, 4, seed=0, max_s=10)


def test_damaged_media_are_counted_and_left_out(shared_corpora):
    """What the reader hands over and no decoder can read is counted; what can be heard is drawn."""
    config = CorpusConfig(corpus="mls", root=shared_corpora / "damaged" / "mls", output=Path("unused"))
    drawn = choose_media([config], Modality.SPEECH, 100, seed=0, max_s=10)
    assert drawn.media and drawn.num_undecodable >= 2


def test_a_perfect_picture_has_a_finite_figure(fitted):
    """A report with Infinity in it would be no JSON."""
    codec = load_codec(fitted.output, Modality.IMAGE)
    flat = codec.decode([np.array([[2048], [palette]] * 16, np.uint16) for palette in range(60)])
    kept = [
        one for one, again in zip(flat, codec.decode(codec.encode(flat)), strict=True) if np.array_equal(one, again)
    ]
    assert measure(codec, kept[:1] * 2) == {"image_psnr_db": 99.0}


def test_a_config_without_a_section_is_refused():
    with pytest.raises(ValueError, match=r"\[image\], \[speech\], \[music\]"):
        FitConfig(output=Path("x"))


def test_the_shipped_config_is_whole(repository, monkeypatch):
    """Every corpus config it names exists and has the modality's tokenizer at the place it is fitted to."""
    monkeypatch.chdir(repository)
    config = load_config(Path("configs/tokenizers/compact.toml"), FitConfig)
    assert set(config.sections()) == {Modality.IMAGE, Modality.SPEECH, Modality.MUSIC}
    for modality, section in config.sections().items():
        assert section.heldout
        for path in (*section.corpora, *section.heldout):
            assert load_config(path, CorpusConfig).tokenizers[modality] == config.output


def write_toml(corpora: Path, output: Path) -> Path:
    path = output.with_suffix(".toml")
    lines = [f'output = "{output}"', "[speech]", f'corpora = ["{corpora}/mls.toml"]', "items = 8"]
    path.write_text("\n".join([*lines, f'heldout = ["{corpora}/heldout/mls.toml"]']), encoding="utf-8")
    return path


def test_the_command_fits_then_finds_it_done(corpora, tmp_path, capsys):
    path = write_toml(corpora, tmp_path / "compact.safetensors")
    assert cli.fit([str(path), "--dry-run"]) == 0
    assert "speech: to be fitted" in capsys.readouterr().out
    assert not (tmp_path / "compact.safetensors").exists()
    assert cli.fit([str(path), "--limit", "4"]) == 0
    out = capsys.readouterr().out
    assert "speech: 4 items from 1 corpora" in out and "held-out" in out and "fitted in" in out
    assert cli.fit([str(path), "--limit", "4"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.fit([str(path), "--dry-run", "--limit", "4"]) == 0
    assert "speech: already fitted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "status", "message"),
    [
        ("speech.item=3", 2, "did you mean 'items'"),
        ('speech.corpora=["nowhere.toml"]', 2, "nowhere.toml"),
        ("speech.corpora=[]", 2, "speech.corpora"),
    ],
)
def test_a_wrong_config_ends_with_its_status_and_a_message(corpora, tmp_path, capsys, override, status, message):
    path = write_toml(corpora, tmp_path / "compact.safetensors")
    assert cli.fit([str(path), "--set", override]) == status
    assert message in capsys.readouterr().err


def test_a_missing_corpus_ends_with_1_and_its_name(corpora, tmp_path, capsys):
    missing = tmp_path / "missing.toml"
    missing.write_text(f'corpus = "mls"\nroot = "{tmp_path}/gone"\noutput = "unused"\n', encoding="utf-8")
    path = write_toml(corpora, tmp_path / "compact.safetensors")
    assert cli.fit([str(path), "--set", f'speech.corpora=["{missing}"]']) == 1
    assert "gone" in capsys.readouterr().err
