"""One resampler: torchaudio's, bit by bit, and the waves of the public code wherever these were kept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
import torchaudio.transforms
from safetensors.numpy import load_file

from pipeline.media import sound_defaults
from pipeline.sounds import SoundConfig, decode_sound, to_mono
from shards.modality import SOUNDS, Modality

TOLERANCE = 5e-5
"""Of resampled waves; the public code computes its speech filter in float32 and its music filter in float64."""


def noise(rate: int, channels: int, seconds: float = 1.37) -> np.ndarray:
    return np.random.default_rng(rate).normal(0, 0.2, (round(rate * seconds), channels)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("modality", SOUNDS)
def test_the_kept_filter_gives_what_the_function_gives(modality: Modality, rate: int):
    config = sound_defaults(modality)
    channels = noise(rate, 2)
    kept = channels[:, :1] if config.channel == "first" else channels
    planar = torch.from_numpy(np.ascontiguousarray(kept.T))
    for _ in range(2):
        expected = torchaudio.functional.resample(planar, rate, config.sample_rate_hz).mean(dim=0)
        assert (to_mono(channels, rate, config) == expected.numpy()).all()


@pytest.mark.parametrize("rate", [22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("target", [16_000, 24_000, 32_000])
def test_the_filter_in_float64_is_within_the_tolerance(target: int, rate: int):
    """What the public music loader uses; the difference changes no code of the parity set."""
    channels = noise(rate, 2)
    expected = torchaudio.transforms.Resample(rate, target)(torch.from_numpy(channels.T.copy())).mean(dim=0)
    found = to_mono(channels, rate, SoundConfig(sample_rate_hz=target, channel="mean"))
    assert np.abs(found - expected.numpy()).max() <= TOLERANCE


def test_sixteen_bits_and_a_file_change_nothing():
    """A wave read from its file is the wave that torchaudio resamples."""
    pcm = (noise(44_100, 1)[:, 0] * 8_000).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, 44_100, format="WAV", subtype="PCM_16")
    expected = torchaudio.functional.resample(torch.from_numpy(pcm.astype(np.float32) / 32_768), 44_100, 16_000)
    assert (decode_sound(file.getvalue(), SoundConfig()) == expected.numpy()).all()


@pytest.mark.parametrize(
    ("folder", "file", "ending", "modality", "channel"),
    [
        ("speechtokenizer", "resampled_16k", ".resampled", Modality.SPEECH, "first"),
        ("speechtokenizer", "resampled_16k", ".prompt_mean_resampled", Modality.SPEECH, "mean"),
        ("encodec32k", "resampled_32k", "", Modality.MUSIC, "mean"),
    ],
)
def test_waves_are_those_of_the_public_code(
    parity: Path, folder: str, file: str, ending: str, modality: Modality, channel: str
):
    """Speech: the first channel, resampled; voice prompts and music: resampled, then averaged."""
    expected = load_file(parity / folder / f"{file}.safetensors")
    config = sound_defaults(modality).model_copy(update={"channel": channel, "min_s": 0.0})
    names = [key.removesuffix(ending) for key in expected if key.endswith(ending)]
    assert names
    for name in names:
        wave = decode_sound((parity / folder / "audio" / f"{name}.wav").read_bytes(), config)
        assert np.abs(wave - expected[f"{name}{ending}"].reshape(-1)).max() <= TOLERANCE, name
