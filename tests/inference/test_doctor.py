"""anygpt-doctor: every fault of a file has a name, every codec is tried, the exit code is the verdict; no tracebacks."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from inference.diagnosis import Check, Diagnosis, Examination, attempt
from inference.doctor import codec_subjects, diagnose, diagnose_codec, setting_of
from inference.doctor_cli import format_diagnosis, main, readable_size, summary
from inference.doctor_files import examine_file, examine_weight_file, fault_of, safetensors_shapes, sha256_of
from inference.doctor_media import DURATIONS_S, made_up_media, made_up_picture, made_up_sound
from inference.doctor_model import check_weights, diagnose_start, weight_files_of
from inference.doctor_trials import (
    TOLERATED,
    check_batch,
    check_codes,
    check_medium,
    check_speed,
    try_codec,
    try_way_back,
)
from inference.doctor_vocoder import check_filled
from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.compact import load_codec, save_family
from pipeline.tokenizers.compact_image import fit_image
from pipeline.tokenizers.weights import CodecOptions
from shards.errors import CheckpointError, ConfigError, TokenizerError
from shards.modality import MEDIA, SOUNDS, Modality
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


# -- files ------------------------------------------------------------------------------------------------------------


def weight_file(path: Path | None, *, required: bool = True) -> WeightFile:
    return WeightFile("checkpoint", path, "encode", "a.pt of some/where", required)


def cut(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def torch_file(path: Path) -> Path:
    torch.save({"weight": torch.arange(5000.0)}, path)
    return path


def tensor_file(path: Path) -> Path:
    save_file({"weight": torch.arange(5000.0), "bias": torch.zeros(2, 3)}, path)
    return path


def test_a_whole_file_is_ok_and_its_digest_is_that_of_its_bytes(tmp_path: Path):
    for path in (torch_file(tmp_path / "a.pt"), tensor_file(tmp_path / "a.safetensors")):
        finding = examine_weight_file(weight_file(path))
        assert finding.status == "ok" and finding.note == "" and not finding.stops
        assert finding.size == path.stat().st_size
        assert finding.parts[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)


def test_progress_reaches_the_end_of_the_file(tmp_path: Path):
    path, told = tmp_path / "large.bin", list[tuple[int, int]]()
    path.write_bytes(bytes((5 << 20) + 3))
    sha256_of(path, lambda _, done, total: told.append((done, total)))
    assert len(told) == 2 and told[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ckpt.dev", b"", "empty file"),
        ("ckpt.dev", POINTER.encode(), "git-lfs pointer"),
        ("ckpt.dev", b"../.git/annex/objects/xx/SHA256E-s12--00.dev\n", "git-annex pointer"),
        ("ckpt.dev", b"\n <!DOCTYPE html><html><body>Sign in</body>", "web page"),
        ("model.safetensors", b"<html>Not found</html>", "web page"),
        ("model.safetensors", b"\x00" * 64, "no safetensors file"),
        ("model.safetensors", b"hi", "no safetensors file"),
        ("config.json", b'{"n_q": 8', "no JSON"),
        ("config.json", b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in fault_of(path)
    finding = examine_weight_file(weight_file(path))
    assert finding.status == "wrong" and finding.stops and words in finding.note


@pytest.mark.parametrize("keep", [3000, 12_000, -1])
def test_a_cut_download_is_named(tmp_path: Path, keep: int):
    assert "cut" in fault_of(cut(torch_file(tmp_path / "a.pt"), keep))
    assert "cut" in fault_of(cut(tensor_file(tmp_path / "a.safetensors"), keep))


def test_bytes_behind_the_end_are_named(tmp_path: Path):
    path = tensor_file(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes() + b"xx")
    assert "something was added" in fault_of(path)


def test_a_file_that_is_not_there_is_missing_and_where_is_said(tmp_path: Path):
    (tmp_path / "other.pt").touch()
    finding = examine_weight_file(weight_file(tmp_path / "ckpt.dev"))
    assert finding.status == "missing" and finding.path == tmp_path / "ckpt.dev" and "other.pt" in finding.note
    assert "no folder" in examine_weight_file(weight_file(tmp_path / "no" / "ckpt.dev")).note
    assert "options.checkpoint" in examine_weight_file(weight_file(None)).note
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    assert "leads nowhere" in examine_weight_file(weight_file(tmp_path / "link.pt")).note


def test_only_a_required_file_stops_a_codec_by_being_missing(tmp_path: Path):
    assert examine_weight_file(weight_file(tmp_path / "no.pt")).stops
    assert not examine_weight_file(weight_file(tmp_path / "no.pt", required=False)).stops


def test_folders_are_looked_into(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    assert examine_weight_file(weight_file(folder)).status == "wrong"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    tensor_file(folder / "unet" / "weights.safetensors")
    finding = examine_weight_file(weight_file(folder))
    assert finding.status == "ok"
    assert [part.name for part in finding.parts] == ["config.json", "unet/weights.safetensors"]
    assert finding.size == sum(part.size for part in finding.parts) > 20_000
    (folder / "unet" / "weights.safetensors").write_text(POINTER, encoding="utf-8")
    finding = examine_weight_file(weight_file(folder))
    assert finding.status == "wrong" and "unet/weights.safetensors: a git-lfs pointer" in finding.note


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path):
    (tmp_path / "ckpt.dev").mkdir()
    finding = examine_weight_file(weight_file(tmp_path / "ckpt.dev"))
    assert finding.status == "wrong" and "folder in place of a file" in finding.note


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    """Root reads everything, so the system's answer is made up."""
    path = torch_file(tmp_path / "a.pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "permissions" in examine_file(path, "a.pt").note


def test_shapes_are_read_from_the_header(tmp_path: Path):
    assert safetensors_shapes(tensor_file(tmp_path / "a.safetensors")) == {"weight": (5000,), "bias": (2, 3)}


# -- made-up media ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", MEDIA)
def test_made_up_media_are_what_a_codec_takes_and_always_the_same(modality: Modality):
    media, again = made_up_media(modality), made_up_media(modality)
    assert len(media) == 3
    for index, (one, other) in enumerate(zip(media, again, strict=True)):
        assert np.array_equal(one, other)
        if modality.is_sound:
            assert one.shape == (round(DURATIONS_S[index] * modality.rate.sample_rate_hz),)
            assert one.dtype == np.float32 and 0.5 < float(np.abs(one).max()) <= 1.0
        else:
            assert (
                one.shape == (224, 224, 3)
                and one.dtype == np.uint8
                and len(np.unique(one.reshape(-1, 3), axis=0)) > 200
            )
    assert not np.array_equal(media[0][:1000], media[1][:1000])


@pytest.mark.parametrize("modality", SOUNDS)
def test_one_sound_is_not_a_whole_number_of_frames(modality: Modality):
    assert any(len(made_up_sound(modality, number)) % modality.rate.samples_per_frame for number in range(3))


def test_text_has_no_made_up_medium():
    with pytest.raises(ValueError, match="text"):
        made_up_media(Modality.TEXT)


# -- codecs -----------------------------------------------------------------------------------------------------------


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


# -- trials -----------------------------------------------------------------------------------------------------------


class Faulty:
    """A speech codec with one thing wrong."""

    modality, name, codebook_size, levels = Modality.SPEECH, "faulty", 1024, 8
    sample_rate_hz, frame_rate_hz, fingerprint = 16_000, 50.0, "0" * 16

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def frames_for(self, num_samples: int) -> int:
        return -(-num_samples // 320)

    def encode(self, batch):
        if self.fault == "raises":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        codes = [np.random.default_rng(len(x)).integers(0, 1024, (self.frames_for(len(x)), 8)) for x in batch]
        if self.fault == "levels":
            codes = [one[:, :4] for one in codes]
        if self.fault == "range":
            codes = [one + 1000 for one in codes]
        if self.fault == "silent":
            codes = [one * 0 for one in codes]
        if self.fault == "neighbours" and len(batch) > 1:
            codes[2][-1, 0] ^= 1
        return [one.astype(np.uint16) for one in codes]

    def decode(self, batch):
        if self.fault == "decode":
            raise KeyError("embed")
        waves = [np.full(len(one) * 320, 0.5, np.float32) for one in batch]
        if self.fault == "length":
            return [wave[:-1] for wave in waves]
        if self.fault == "nan":
            waves[0][7] = np.nan
        return waves


@pytest.mark.parametrize(
    ("fault", "what", "words"),
    [
        ("raises", "codes", "RuntimeError: mat1"),
        ("levels", "codes", "(150, 8) by Table 1, found (150, 4)"),
        ("range", "codes", "[0, 1,024)"),
        ("silent", "codes", "not trained"),
        ("neighbours", "batch", "1 of 2,128 codes differ"),
        ("decode", "way back", "KeyError"),
        ("length", "way back", "47999"),
        ("nan", "way back", "no number"),
    ],
)
def test_what_a_codec_does_wrong_is_named(fault: str, what: str, words: str):
    codec = Faulty(fault)
    checks = try_codec(codec, lambda: codec)
    wrong = [check for check in checks if check.status == "wrong"]
    assert wrong[0].what == what and words in wrong[0].note


def test_a_codec_without_fault_has_none():
    codec = Faulty("")
    assert {check.status for check in try_codec(codec, lambda: codec)} == {"ok"}


def test_a_way_back_that_cannot_be_opened_is_a_finding(compact: Path):
    class OneWay:
        modality = Modality.SPEECH

    def fail() -> Faulty:
        raise TokenizerError("weights of the decoder are not there")

    codes = load_codec(compact, Modality.SPEECH).encode(made_up_media(Modality.SPEECH)[:1])[0]
    (check,) = try_way_back(OneWay(), codes, fail)
    assert check == Check("wrong", "way back", "weights of the decoder are not there")


def test_short_mantissas_may_change_a_hundredth_of_the_codes_and_float32_none():
    alone = [np.zeros((100, 8), np.uint16)]
    together = [alone[0].copy()]
    together[0][:8, 0] = 1
    assert check_batch(alone, together, tolerated=TOLERATED["fp16"]).status == "ok"
    assert check_batch(alone, together, tolerated=TOLERATED["fp32"]).status == "wrong"
    together[0][:9, 0] = 1
    assert check_batch(alone, together, tolerated=TOLERATED["tf32"]).status == "wrong"
    assert "another number" in check_batch(alone, [alone[0][:50]], tolerated=1.0).note


def test_pictures_come_back_as_pictures():
    codes = np.arange(32, dtype=np.uint16)[:, None]
    assert check_medium(np.zeros((768, 768, 3), np.uint8), codes, Modality.IMAGE).status == "ok"
    assert check_medium(np.zeros((3, 768, 768), np.uint8), codes, Modality.IMAGE).status == "wrong"
    assert check_medium(np.zeros((768, 768, 3), np.float32), codes, Modality.IMAGE).status == "wrong"
    assert check_speed("way back, speed", np.zeros((9, 9, 3), np.uint8), 0.5, Modality.IMAGE).note.startswith("0.50 s")
    assert "6 times real time" in check_speed("x", np.zeros(48_000, np.float32), 0.5, Modality.SPEECH).note


def test_codes_of_a_picture_are_32(compact: Path):
    codec, picture = load_codec(compact, Modality.IMAGE), made_up_picture(0)
    assert check_codes(codec.encode([picture])[0], picture, codec).status == "ok"
    assert check_codes(np.zeros((16, 1), np.uint16), picture, codec).status == "wrong"


def test_an_attempt_never_raises():
    def fail() -> int:
        raise IsADirectoryError(21, "Is a directory")

    assert attempt("loads", lambda: 3)[0] == 3
    value, check = attempt("loads", fail)
    assert value is None and check.note.startswith("IsADirectoryError")
    assert setting_of(CodecOptions(device="cpu", precision="tf32", compile=True)) == "on cpu, precision tf32, compiled"


# -- the model a run starts from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="8KB")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def start_of(repository: Path, folder: Path) -> Diagnosis:
    (found,) = diagnose_start(repository / "configs" / "train" / "anygpt-7b-sft.toml", (f"init.from={folder}",), QUICK)
    return found


def test_a_whole_model_folder_is_well(llama: Path, repository: Path):
    found = start_of(repository, llama)
    assert found.is_well and [check.status for check in found.checks] == ["ok", "ok"]
    assert len(weight_files_of(llama)) > 1 and "50 token ids" in check_weights(llama)


def test_a_run_from_random_weights_needs_nothing(repository: Path):
    (found,) = all_diagnoses(repository / "configs" / "train" / "pretrain-tiny.toml")
    assert found.is_well and found.files == () and "random" in found.checks[0].note


@pytest.mark.parametrize("damage", ["shard", "config", "kind", "shape", "tokenizer", "all"])
def test_what_a_model_folder_lacks_is_named(llama: Path, repository: Path, tmp_path: Path, damage: str):
    folder = copied(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words = {
        "shard": "missing: model-00001",
        "config": "config.json",
        "kind": "'mistral'",
        "tokenizer": "found neither",
    }
    if damage == "shard":
        next(folder.glob("model-00001*")).unlink()
    elif damage == "config":
        (folder / "config.json").unlink()
    elif damage == "tokenizer":
        (folder / "tokenizer.model").unlink()
    elif damage == "all":
        for file in folder.iterdir():
            file.unlink()
    else:
        change = {"kind": {"model_type": "mistral"}, "shape": {"intermediate_size": 25}}[damage]
        (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    found = start_of(repository, folder)
    text = "\n".join(check.note for check in found.checks) + found.files[0].note
    assert (
        not found.is_well and words.get(damage, "instead of" if damage == "shape" else "without a weight file") in text
    )


def test_an_old_folder_of_pickles_is_read_and_tied_embeddings_are_one(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    torch.save(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    assert "30 token ids" in check_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin"):
        check_weights(tmp_path)


# -- the command ------------------------------------------------------------------------------------------------------


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


# -- the vocoder ------------------------------------------------------------------------------------------------------


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
