"""SEED-2 against the outputs of the authors' own code, in the parity folder; sizes and names from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.pictures import decode_picture
from pipeline.tokenizers import seed2
from pipeline.tokenizers.seed2 import Options, Seed2
from pipeline.tokenizers.seed2_network import Seed2Encoder, normalise
from pipeline.tokenizers.seed2_weights import read_unshaped, read_weights

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(parity: Path) -> Path:
    return parity / "seed2"


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def options(folder: Path) -> Options:
    return Options(
        quantizer=folder / "seed_quantizer.pt",
        vit=folder / "eva_vit_g.pth",
        config=folder / "config.json",
        device="cpu",
        batch_items=4,
    )


@pytest.fixture(scope="module")
def codec(options: Options) -> Seed2:
    return seed2.load(options)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Seed2Encoder:
    unshaped = read_unshaped(folder / "config.json")
    weights = read_weights(folder / "seed_quantizer.pt", folder / "eva_vit_g.pth", unshaped=unshaped)
    assert weights.encoder is not None
    return weights.encoder


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_codes_are_the_authors_codes_one_by_one_and_together(codec: Seed2, expected: dict[str, torch.Tensor]) -> None:
    pictures = list(expected["squashed_uint8"].numpy())
    together = np.stack(codec.encode(pictures))[:, :, 0]
    alone = np.concatenate([codec.encode([picture])[0].T for picture in pictures])
    np.testing.assert_array_equal(together, expected["codes"].numpy())
    np.testing.assert_array_equal(alone, expected["codes"].numpy())


def test_everything_on_the_way_is_the_authors(
    encoder: Seed2Encoder, folder: Path, expected: dict[str, torch.Tensor]
) -> None:
    """Pixels, ViT, Q-Former, latents, each from the one before."""
    pixels = normalise(expected["squashed_uint8"])
    with np.load(folder / "preprocessed.npz") as arrays:
        close(pixels, torch.from_numpy(arrays["pixel_values"]))
    with torch.inference_mode():
        features = encoder.features(pixels)
        hidden = encoder.query(features)
        latents = encoder.latents(hidden)
    close(features[0], expected["vision_features_image0"])
    close(features.mean(dim=1), expected["vision_features_mean"])
    close(hidden, expected["qformer_output"])
    close(latents, expected["latents"])


def test_embeddings_are_the_authors(codec: Seed2, expected: dict[str, torch.Tensor]) -> None:
    found = codec.embed(list(expected["decode_codes"].numpy()))
    close(torch.from_numpy(found), expected["image_embeds"].float())


def test_the_front_end_squashes_as_the_authors_do(
    codec: Seed2, folder: Path, config: dict[str, Any], expected: dict[str, torch.Tensor]
) -> None:
    """From the file to the codes. A departure: transparency is laid on white here, and dropped there."""
    compared = 0
    for index, name in enumerate(config["images"]):
        path = folder / "images" / f"{name}.png"
        with Image.open(path) as image:
            transparent = image.has_transparency_data
        picture = decode_picture(path.read_bytes())
        if transparent:
            assert (picture != expected["squashed_uint8"][index].numpy()).any()
            continue
        np.testing.assert_array_equal(picture, expected["squashed_uint8"][index].numpy())
        np.testing.assert_array_equal(codec.encode([picture])[0][:, 0], expected["codes"][index].numpy())
        compared += 1
    assert compared


def test_what_is_ignored_is_what_the_authors_model_does_not_use(
    codec: Seed2, folder: Path, config: dict[str, Any]
) -> None:
    """The unknown keys, the reconstruction branch, and the ViT's last block."""
    last = f"blocks.{config['vision']['depth']}."
    vit = torch.load(folder / "eva_vit_g.pth", weights_only=True, mmap=True)
    unused = {key for key in vit if key.startswith(last)}
    unused |= {*config["extra_keys_in_seed_quantizer"], *config["unused_model_keys_in_seed_quantizer"]}
    assert set(codec.ignored_keys) == unused


def test_depth_is_told_by_the_file_as_well(folder: Path, config: dict[str, Any], tmp_path: Path) -> None:
    """One less than the blocks it holds, where the config names heads only."""
    heads = {part: {"heads": config[part]["heads"]} for part in ("vision", "qformer", "image_blocks")}
    (tmp_path / "heads.json").write_text(json.dumps(heads), encoding="utf-8")
    weights = read_weights(
        folder / "seed_quantizer.pt", folder / "eva_vit_g.pth", unshaped=read_unshaped(tmp_path / "heads.json")
    )
    assert weights.encoder is not None
    assert weights.encoder.vision.config.num_hidden_layers == config["vision"]["depth"]
