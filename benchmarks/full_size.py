"""Codecs of the published sizes with random weights, for benchmarks: made in the published layouts, loaded as a user's are.

Random weights cost what trained ones cost. Each function writes a checkpoint into a folder and returns what loads it,
together with the library's own model, which is what a user would call in a loop.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import EncodecConfig, EncodecModel

from pipeline.tokenizers.seed2_keys import (
    QuantizerSizes,
    Unshaped,
    VisionSizes,
    decoder_keys,
    encoder_keys,
    published_state,
    vision_keys,
)
from pipeline.tokenizers.seed2_network import random_seed2

SPEECHTOKENIZER: dict[str, Any] = {
    "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": True,
    "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "ELU",
    "codebook_size": 1024, "n_q": 8, "sample_rate": 16_000,
}  # fmt: skip
"""Published ``config.json`` (tokenizers sheet 2.1), as far as the model reads it."""

ENCODEC_32KHZ: dict[str, Any] = {
    "target_bandwidths": [2.2], "sampling_rate": 32_000, "audio_channels": 1, "normalize": False, "hidden_size": 128,
    "codebook_dim": 128, "codebook_size": 2048, "num_filters": 64, "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 4], "norm_type": "weight_norm", "use_causal_conv": False, "pad_mode": "reflect",
    "num_lstm_layers": 2, "use_conv_shortcut": False, "chunk_length_s": None, "overlap": None,
}  # fmt: skip
"""Published ``config.json`` (tokenizers sheet 3.1)."""


_SMALL = {"n_filters": 4, "dimension": 32, "semantic_dimension": 24}
_SMALL_ENCODEC = {"num_filters": 4, "hidden_size": 32, "codebook_dim": 32}
MEDIAN_S, SPREAD, LONGEST_S = 3.5, 0.7, 15.0
"""Common Voice and GigaSpeech are mostly of two to six seconds, with a tail."""


def clips_like_speech(
    sample_rate_hz: int, *, count: int, seconds: float | None = None, seed: int = 0
) -> list[npt.NDArray[np.float32]]:
    """Coloured noise of log-normal lengths, or all of one length; as many samples as sound at this rate has."""
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = np.clip(random.lognormal(np.log(MEDIAN_S), SPREAD, count), 0.5, LONGEST_S)
    clips: list[npt.NDArray[np.float32]] = []
    for one in drawn:
        noise = random.standard_normal(round((seconds or float(one)) * sample_rate_hz))
        clips.append((0.1 * np.convolve(noise, np.hanning(31), mode="same")).astype(np.float32))
    return clips


def write_speechtokenizer(folder: Path, *, seed: int = 0, small: bool = False) -> Any:
    """``config.json`` and ``SpeechTokenizer.pt``; the package's own model on the same weights."""
    from speechtokenizer import SpeechTokenizer

    config = SPEECHTOKENIZER | (_SMALL if small else {})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package's weight norm is of the older kind
        torch.manual_seed(seed)
        model = SpeechTokenizer(config).eval()
        for name, buffer in model.named_buffers():
            _fill_codebook(name, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(model.state_dict(), folder / "SpeechTokenizer.pt")
    return model


def write_encodec(folder: Path, *, seed: int = 0, small: bool = False) -> EncodecModel:
    """A Hugging Face folder; transformers' own model on the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EncodecModel(EncodecConfig(**(ENCODEC_32KHZ | (_SMALL_ENCODEC if small else {})))).eval()
        for name, buffer in model.named_buffers():
            _fill_codebook(name, buffer)
    model.save_pretrained(folder)
    return model


def write_seed2(folder: Path, *, small: bool = False) -> None:
    """``seed_quantizer.pt``, ``eva_vit_g.pth`` and, for the small one, the ``config.json`` that it needs."""
    vision = VisionSizes(width=64, depth=2, mlp=128) if small else VisionSizes()
    sizes = QuantizerSizes(width=64, depth=2, mlp=128, vision_width=64) if small else QuantizerSizes()
    unshaped = Unshaped(vision_heads=4, qformer_heads=4, image_heads=4) if small else Unshaped()
    encoder, decoder = random_seed2(vision, sizes, unshaped)
    folder.mkdir(parents=True, exist_ok=True)
    quantizer = published_state(encoder, encoder_keys(sizes)) | published_state(decoder, decoder_keys(sizes))
    torch.save(quantizer, folder / "seed_quantizer.pt")
    # The file has one block more than is used.
    vit = published_state(encoder, vision_keys(vision.depth), prefix="vision.")
    torch.save({key: value.half() for key, value in vit.items()}, folder / "eva_vit_g.pth")
    heads = {"vision": unshaped.vision_heads, "qformer": unshaped.qformer_heads, "image_blocks": unshaped.image_heads}
    config = {part: {"heads": number} for part, number in heads.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _fill_codebook(name: str, buffer: torch.Tensor) -> None:
    """A codebook that was never fitted is all zeros, and every codec of ours refuses it."""
    if name.endswith((".embed", ".embed_avg")):
        buffer.normal_(std=0.05)
    elif name.endswith((".inited", ".cluster_size")):
        buffer.fill_(1)
