"""Media from weights on this machine: pictures by a pipeline of diffusers, music by transformers' MusicGen.

Nothing is downloaded: a folder holds the whole model, as ``save_pretrained`` or a clone of a hub repository leaves it. It is
loaded when the first medium is asked for, and its libraries are imported then.

Randomness: a picture has a generator of its own, by its request's seed. MusicGen draws from torch's global generator, so
its state is put aside, seeded by the first request of a batch, and put back. In both, a batch is made in one go or not
at all (``together``), since sums of a batch may round otherwise than those of one alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ConfigError
from shards.modality import Modality
from synthesis.media import Made, MediaRequest, Outcome
from synthesis.media_checks import SIZE_PX, resample
from synthesis.media_config import LocalMusic, LocalPictures

# Files whose content says which weights these are; the weights themselves are told by their sizes.
_TOLD_BY_CONTENT = (".json", ".txt")
_WEIGHTS = (".safetensors", ".bin", ".model")


@dataclass(slots=True)
class DiffusionPlug:
    """Any text-to-image pipeline of diffusers."""

    config: LocalPictures
    _pipeline: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_folder(self.config.path, "model_index.json", "a pipeline of diffusers")

    @property
    def together(self) -> int:
        """Pictures of one batch."""
        return self.config.batch_size

    def facts(self) -> Mapping[str, Any]:
        """The weights, and how they are used."""
        kept = {"steps", "guidance", "size_px", "batch_size", "dtype"}
        told = folder_fingerprint(self.config.path)
        return {"plug": "diffusers", "weights": told, **self.config.model_dump(include=kept)}

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        """Batch after batch.

        Raises:
            ConfigError: diffusers is not installed.
        """
        if self._pipeline is None:
            self._pipeline = _load_pipeline(self.config)
        for first in range(0, len(requests), self.config.batch_size):
            batch = requests[first : first + self.config.batch_size]
            yield from zip(batch, self._paint(batch), strict=True)

    def _paint(self, batch: Sequence[MediaRequest]) -> list[Made]:
        import torch

        device = self._pipeline.device
        painted = self._pipeline(
            prompt=[request.text for request in batch],
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            height=self.config.size_px,
            width=self.config.size_px,
            generator=[torch.Generator(device).manual_seed(request.seed) for request in batch],
            output_type="pil",
        )
        return [_squashed(picture) for picture in painted.images]


@dataclass(slots=True)
class MusicGenPlug:
    """MusicGen, mono or stereo; what it plays is mixed down to mono at 32 kHz."""

    config: LocalMusic
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_folder(self.config.path, "config.json", "MusicGen as transformers saves it")

    @property
    def together(self) -> int:
        """Pieces of one batch."""
        return self.config.batch_size

    def facts(self) -> Mapping[str, Any]:
        """The weights, and how they are used."""
        kept = {"guidance", "temperature", "top_k", "batch_size", "dtype"}
        told = folder_fingerprint(self.config.path)
        return {"plug": "musicgen", "weights": told, **self.config.model_dump(include=kept)}

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        """Batch after batch.

        Raises:
            ConfigError: transformers is not installed, or the folder is no MusicGen.
        """
        if self._loaded is None:
            self._loaded = _load_musicgen(self.config)
        for first in range(0, len(requests), self.config.batch_size):
            batch = requests[first : first + self.config.batch_size]
            yield from zip(batch, self._play(batch, *self._loaded), strict=True)

    def _play(self, batch: Sequence[MediaRequest], model: Any, tokenizer: Any) -> list[Made]:
        import torch

        codec = model.config.audio_encoder
        frames = int(np.ceil(max(request.duration_s for request in batch) * codec.frame_rate))
        words = tokenizer([request.text for request in batch], padding=True, return_tensors="pt").to(model.device)
        devices = [model.device.index or 0] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(batch[0].seed)
            sounds = model.generate(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                do_sample=True,
                guidance_scale=self.config.guidance,
                temperature=self.config.temperature,
                top_k=self.config.top_k,
                # Level k is written k steps later than level 0.
                max_new_tokens=frames + model.decoder.num_codebooks,
            )
        waves = sounds.float().cpu().numpy()  # (batch, channels, samples)
        return [
            resample(np.nan_to_num(wave.T), codec.sampling_rate, Modality.MUSIC)[: round(request.duration_s * 32_000)]
            for wave, request in zip(waves, batch, strict=True)
        ]


def folder_fingerprint(path: Path) -> str:
    """16 hex digits of the names of a model's files, the content of its configs and the sizes of its weights."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix in _TOLD_BY_CONTENT:
            told = file.read_bytes()
        elif file.suffix in _WEIGHTS:
            told = str(file.stat().st_size).encode()
        else:
            continue
        digest.update(file.relative_to(path).as_posix().encode() + b"\0" + told + b"\0")
    return digest.hexdigest()[:16]


def _check_folder(path: Path, name: str, what: str) -> None:
    if not (path / name).is_file():
        raise ConfigError(
            f"{path}: expected {what}, with the file {name}, found none; place the model there, or correct path"
        )


def _load_pipeline(config: LocalPictures) -> Any:
    try:
        import torch
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ConfigError(
            "pictures.plug = local: expected the package diffusers, found none; pip install 'anygpt-data[unclip]'"
        ) from error
    pipeline = DiffusionPipeline.from_pretrained(
        config.path, torch_dtype=getattr(torch, config.dtype), local_files_only=True
    ).to(config.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_musicgen(config: LocalMusic) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import AutoTokenizer, MusicgenForConditionalGeneration
    except ImportError as error:
        raise ConfigError(
            "music.plug = local: expected torch and transformers, found none; pip install 'anygpt-data[tokenizers]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path, local_files_only=True)
        model: Any = MusicgenForConditionalGeneration.from_pretrained(
            config.path, dtype=getattr(torch, config.dtype), local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.path}: expected MusicGen as transformers saves it, found: {error}") from error
    return model.to(config.device).eval(), tokenizer


def _squashed(picture: Any) -> Made:
    from PIL import Image

    return np.asarray(picture.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.uint8).copy()
