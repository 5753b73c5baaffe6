"""Stable Diffusion 2.1 unCLIP: an image embedding to a picture, from a local folder (tokenizers sheet 1.6).

As upstream calls it: 20 steps, guidance 10, noise level 0, the empty prompt. Three departures, each for a reason.
Upstream keeps one random latent for a process; here every picture has a generator of its own, seeded by its codes, so
it is the same alone, in a batch, and tomorrow. The empty prompt is embedded once, after which text encoder and
tokenizer are let go, and the ViT-H that could embed pictures is never loaded: 1 billion parameters less. The guidance
pass takes a zero embedding, as diffusers has it (upstream's fork could name another, and by default did not).

diffusers is an extra (``unclip``), so it is imported where a folder is loaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline.tokenizers.base import Medium
from pipeline.tokenizers.precision import arithmetic, encoder_dtype
from pipeline.tokenizers.weights import Precision
from shards.errors import ConfigError, TokenizerError
from shards.vocabulary import Codes

_MAX_BYTE = 255
_NOT_READ = ("feature_extractor", "image_encoder")
"""Parts that see pictures; codes bring their embedding along."""


@dataclass(frozen=True, slots=True)
class PaintSettings:
    """How a picture is painted.

    Attributes:
        picture_size: side of the result, squashed to it with Pillow's bicubic filter; 0 keeps the model's own (768).
    """

    steps: int = 20
    guidance: float = 10.0
    noise_level: int = 0
    picture_size: int = 224


class Painter:
    """A loaded unCLIP pipeline with the empty prompt embedded."""

    def __init__(self, pipeline: Any, settings: PaintSettings, *, precision: Precision = "fp32") -> None:
        """``pipeline`` is a ``StableUnCLIPImg2ImgPipeline`` with its text encoder, which is dropped here."""
        self.embedding_width: int = pipeline.image_normalizer.config.embedding_dim
        self._settings = settings
        self._precision: Precision = precision
        with torch.inference_mode():
            prompt, negative = pipeline.encode_prompt("", pipeline.device, 1, True)
        pipeline.text_encoder = pipeline.tokenizer = None
        self._pipeline, self._prompt, self._negative = pipeline, prompt, negative

    def paint(self, embeddings: npt.NDArray[np.float32], seeds: Sequence[int]) -> list[Medium]:
        """(size, size, 3) uint8 per embedding.

        Args:
            embeddings: (items, width) float32.
            seeds: one an item; an item's picture depends on nothing else.

        Raises:
            ValueError: another width, or not as many seeds.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_width or len(seeds) != len(embeddings):
            raise ValueError(
                f"unclip: expected embeddings (items, {self.embedding_width}) and a seed for each, found "
                f"{embeddings.shape} and {len(seeds)} seeds"
            )
        if not len(seeds):
            return []
        batch, dtype = len(embeddings), self._prompt.dtype
        # On the CPU whatever the device, so that the noise is the same everywhere.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.inference_mode(), arithmetic(self._precision):
            painted = self._pipeline(
                # Without prompt embeddings of its size the pipeline takes any batch for one item (sheet 1.6).
                prompt_embeds=self._prompt.expand(batch, -1, -1),
                negative_prompt_embeds=self._negative.expand(batch, -1, -1),
                image_embeds=torch.from_numpy(embeddings).to(self._pipeline.device, dtype),
                generator=generators,
                num_inference_steps=self._settings.steps,
                guidance_scale=self._settings.guidance,
                noise_level=self._settings.noise_level,
                output_type="np",
            ).images
        return [self._sized(np.rint(picture * _MAX_BYTE).astype(np.uint8)) for picture in painted]

    def _sized(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        size = self._settings.picture_size
        if size in (0, picture.shape[0]):
            return picture
        return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC), np.uint8).copy()


def picture_seed(seed: int, codes: Codes) -> int:
    """The seed of one picture's noise, from a run's seed and the picture's codes."""
    data = np.ascontiguousarray(np.asarray(codes).reshape(-1), np.uint16).astype("<u2").tobytes()
    digest = hashlib.blake2b(f"{seed} ".encode() + data, digest_size=8).digest()
    # torch takes 64 bits, of which the highest is a sign.
    return int.from_bytes(digest, "little") >> 1


def load_painter(folder: Path, settings: PaintSettings, *, device: torch.device, precision: Precision) -> Painter:
    """The pipeline of a diffusers folder; nothing is fetched.

    Raises:
        ConfigError: diffusers is not installed.
        TokenizerError: the folder is not one of an unCLIP pipeline, or a part of it is missing.
    """
    _check_parts(folder)
    try:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import (
            StableUnCLIPImg2ImgPipeline,
        )
    except ImportError as error:
        raise ConfigError(
            f"options.unclip: expected diffusers, to paint pictures from codes, found: {error}; install the extra "
            "'unclip' of this project"
        ) from error
    try:
        with warnings.catch_warnings():
            # ``torch_dtype`` has another name from 0.42 on; the old one is known to all that the extra allows.
            warnings.simplefilter("ignore", FutureWarning)
            pipeline: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(
                folder,
                local_files_only=True,
                torch_dtype=encoder_dtype(precision),
                feature_extractor=None,
                image_encoder=_stand_in(),
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise TokenizerError(
            f"options.unclip = {folder}: expected the whole folder of an unCLIP pipeline, found: "
            f"{str(error).splitlines()[0][:300]}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return Painter(pipeline.to(device), settings, precision=precision)


def _check_parts(folder: Path) -> None:
    """Each part that the index names must have its folder: a missing tokenizer is otherwise replaced by an empty one."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise TokenizerError(
            f"options.unclip = {folder}: expected a diffusers folder with model_index.json, found none there; the folder "
            "of stable-diffusion-2-1-unclip has one"
        )
    try:
        parts: Any = json.loads(index.read_text(encoding="utf-8"))
        named = [name for name, part in parts.items() if isinstance(part, list) and part[0] is not None]
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(f"{index}: expected the parts of a pipeline by name, found: {error}") from error
    missing = [name for name in named if name not in _NOT_READ and not (folder / name).is_dir()]
    if missing:
        raise TokenizerError(
            f"options.unclip = {folder}: expected the whole folder of an unCLIP pipeline, found no {', '.join(missing)}"
        )


def _stand_in() -> CLIPVisionModelWithProjection:
    """The pipeline asks its image encoder for a dtype, nothing else, but does not do without one."""
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=2,
        patch_size=2,
    )
    with torch.random.fork_rng(devices=[]):
        return CLIPVisionModelWithProjection(config)
