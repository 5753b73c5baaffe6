"""SpeechTokenizer against the outputs of the authors' own code, where the parity fixtures are at hand."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from pipeline.sounds import SoundConfig, to_mono
from pipeline.tokenizers.speechtokenizer import Options, load


@functools.cache
def parity_waves(folder: Path) -> dict[str, np.ndarray]:
    """By the names of the fixtures: the first channel, and the mean of both where a voice prompt is in stereo."""
    waves: dict[str, np.ndarray] = {}
    for path in sorted((folder / "audio").glob("*.wav")):
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waves[path.stem] = to_mono(channels, rate, SoundConfig())
        if channels.shape[1] > 1:
            waves[f"{path.stem}.prompt_mean"] = to_mono(channels, rate, SoundConfig(channel="mean"))
    return waves


def test_parity_of_resampled_waves(parity: Path):
    """The first channel for speech; for voice prompts both, averaged."""
    expected = load_file(parity / "speechtokenizer" / "resampled_16k.safetensors")
    waves = parity_waves(parity / "speechtokenizer")
    for name, wave in expected.items():
        ours = waves[name.replace("prompt_mean_resampled", "prompt_mean").removesuffix(".resampled")]
        np.testing.assert_allclose(ours, wave, rtol=0, atol=5e-5)
    assert len(expected) >= 3


@pytest.mark.parametrize(
    "file",
    ["elu/SpeechTokenizer.pt", "elu/SpeechTokenizerTrainer_00002500", "snake/ckpt.dev"],
    ids=lambda one: one[:25],
)
def test_parity_of_codes_latents_and_waves(parity: Path, file: str):
    """Every clip alone, and all in one batch."""
    folder = parity / "speechtokenizer"
    checkpoint = folder / file
    ours = load(Options(config=checkpoint.parent / "config.json", checkpoint=checkpoint, device="cpu"))
    expected = load_file(checkpoint.parent / "expected.safetensors")
    waves = parity_waves(folder)
    for (name, wave), together in zip(waves.items(), ours.encode(list(waves.values())), strict=True):
        assert np.array_equal(together, expected[f"{name}.codes"].T)
        assert np.array_equal(ours.encode([wave])[0], expected[f"{name}.codes"].T)
    compared = 0
    for key in (key for key in expected if key.startswith("latents.")):
        latents = ours.latents([waves[key.removeprefix("latents.")]])[0]
        np.testing.assert_allclose(latents, expected[key].T, rtol=0, atol=2e-4)
        compared += 1
        codes = expected[f"{key.removeprefix('latents.')}.codes"].T.astype(np.uint16)
        whole, first = ours.decode([codes, codes[:, :1]])
        np.testing.assert_allclose(whole, np.load(checkpoint.parent / "decoded.npy").reshape(-1), rtol=0, atol=1e-4)
        np.testing.assert_allclose(first, expected["decoded_level0_only"].reshape(-1), rtol=0, atol=1e-4)
        rest = ours.decode_levels([codes[:, 1:]], first_level=1)[0]
        np.testing.assert_allclose(rest, expected["decoded_levels1to7"].reshape(-1), rtol=0, atol=1e-4)
    assert compared == 1
