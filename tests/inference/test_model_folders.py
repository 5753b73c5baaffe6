"""Model folders: our export, with its text tokenizer elsewhere or inside, and the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inference.model import load_ids, load_model
from shards.errors import CheckpointError, ConfigError, DatasetError, FingerprintMismatch
from tests.fixtures.tiny_inference import write_export, write_published, write_text_tokenizer, write_weights

LAYOUT = Path(__file__).resolve().parents[2] / "configs" / "vocabulary" / "anygpt-released.toml"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_tokenizer(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_export(folder, text_folder)
    return folder


def test_an_export_opens_with_the_tokenizer_it_was_packed_with(export: Path, text_folder: Path):
    loaded = load_model(export, text_tokenizer=text_folder, dtype="bfloat16")
    assert loaded.vocabulary.text_size == 600 and not loaded.model.training
    assert loaded.model.dtype is torch.bfloat16
    assert loaded.model.get_input_embeddings().num_embeddings == loaded.vocabulary.size


def test_an_export_refuses_another_tokenizer(export: Path, text_folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    for file in text_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "tokenizer.json").write_text((text_folder / "tokenizer.json").read_text(encoding="utf-8") + "\n")
    with pytest.raises(FingerprintMismatch, match="give the folder it was packed with"):
        load_model(export, text_tokenizer=other)


def test_an_export_without_a_tokenizer_says_which_key_is_missing(export: Path):
    with pytest.raises(CheckpointError, match="found neither; give text_tokenizer"):
        load_model(export)


@pytest.mark.parametrize("spare_rows", [0, 116])
def test_a_published_folder_gives_its_own_ids(tmp_path: Path, spare_rows: int):
    """Rows behind the last id, as heads are padded, change nothing."""
    expected = write_published(tmp_path, num_rows=53_516 + spare_rows)
    vocabulary, tokenizer = load_ids(tmp_path, layout=LAYOUT)
    assert vocabulary.size == expected.size == 53_516 and dict(vocabulary.markers) == dict(expected.markers)
    assert dict(vocabulary.blocks) == dict(expected.blocks) and tokenizer.size == 32_000
    assert load_model(tmp_path, layout=LAYOUT).text_tokenizer.opening == " "


def test_a_published_folder_with_other_ids_is_read_not_assumed(tmp_path: Path):
    """Layout B: six markers first, every medium two further (anygpt-compat 1.3)."""
    write_published(tmp_path, num_rows=53_518)
    added = json.loads((tmp_path / "added_tokens.json").read_text(encoding="utf-8"))
    moved = {token: number + (2 if number > 32_003 else 0) for token, number in added.items()}
    moved |= {"<eom>": 32_004, "<eot>": 32_005}
    (tmp_path / "added_tokens.json").write_text(json.dumps(moved), encoding="utf-8")
    vocabulary, _ = load_ids(tmp_path, layout=LAYOUT)
    assert vocabulary.block("image").first_id == 32_006 and vocabulary.marker("<eot>") == 32_005


def test_a_published_folder_that_does_not_fit_is_refused(tmp_path: Path):
    write_published(tmp_path, num_rows=53_000)
    with pytest.raises(DatasetError, match="expected at least 53516 embedding rows"):
        load_model(tmp_path, layout=LAYOUT)
    with pytest.raises(ConfigError, match="leave the key out"):
        load_model(tmp_path, layout=LAYOUT, text_tokenizer=tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(DatasetError, match="expected AnyGPT's added tokens, found none"):
        load_model(tmp_path, layout=LAYOUT)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="expected the model's tokenizer"):
        load_model(tmp_path, layout=LAYOUT)


@pytest.mark.parametrize("damage", ["cut", "absent", "garbage", "config"])
def test_weights_that_do_not_open_are_told(tmp_path: Path, text_folder: Path, damage: str):
    write_export(tmp_path, text_folder)
    weights = tmp_path / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "garbage":
        weights.write_bytes(b"<html>" * 1000)
    elif damage == "config":
        (tmp_path / "config.json").write_text("{", encoding="utf-8")
    else:
        weights.unlink()
    with pytest.raises(CheckpointError, match="copy the folder again"):
        load_model(tmp_path, text_tokenizer=text_folder)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path, text_folder: Path):
    """transformers makes up what is missing, and says so in a log."""
    from safetensors.torch import load_file, save_file

    write_export(tmp_path, text_folder)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.norm.weight"):
        load_model(tmp_path, text_tokenizer=text_folder)


def test_no_model_no_device(tmp_path: Path, export: Path, text_folder: Path):
    with pytest.raises(CheckpointError, match="finish anygpt-train first"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="finish anygpt-train first"):
        load_model(tmp_path / "nowhere", layout=LAYOUT)
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        load_model(export, text_tokenizer=text_folder, device="cpuu")
    write_weights(tmp_path, 30)
    with pytest.raises(CheckpointError, match=r"expected an exported model with vocabulary.json"):
        load_model(tmp_path)
