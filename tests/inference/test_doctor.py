"""anygpt-doctor: every codec a config names is tried, the exit code is the verdict, and there are no tracebacks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference.diagnosis import Check, Diagnosis, Examination
from inference.doctor import codec_subjects, diagnose, diagnose_codec
from inference.doctor_cli import format_diagnosis, main, readable_size, summary
from inference.doctor_media import made_up_picture
from inference.doctor_vocoder import check_filled
from pipeline.tokenizers.compact import save_family
from pipeline.tokenizers.compact_image import fit_image
from shards.errors import ConfigError
from shards.modality import Modality
from tests.fixtures import seed2_checkpoints, soundstorm_checkpoints, speechtokenizer_checkpoints
from tests.fixtures.fitted_codecs import music_tensors, speech_tensors

QUICK = Examination(run=False, sha256=False)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1230000000\n"


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, speech and music in one file."""
    path = tmp_path_factory.mktemp("compact") / "compact.safetensors"
    pictures = np.stack([made_up_picture(number) for number in range(6)])
    tensors = {Modality.IMAGE: fit_image(pictures), Modality.SPEECH: speech_tensors(), Modality.MUSIC: music_tensors()}
    save_family(path, tensors)
    return path


@pytest.fixture(scope="module")
def seed2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec config of a tiny SEED-2 in the published layout, without the way back."""
    folder = tmp_path_factory.mktemp("seed2")
    options = seed2_checkpoints.write_checkpoint(folder, *seed2_checkpoints.checkpoint())
    lines = [f"{key} = {json.dumps(str(value))}" for key, value in options.items()]
    config = folder / "seed2.toml"
    config.write_text("\n".join(['codec = "seed2"', "[options]", *lines]), encoding="utf-8")
    return config


def all_diagnoses(path: Path, *overrides: str, examination: Examination = QUICK) -> list[Diagnosis]:
    return list(diagnose(path, overrides, examination=examination))


def note_of(diagnosis: Diagnosis, what: str) -> Check:
    return next(check for check in diagnosis.checks if check.what == what)


def tensor_file(path: Path) -> Path:
    save_file({"weight": torch.arange(5000.0), "bias": torch.zeros(2, 3)}, path)
    return path


def test_a_compact_file_is_well_in_all_its_modalities(compact: Path):
    diagnoses = all_diagnoses(compact, examination=Examination())
    assert [one.title for one in diagnoses] == ["image: compact", "music: compact", "speech: compact"]
    for one in diagnoses:
        assert one.is_well and len(one.fingerprint) == 16
        assert {check.status for check in one.checks} == {"ok"}
        assert {"loads", "codes", "batch", "way back"} <= {check.what for check in one.checks}
    assert "(150, 8)" in note_of(diagnoses[2], "codes").note
    assert note_of(diagnoses[2], "level 1 alone").note.startswith("48,000 samples")


def test_a_corpus_config_is_every_codec_it_names(compact: Path, repository: Path):
    corpus = repository / "configs" / "corpora" / "mls.toml"
    diagnoses = all_diagnoses(corpus, f"tokenizers.speech={compact}", f"tokenizers.music={compact}")
    assert [one.title for one in diagnoses] == ["speech: compact", "music: compact"]
    assert all(one.is_well for one in diagnoses)


@pytest.mark.parametrize("damage", ["cut", "pointer", "missing", "folder", "another"])
def test_a_damaged_compact_file_is_a_finding(compact: Path, tmp_path: Path, damage: str):
    path = tmp_path / "compact.safetensors"
    if damage == "cut":
        path.write_bytes(compact.read_bytes()[:-100])
    elif damage == "pointer":
        path.write_text(POINTER, encoding="utf-8")
    elif damage == "folder":
        path.mkdir()
    elif damage == "another":
        tensor_file(path)
    (found,) = all_diagnoses(path)
    assert not found.is_well and found.fingerprint == ""
    if damage == "another":
        assert "compact family" in note_of(found, "loads").note
    else:
        assert found.files[0].status == ("missing" if damage == "missing" else "wrong")


def test_a_codec_config_is_diagnosed_and_its_missing_way_back_is_no_fault(seed2: Path):
    (found,) = all_diagnoses(seed2, examination=Examination())
    assert found.title == "image: seed2" and found.is_well and "on cpu, precision fp32" in found.setting
    assert "(32, 1)" in note_of(found, "codes").note and note_of(found, "batch").note.startswith("0 of 96")
    assert note_of(found, "way back").status == "skipped" and "unclip" in note_of(found, "way back").note
    assert len(found.ignored_keys) > 5 and found.fingerprint


def test_a_tensor_that_is_missing_is_named(seed2: Path, tmp_path: Path):
    options = seed2_checkpoints.write_checkpoint(tmp_path, *_without("query_tokens"))
    (found,) = all_diagnoses(seed2, *[f"options.{key}={value}" for key, value in options.items()])
    check = note_of(found, "loads")
    assert check.status == "wrong" and "query_tokens" in check.note and not found.is_well


def _without(key: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    quantizer, vit = seed2_checkpoints.checkpoint()
    del quantizer[key]
    return quantizer, vit


def test_a_missing_required_file_is_reported_with_its_publisher(seed2: Path, tmp_path: Path):
    (found,) = all_diagnoses(seed2, f"options.vit={tmp_path / 'none.pth'}")
    assert not found.is_well and found.files[1].status == "missing" and "eva_vit_g.pth" in found.files[1].published_as
    assert note_of(found, "loads").status == "skipped"


def test_every_shipped_codec_config_can_be_diagnosed_without_its_weights(repository: Path, monkeypatch, tmp_path: Path):
    """No weights are in the repository; what is said is what is missing, not an error."""
    monkeypatch.chdir(tmp_path)
    configs = [
        p for p in (repository / "configs" / "tokenizers").glob("*.toml") if "\ncodec = " in p.read_text("utf-8")
    ]
    assert configs
    for config in configs:
        (found,) = all_diagnoses(config)
        assert any(
            file.status == "missing" and file.path is not None and file.path.is_absolute() for file in found.files
        )
        assert not found.is_well and "missing" in "\n".join(format_diagnosis(found))


def test_wrong_configs_are_errors_before_anything_is_looked_at(
    compact: Path, seed2: Path, repository: Path, tmp_path: Path
):
    corpus = repository / "configs" / "corpora" / "mls.toml"
    neither = tmp_path / "neither.toml"
    neither.write_text("a = 1", encoding="utf-8")
    textual = tmp_path / "textual.toml"
    textual.write_text('corpus = "mls"\nroot = "a"\noutput = "b"', encoding="utf-8")
    wrong: list[tuple[Path, Sequence[str], str]] = [
        (tmp_path / "no.toml", (), "found none"),
        (neither, (), "found the keys a"),
        (seed2, ("options.vitt=x",), "did you mean 'vit'"),
        (seed2, ("codec=sead2",), "did you mean 'seed2'"),
        (seed2, ("options.device=cuda:77",), "GPU"),
        (corpus, (f"tokenizers.speech={seed2}",), "expected a codec for speech"),
        (textual, (), "nothing to look at"),
    ]
    for path, overrides, words in wrong:
        with pytest.raises(ConfigError, match=words):
            diagnose(path, tuple(overrides), examination=QUICK)
    with pytest.raises(ConfigError):
        codec_subjects(compact.with_suffix(".toml"))


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocoder config with a tiny SoundStorm and a tiny SpeechTokenizer, in the published layouts."""
    folder = tmp_path_factory.mktemp("vocoder")
    config, checkpoint, _ = speechtokenizer_checkpoints.write_checkpoint(folder / "speechtokenizer")
    codec = folder / "speechtokenizer.toml"
    options = f"config = {json.dumps(str(config))}\ncheckpoint = {json.dumps(str(checkpoint))}"
    codec.write_text(f'codec = "speechtokenizer"\n[options]\n{options}\ndevice = "cpu"\n', encoding="utf-8")
    network = soundstorm_checkpoints.write_checkpoint(folder / "soundstorm", soundstorm_checkpoints.tiny_state())
    path = folder / "soundstorm.toml"
    lines = [
        f"soundstorm = {json.dumps(str(network))}",
        f"codec = {json.dumps(str(codec))}",
        'device = "cpu"',
        "steps = 1",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_vocoder_is_its_codec_and_itself(vocoder: Path):
    codec, filler = all_diagnoses(vocoder, examination=Examination())
    assert (codec.title, filler.title) == ("speech: speechtokenizer", "speech: soundstorm")
    assert codec.is_well and filler.is_well, (codec.checks, filler.checks)
    assert "7 levels filled for 150 frames" in note_of(filler, "levels").note
    assert note_of(filler, "batch").note.startswith("0 of 2,128") and "48,000" in note_of(filler, "sound").note
    assert [file.option for file in filler.files] == ["soundstorm", "config"]


def test_a_vocoder_without_its_files_or_its_codec_is_not_tried(vocoder: Path, tmp_path: Path):
    codec, filler = all_diagnoses(vocoder, f"soundstorm={tmp_path / 'none.pt'}")
    assert codec.is_well and not filler.is_well and filler.files[0].status == "missing"
    codec, filler = all_diagnoses(vocoder, f"codec={tmp_path / 'none.safetensors'}")
    assert not codec.is_well and note_of(filler, "loads").status == "skipped"
    with pytest.raises(ConfigError, match="GPU"):
        diagnose(vocoder, ("device=cuda:77",), examination=QUICK)


def test_filled_levels_keep_the_first():
    spoken = np.arange(50, dtype=np.uint16)[:, None]
    filled = np.tile(spoken, (1, 8))
    assert check_filled(filled, spoken).status == "ok"
    assert check_filled(filled + np.uint16(1), spoken).status == "wrong"
    assert check_filled(filled[:, :7], spoken).status == "wrong"


def test_the_exit_code_is_the_verdict(compact: Path, tmp_path: Path, capsys):
    assert main([str(compact), "--no-run", "--no-sha256"]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("all well: image: compact")
    assert main([str(tmp_path / "none.safetensors")]) == 1
    assert "not well" in capsys.readouterr().out
    assert main([str(tmp_path / "none.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("anygpt-doctor:") and "Traceback" not in captured.err


def test_the_json_holds_all_that_was_found(seed2: Path, tmp_path: Path, capsys):
    assert main([str(seed2), "--no-run", "--json", str(tmp_path / "found.json")]) == 0
    capsys.readouterr()
    (found,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["is_well"] and found["title"] == "image: seed2" and len(found["ignored_keys"]) > 5
    assert [file["status"] for file in found["files"][:2]] == ["ok", "ok"]
    assert all(len(file["parts"][0]["sha256"]) == 64 for file in found["files"][:2])
    assert main([str(seed2), "--no-run", "--json", str(tmp_path / "no" / "found.json")]) == 1


def test_lines_begin_with_the_verdict_and_are_narrow(seed2: Path):
    (found,) = all_diagnoses(seed2, examination=Examination())
    lines = format_diagnosis(found)
    assert all(len(line) <= 100 for line in lines if str(seed2.parent) not in line)
    first = [line.split()[0] for line in lines[2:] if not line.startswith(" " * 4)]
    assert first and set(first) <= {"ok", "missing", "wrong", "skipped"}
    assert "works without: unclip of image: seed2" in summary([found])


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_230_000_000, "1.23 GB"), (481_844_008, "482 MB")]
)
def test_sizes_are_in_powers_of_ten(size: int, text: str):
    assert readable_size(size) == text


def test_a_diagnosis_of_a_subject_says_whose_config_it_was(compact: Path):
    (subject,) = codec_subjects(compact, modality=Modality.MUSIC)
    assert diagnose_codec(subject, QUICK).source == compact
