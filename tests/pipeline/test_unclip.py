"""Pictures from codes with a tiny unCLIP folder: the same alone and in a batch, and again tomorrow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="painting needs the extra 'unclip'")

from pipeline.tokenizers import seed2
from pipeline.tokenizers.base import MediaDetokenizer
from pipeline.tokenizers.seed2 import Options, Seed2Pictures
from pipeline.tokenizers.unclip import Painter, PaintSettings, load_painter, picture_seed
from shards.errors import TokenizerError
from tests.fixtures import seed2_checkpoints as made
from tests.fixtures.tiny_unclip import SIDE, write_unclip

CPU = torch.device("cpu")
WIDTH = made.TINY.embedding
FEW = PaintSettings(steps=4, picture_size=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unclip(tmp_path_factory.mktemp("unclip"), embedding=WIDTH)


@pytest.fixture(scope="module")
def painter(folder: Path) -> Painter:
    return load_painter(folder, FEW, device=CPU, precision="fp32")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[str, Any]:
    """Of a whole way back; without a ViT, which it does not need."""
    written = made.write_checkpoint(tmp_path_factory.mktemp("seed2"), *made.checkpoint())
    return written | {"vit": None, "unclip": folder, "steps": 3}


def embeddings(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def some_codes(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 8192, (count, 32, 1)).astype(np.uint16))


def test_a_picture_is_the_same_alone_and_in_a_batch(painter: Painter) -> None:
    """A batch of 3 without a prompt for each is what diffusers itself takes for one picture."""
    shown = embeddings(3)
    together = painter.paint(shown, [7, 8, 9])
    alone = [painter.paint(shown[n : n + 1], [7 + n])[0] for n in range(3)]
    assert [picture.shape for picture in together] == [(SIDE, SIDE, 3)] * 3
    assert all(picture.dtype == np.uint8 for picture in together)
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) <= 1


def test_seed_and_embedding_both_matter(painter: Painter) -> None:
    shown = embeddings(2)
    first, again, other_seed, other_embedding = painter.paint(shown[[0, 0, 0, 1]], [1, 1, 2, 1])
    assert difference(first, again) <= 1
    assert difference(first, other_seed) > 8
    assert difference(first, other_embedding) > 8


def test_the_callers_random_state_is_left_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    painter = load_painter(folder, FEW, device=CPU, precision="fp32")
    painter.paint(embeddings(1), [1])
    assert torch.equal(torch.rand(1), expected)


def test_text_and_picture_encoders_are_not_kept(painter: Painter, folder: Path) -> None:
    """Cached prompt embeddings do; of 1 billion parameters of the published folder nothing stays."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline

    kept = painter._pipeline
    assert kept.text_encoder is None
    assert kept.tokenizer is None
    assert sum(one.numel() for one in kept.image_encoder.parameters()) < 2000
    whole: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, feature_extractor=None, local_files_only=True)
    whole.set_progress_bar_config(disable=True)
    shown = embeddings(1)
    expected = whole(
        prompt="",
        image_embeds=torch.from_numpy(shown),
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=FEW.steps,
        output_type="np",
    ).images[0]
    [found] = painter.paint(shown, [3])
    assert difference(found, np.rint(expected * 255)) <= 1


def test_pictures_are_squashed_to_the_size_that_is_asked_for(folder: Path, painter: Painter) -> None:
    squashed = load_painter(folder, PaintSettings(steps=4), device=CPU, precision="fp32")
    [large] = squashed.paint(embeddings(1), [1])
    [own] = painter.paint(embeddings(1), [1])
    assert large.shape == (224, 224, 3)
    assert np.abs(large[7::14, 7::14].astype(int) - own).mean() < 12


@pytest.mark.parametrize(("shape", "seeds"), [((1, 3), 1), ((2, WIDTH), 1), ((WIDTH,), 1)])
def test_embeddings_of_another_width_are_refused(painter: Painter, shape: tuple[int, ...], seeds: int) -> None:
    with pytest.raises(ValueError, match=r"unclip: expected embeddings \(items, 64\) and a seed for each"):
        painter.paint(np.zeros(shape, np.float32), list(range(seeds)))


def test_nothing_gives_nothing(painter: Painter) -> None:
    assert painter.paint(embeddings(0), []) == []


def test_a_picture_seed_is_a_fact_of_seed_and_codes() -> None:
    """Pinned: another derivation would repaint every picture of every run."""
    codes = np.arange(32, dtype=np.uint16)
    assert picture_seed(0, codes) == picture_seed(0, codes.reshape(32, 1)) == picture_seed(0, codes.astype(np.int64))
    assert len({picture_seed(seed, codes + shift) for seed in range(3) for shift in range(3)}) == 9
    assert 0 <= picture_seed(0, codes) < 2**63
    assert picture_seed(0, codes) == 3_391_899_379_390_318_453


def test_codes_become_pictures(paths: dict[str, Any]) -> None:
    """The whole way back, no ViT named; a batch is cut into parts of ``paint_items``."""
    detokenizer = seed2.load_detokenizer(Options(**paths, paint_items=2))
    assert isinstance(detokenizer, MediaDetokenizer)
    codes = some_codes(3)
    together = detokenizer.decode(codes)
    assert [(picture.shape, picture.dtype) for picture in together] == [((224, 224, 3), np.uint8)] * 3
    for item, picture in zip(codes, together, strict=True):
        assert difference(detokenizer.decode([item])[0], picture) <= 1
    assert difference(together[0], together[1]) > 8
    assert detokenizer.decode([]) == []
    other = seed2.load_detokenizer(Options(**paths, seed=1))
    assert difference(other.decode(codes[:1])[0], together[0]) > 8


@pytest.mark.parametrize("count", [1, 31, 33])
def test_anything_but_32_codes_is_refused(paths: dict[str, Any], count: int) -> None:
    detokenizer: Seed2Pictures = seed2.load_detokenizer(Options(**paths))
    with pytest.raises(ValueError, match=f"expected exactly 32 codes for a picture, found {count}"):
        detokenizer.decode([*some_codes(1), np.zeros((count, 1), np.uint16)])


def test_an_unclip_of_another_width_is_refused(paths: dict[str, Any], tmp_path: Path) -> None:
    other = write_unclip(tmp_path / "other", embedding=WIDTH // 2)
    with pytest.raises(TokenizerError, match="paints from embeddings 64 wide, as the quantizer gives them, found 32"):
        seed2.load_detokenizer(Options(**paths | {"unclip": other}))


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "tokenizer", "image_normalizer"])
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, tmp_path: Path, part: str) -> None:
    """Nothing is fetched instead."""
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / part)
    with pytest.raises(TokenizerError, match=r"options\.unclip = .*expected the whole folder of an unCLIP pipeline"):
        load_painter(broken, FEW, device=CPU, precision="fp32")


def test_a_folder_with_a_cut_file_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    [weights] = (broken / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TokenizerError, match=r"options\.unclip = .*expected the whole folder of an unCLIP pipeline"):
        load_painter(broken, FEW, device=CPU, precision="fp32")


def test_the_encoder_of_pictures_need_not_be_there(folder: Path, tmp_path: Path) -> None:
    """2.5 GB that a user may leave out."""
    part = tmp_path / "part"
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("image_encoder"))
    [picture] = load_painter(part, FEW, device=CPU, precision="fp32").paint(embeddings(1), [1])
    assert picture.shape == (SIDE, SIDE, 3)
