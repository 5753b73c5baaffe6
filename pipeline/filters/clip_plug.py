"""A plug for CLIP scores: a folder of CLIP in the layout of transformers, such as that of openai/clip-vit-base-patch32.

The score is the cosine of the two embeddings, as LAION's ``similarity`` is. One difference: our pictures are squashed to a
square, where CLIP's own front end cuts the middle out, so scores of long pictures differ a little from the published ones.

Config::

    [filters]
    clip_plug = "pipeline.filters.clip_plug:score"
    clip_model = "weights/clip-vit-base-patch32"
    min_clip_score = 0.28
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.tokenizers.base import Picture
from shards.errors import ConfigError

# Of the published models; a folder may say otherwise in its preprocessor_config.json.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class _Clip:
    """A loaded folder.

    Attributes:
        size: of the pictures that the model reads.
        mean, std: (3, 1, 1).
    """

    model: Any
    tokenizer: Any
    size: int
    mean: torch.Tensor
    std: torch.Tensor


def score(pictures: Picture, captions: Sequence[str], *, model: str) -> npt.NDArray[np.float32]:
    """Cosines of pictures and their captions; long captions are cut to what the model reads.

    Args:
        pictures: (n, height, width, 3) uint8.
        model: a local folder; nothing is downloaded.

    Returns:
        (n,) float32 in [-1, 1].

    Raises:
        ConfigError: the folder holds no CLIP.
    """
    clip = _load(model)
    device = clip.mean.device
    with torch.inference_mode():
        tokens = clip.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=clip.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        texts = _embedding(clip.model.get_text_features(**tokens))
        images = _embedding(clip.model.get_image_features(pixel_values=_normalized(pictures, clip)))
        cosines = torch.nn.functional.cosine_similarity(texts.float(), images.float())
    return cosines.cpu().numpy()


def _normalized(pictures: Picture, clip: _Clip) -> torch.Tensor:
    """(n, 3, size, size), as CLIP's own front end has it."""
    pixels = torch.from_numpy(pictures).to(clip.mean.device).permute(0, 3, 1, 2).float() / 255.0
    if pixels.shape[-2:] != (clip.size, clip.size):
        pixels = torch.nn.functional.interpolate(pixels, (clip.size, clip.size), mode="bicubic", antialias=True)
        pixels = pixels.clamp(0.0, 1.0)
    return (pixels - clip.mean) / clip.std


def _embedding(output: Any) -> torch.Tensor:
    """The embedding, which transformers 5 returns inside an object and earlier ones bare."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@functools.lru_cache(maxsize=1)
def _load(folder: str) -> _Clip:
    """Once a process; on the GPU where there is one."""
    from transformers import AutoTokenizer, CLIPModel

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"filters.clip_model = {folder!r}: expected a folder of CLIP in the layout of transformers (config.json, "
            "model.safetensors, tokenizer.json), found no config.json; docs/published-weights.md tells how to get weights"
        )
    try:
        model: Any = CLIPModel.from_pretrained(path, local_files_only=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"filters.clip_model = {folder!r}: expected a folder of CLIP, found {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mean, std = _statistics(path)
    return _Clip(
        model=model.eval().to(device),
        tokenizer=tokenizer,
        size=model.config.vision_config.image_size,
        mean=torch.tensor(mean, device=device).view(3, 1, 1),
        std=torch.tensor(std, device=device).view(3, 1, 1),
    )


def _statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = path / "preprocessor_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tuple(said.get("image_mean", _MEAN)), tuple(said.get("image_std", _STD))
