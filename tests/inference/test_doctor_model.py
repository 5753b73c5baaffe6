"""The folder a training run starts from: whole, and its files each other's."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inference.diagnosis import Diagnosis, Examination
from inference.doctor import diagnose
from inference.doctor_model import check_weights, diagnose_start, weight_files_of
from shards.errors import CheckpointError

QUICK = Examination(run=False, sha256=False)


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


# SoundStorm's has a table that a vocoder config also has.
@pytest.mark.parametrize("name", ["pretrain-tiny", "soundstorm-tiny"])
def test_a_run_from_random_weights_needs_nothing(repository: Path, name: str):
    (found,) = diagnose(repository / "configs" / "train" / f"{name}.toml", examination=QUICK)
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
