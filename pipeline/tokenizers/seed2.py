"""SEED-2: the published picture codec of AnyGPT, 32 codes of 8,192 for any 224 x 224 picture.

Source: Ge et al. 2023, arXiv:2310.01218 (weights: AILab-CVC/seed-tokenizer-2); facts and traps: tokenizers sheet 1.
Reads: ``seed_quantizer.pt``, and a ViT from another file, for the published quantizer holds none. The authors' loader
runs without it, with a random ViT, and says nothing; this one refuses. To paint pictures from codes, also a folder of
Stable Diffusion 2.1 unCLIP.

Pictures go to the device as bytes and are normalised there. ViT and Q-Former run in ``options.precision``; the task
layer and the nearest code are float32 always. The way back needs no ViT: codes give an embedding (``embed``), and
:mod:`pipeline.tokenizers.unclip` paints from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pipeline.tokenizers.base import Medium
from pipeline.tokenizers.batching import plan_batches, run_batches
from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.precision import arithmetic
from pipeline.tokenizers.rvq import half_norms
from pipeline.tokenizers.seed2_keys import (
    Unshaped,
)
from pipeline.tokenizers.seed2_network import MEAN, STD, Seed2Decoder, Seed2Encoder, look_up
from pipeline.tokenizers.seed2_weights import Seed2Weights, read_unshaped, read_weights
from pipeline.tokenizers.unclip import Painter, PaintSettings, load_painter, picture_seed
from pipeline.tokenizers.weights import (
    CodecOptions,
    Precision,
    choose_device,
    require_file,
    state_fingerprint,
)
from shards.errors import TokenizerError
from shards.vocabulary import Codes, Modality

Floats = npt.NDArray[np.float32]

MODALITY = Modality.IMAGE
CODE_VERSION = 1
"""Part of the fingerprint: another number for any change here that changes a code."""

_QUANTIZER = "seed_quantizer.pt of AILab-CVC/seed-tokenizer-2"
_VIT = (
    "SEED-2's ViT (eva_vit_g.pth of LAVIS, or a folder of a Hugging Face BLIP-2 model such as Salesforce/blip2-opt-2.7b), "
    "because seed_quantizer.pt holds none and a random one gives codes without meaning"
)
_UNCLIP = "the folder stable-diffusion-2-1-unclip, with model_index.json"


class Options(CodecOptions):
    """Where SEED-2's files are and how pictures are painted."""

    quantizer: Path | None = None
    """``seed_quantizer.pt``."""
    vit: Path | None = None
    """``eva_vit_g.pth``, or a BLIP-2 folder or weight file; for encoding."""
    unclip: Path | None = None
    """Folder of Stable Diffusion 2.1 unCLIP; for painting."""
    config: Path | None = None
    """JSON with what no tensor's shape tells (heads, epsilons), for other models than the published; see
    :func:`~pipeline.tokenizers.seed2_weights.read_unshaped`."""
    seed: int = 0
    """With the codes, the seed of a painted picture's noise."""
    steps: int = Field(default=20, ge=1)
    guidance: float = Field(default=10.0, ge=0.0)
    noise_level: int = Field(default=0, ge=0)
    """How much noise the embedding is given before painting; 0 as upstream."""
    picture_size: int = Field(default=224, ge=0)
    """Side of painted pictures: squashed to it; 0 keeps unCLIP's own, 768."""
    paint_items: int = Field(default=4, ge=1)
    """Pictures painted at a time."""
    paint_precision: Precision = "fp32"
    """Of unCLIP; no code depends on it. ``fp16`` halves its memory on a GPU."""


class Seed2:
    """Picture codec; implements ``MediaTokenizer``.

    Attributes:
        ignored_keys: published keys of the weight files that nothing uses.
    """

    name = "seed2"
    modality = MODALITY
    levels = 1
    sample_rate_hz = 0
    frame_rate_hz = 0.0

    def __init__(
        self,
        weights: Seed2Weights,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        compiled: bool = False,
        batch_items: int = 64,
    ) -> None:
        """The weights are moved, and halved for fp16: take the fingerprint's time once, and do not use them elsewhere."""
        if weights.encoder is None:
            raise TokenizerError(f"seed2: expected a ViT to encode with, found none; options.vit names {_VIT}")
        self.codebook_size = weights.sizes.codebook_size
        self.num_codes = weights.sizes.queries
        self.picture_side = weights.encoder.vision.config.image_size
        self.ignored_keys = weights.ignored_keys
        self.fingerprint = _fingerprint(weights.encoder, weights.unshaped, precision)
        self._device, self._batch_items = device, batch_items
        self._precision: Precision = precision
        encoder = weights.encoder.half_precision() if precision == "fp16" else weights.encoder
        self._encoder = encoder.to(device)
        self._embedder = Embedder(weights.decoder, device=device)
        self._half_norms = half_norms(self._encoder.codebook.weight)
        self._compiled = compiled
        self._forward = _compile(self._encoder, device) if compiled else self._encoder

    def frames_for(self, num_samples: int) -> int:
        """32, whatever the picture."""
        del num_samples
        return self.num_codes

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(32, 1) codes per picture.

        Raises:
            ValueError: if a picture is not (224, 224, 3) uint8.
        """
        pictures = [self._checked(picture) for picture in batch]
        batches = plan_batches([1] * len(pictures), max_items=self._batch_items, max_total=self._batch_items)

        def collate(indices: Sequence[int]) -> torch.Tensor:
            return torch.from_numpy(np.stack([pictures[index] for index in indices]))

        return run_batches(batches, collate, self._encode, device=self._device)

    def embed(self, batch: Sequence[Codes]) -> Floats:
        """Codes to (items, 1024) float32, what unCLIP paints from; see :meth:`Embedder.embed`."""
        return self._embedder.embed(batch)

    def _encode(self, pictures: torch.Tensor, indices: Sequence[int]) -> list[Codes]:
        with torch.inference_mode():
            with arithmetic(self._precision):
                latents = self._forward(self._padded(pictures))[: len(indices)]
            codes = look_up(latents, self._encoder.codebook.weight, self._half_norms)
        return list(codes.cpu().numpy().astype(np.uint16)[:, :, None])

    def _padded(self, pictures: torch.Tensor) -> torch.Tensor:
        """Compiled code has one shape: the last batch is filled up with black pictures, whose codes nobody reads."""
        missing = self._batch_items - len(pictures) if self._compiled else 0
        if missing <= 0:
            return pictures
        return torch.cat([pictures, pictures.new_zeros((missing, *pictures.shape[1:]))])

    def _checked(self, picture: Medium) -> npt.NDArray[np.uint8]:
        side = self.picture_side
        if not isinstance(picture, np.ndarray) or picture.shape != (side, side, 3) or picture.dtype != np.uint8:
            found = f"{picture.shape} {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise ValueError(f"seed2: expected a picture ({side}, {side}, 3) uint8, found {found}")
        return picture.astype(np.uint8, copy=False)


class Embedder:
    """The first half of the way back, codes to embedding; float32 on any device."""

    def __init__(self, decoder: Seed2Decoder, *, device: torch.device) -> None:
        self.num_codes = decoder.position_embedding.shape[1]
        self.codebook_size, self.width = decoder.codebook.num_embeddings, decoder.projection.out_features
        self._decoder, self._device = decoder.to(device), device

    def embed(self, batch: Sequence[Codes]) -> Floats:
        """(items, 1024) float32.

        Args:
            batch: (32, 1) codes each.

        Raises:
            ValueError: an item has not exactly 32 codes, or one outside the codebook.
        """
        if not batch:
            return np.zeros((0, self.width), np.float32)
        codes = torch.from_numpy(np.stack([self._checked(item) for item in batch])).to(self._device)
        with torch.inference_mode(), arithmetic("fp32"):
            return self._decoder(codes).cpu().numpy()

    def _checked(self, item: Codes) -> npt.NDArray[np.int64]:
        codes = np.asarray(item)
        if codes.size != self.num_codes or codes.shape not in ((self.num_codes,), (self.num_codes, 1)):
            raise ValueError(
                f"seed2: expected exactly {self.num_codes} codes for a picture, found {codes.size} (shape {codes.shape})"
            )
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size:
            raise ValueError(
                f"seed2: expected codes in [0, {self.codebook_size}), found {int(codes.min())} to {int(codes.max())}"
            )
        return codes.reshape(-1).astype(np.int64)


class Seed2Pictures:
    """Codes to pictures; implements ``MediaDetokenizer``. The same codes and seed give the same picture."""

    name = "seed2"
    modality = MODALITY
    sample_rate_hz = 0
    generative = True
    """What it paints shows what the codes mean, not the pixels they came from: no error of pixels is of use."""

    def __init__(self, embedder: Embedder, painter: Painter, *, seed: int, batch_items: int) -> None:
        if painter.embedding_width != embedder.width:
            raise TokenizerError(
                f"options.unclip: expected a model that paints from embeddings {embedder.width} wide, as the quantizer "
                f"gives them, found {painter.embedding_width}; another unCLIP model's folder?"
            )
        self._embedder, self._painter = embedder, painter
        self._seed, self._batch_items = seed, batch_items

    def embed(self, batch: Sequence[Codes]) -> Floats:
        """See :meth:`Embedder.embed`."""
        return self._embedder.embed(batch)

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(size, size, 3) uint8 per item: 224 by default, 768 with ``options.picture_size = 0``.

        Raises:
            ValueError: an item has not exactly 32 codes.
        """
        embeddings = self._embedder.embed(batch)
        seeds = [picture_seed(self._seed, codes) for codes in batch]
        pictures: list[Medium] = []
        for start in range(0, len(batch), self._batch_items):
            part = slice(start, start + self._batch_items)
            pictures += self._painter.paint(embeddings[part], seeds[part])
        return pictures


def weight_files(options: Options) -> list[WeightFile]:
    """What must be on disk."""
    return [
        WeightFile("quantizer", options.quantizer, "encode and decode", _QUANTIZER),
        WeightFile("vit", options.vit, "encode", "eva_vit_g.pth of LAVIS, or a BLIP-2 folder of Hugging Face"),
        WeightFile("unclip", options.unclip, "decode", "stabilityai/stable-diffusion-2-1-unclip", required=False),
    ]


def load(options: Options) -> Seed2:
    """The tokenizer.

    Raises:
        ConfigError: a file is not named.
        TokenizerError: a file is not there, or its keys are not the published ones.
    """
    device = choose_device(options.device)
    vit = require_file(options.vit, option="options.vit", purpose=_VIT)
    return Seed2(
        read_weights(_quantizer_path(options), vit, unshaped=read_unshaped(options.config)),
        device=device,
        precision=options.precision,
        compiled=options.compile,
        batch_items=options.batch_items,
    )


def load_detokenizer(options: Options) -> Seed2Pictures:
    """The way back; needs no ViT.

    Raises:
        ConfigError: no unCLIP folder is named, or diffusers is not installed.
        TokenizerError: files that are missing or of another layout.
    """
    device = choose_device(options.device)
    folder = require_file(options.unclip, option="options.unclip", purpose=_UNCLIP)
    weights = read_weights(_quantizer_path(options), None, unshaped=read_unshaped(options.config))
    settings = PaintSettings(options.steps, options.guidance, options.noise_level, options.picture_size)
    painter = load_painter(folder, settings, device=device, precision=options.paint_precision)
    embedder = Embedder(weights.decoder, device=device)
    return Seed2Pictures(embedder, painter, seed=options.seed, batch_items=options.paint_items)


def _quantizer_path(options: Options) -> Path:
    return require_file(options.quantizer, option="options.quantizer", purpose=_QUANTIZER)


def _compile(encoder: Seed2Encoder, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """One graph without breaks (tokenizers sheet 6); on a GPU replayed as a CUDA graph, for the shape never changes."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return cast(Callable[[torch.Tensor], torch.Tensor], torch.compile(encoder, mode=mode, dynamic=False))


def _fingerprint(encoder: Seed2Encoder, unshaped: Unshaped, precision: Precision) -> str:
    """Over what changes a code: the encoder's weights as float32, heads and epsilons, precision, expected pictures."""
    facts = {
        "code": CODE_VERSION,
        "precision": precision,
        "pictures": f"squashed to {encoder.vision.config.image_size}, uint8 RGB",
        "mean": MEAN,
        "std": STD,
        # Told by the weights themselves.
        **{
            key: value
            for key, value in asdict(unshaped).items()
            if key not in ("vision_depth", "image_heads", "image_eps")
        },
    }
    return state_fingerprint("seed2", facts, encoder.state_dict())
