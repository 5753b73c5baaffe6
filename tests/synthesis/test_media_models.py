"""Pictures and music from weights on this machine: tiny random ones in the published layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.modality import Modality
from synthesis.media import MediaRequest
from synthesis.media_config import LocalMusic, LocalPictures
from synthesis.media_models import DiffusionPlug, MusicGenPlug, folder_fingerprint
from tests.synthesis.tiny_models import SIDE, write_diffusion, write_musicgen

PICTURE = MediaRequest(Modality.IMAGE, "a a", "d/0/image1", 7)
MUSIC = MediaRequest(Modality.MUSIC, "a waltz", "d/0/music1", 7, 0.5)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="pictures by diffusers need the extra unclip")
    return write_diffusion(tmp_path_factory.mktemp("models") / "diffusion")


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_musicgen(tmp_path_factory.mktemp("models") / "musicgen")


def test_a_pipeline_of_diffusers_paints_each_request_by_its_own_seed(diffusion: Path) -> None:
    config = LocalPictures(
        plug="local", path=diffusion, steps=2, size_px=SIDE, batch_size=2, device="cpu", dtype="float32"
    )
    asked = [replace(PICTURE, key=str(seed), seed=seed) for seed in (7, 8, 9)]
    found = dict(zip([7, 8, 9], (made for _, made in DiffusionPlug(config).make(asked)), strict=True))
    assert all(isinstance(made, np.ndarray) and made.shape == (224, 224, 3) for made in found.values())
    assert not np.array_equal(found[7], found[8])
    ((_, alone),) = DiffusionPlug(config).make([PICTURE])
    assert np.abs(alone.astype(int) - found[7].astype(int)).max() <= 1


def test_musicgen_plays_as_long_as_was_asked_and_the_same_again(musicgen: Path) -> None:
    config = LocalMusic(plug="local", path=musicgen, top_k=8, batch_size=2, device="cpu", dtype="float32")
    asked = [MUSIC, replace(MUSIC, key="b", text="a drone", seed=8), replace(MUSIC, key="c", seed=9)]
    plug = MusicGenPlug(config)
    found, again = ([made for _, made in plug.make(asked)] for _ in range(2))
    for one, other in zip(found, again, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.shape == (16_000,)
        assert np.isfinite(one).all()
        assert np.array_equal(one, other)
    assert not np.array_equal(found[0], found[2])


def test_other_weights_are_other_facts(musicgen: Path) -> None:
    before = folder_fingerprint(musicgen)
    (musicgen / "config.json").write_text((musicgen / "config.json").read_text() + " ", encoding="utf-8")
    assert folder_fingerprint(musicgen) != before
