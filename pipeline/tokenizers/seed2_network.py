"""SEED-2's network: EVA ViT, causal Q-Former and codebook on the way in, a small transformer on the way back.

The ViT and the Q-Former are transformers' BLIP-2 modules; what joins them is plain ``torch.nn`` (tokenizers sheet 1.2).
Three things are easy to get wrong, and each changes codes without a word (1.3, 1.5): the Q-Former's self-attention is
causal over its queries, and its mask must be additive floats, for a bool mask is added as 0 and 1 by plain attention;
``ln_vision`` has an epsilon of its own, 1e-5; and what follows the Q-Former stays float32 whatever the encoder runs in.

Letters: B pictures, S their side, P patches and the class token, V the ViT's width, Q queries, C the Q-Former's width,
D a code's width, E the embedding's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from pipeline.tokenizers.rvq import nearest_codes
from pipeline.tokenizers.seed2_keys import QuantizerSizes, Unshaped, VisionSizes

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_BYTE = 255
_SHARPER, _QUIETER = 3.0, 0.5


class Seed2Encoder(nn.Module):
    """Pictures to latents; :func:`look_up` makes codes of them."""

    def __init__(self, vision: VisionSizes, sizes: QuantizerSizes, unshaped: Unshaped) -> None:
        super().__init__()
        self.vision = Blip2VisionModel(_vision_config(vision, unshaped))
        # The library gives it the blocks' epsilon.
        self.vision.post_layernorm.eps = unshaped.ln_vision_eps
        self.query_tokens = nn.Parameter(torch.empty(1, sizes.queries, sizes.width))
        self.qformer = Blip2QFormerModel(_qformer_config(sizes, unshaped))
        self.encode_task_layer = nn.Sequential(
            nn.Linear(sizes.width, sizes.width), nn.Tanh(), nn.Linear(sizes.width, sizes.code_width)
        )
        self.codebook = nn.Embedding(sizes.codebook_size, sizes.code_width)

    def forward(self, pictures_BSS3: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, Q, D) float32 latents."""
        return self.latents(self.query(self.features(normalise(pictures_BSS3))))

    def features(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """Normalised pixels to (B, P, V): the ViT's features after ``ln_vision``, in the ViT's dtype."""
        return self.vision(pixel_values=pixels_B3SS.to(self.vision.dtype)).last_hidden_state

    def query(self, features_BPV: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the queries find: (B, Q, C).

        Args:
            mask: (1, 1, Q, Q) additive floats; the causal one unless given.

        Raises:
            ValueError: another mask, a bool one above all.
        """
        queries = self.query_tokens.shape[1]
        mask = causal_mask(queries, features_BPV.dtype, features_BPV.device) if mask is None else mask
        if not mask.dtype.is_floating_point or tuple(mask.shape[-2:]) != (queries, queries) or mask.ndim != 4:
            raise ValueError(
                f"Q-Former mask: expected (1, 1, {queries}, {queries}) additive floats (0 where a query may look), found "
                f"{tuple(mask.shape)} {mask.dtype}; a bool mask is added as 0 and 1, which changes 96 % of the codes"
            )
        batch = len(features_BPV)
        return self.qformer(
            query_embeds=self.query_tokens.expand(batch, -1, -1),
            attention_mask=mask.expand(batch, -1, -1, -1),
            encoder_hidden_states=features_BPV,
        ).last_hidden_state

    def latents(self, hidden_BQC: torch.Tensor) -> torch.Tensor:
        """(B, Q, D), always float32."""
        return self.encode_task_layer(hidden_BQC.float())

    def half_precision(self) -> Seed2Encoder:
        """ViT and Q-Former in float16; the task layer and the codebook stay float32. In place."""
        self.vision.half()
        self.qformer.half()
        self.query_tokens.data = self.query_tokens.data.half()
        return self


class Seed2Decoder(nn.Module):
    """Codes to the embedding that unCLIP paints from; float32."""

    def __init__(self, sizes: QuantizerSizes, unshaped: Unshaped) -> None:
        super().__init__()
        width, (first, second, third) = sizes.width, sizes.image_down
        self.codebook = nn.Embedding(sizes.codebook_size, sizes.code_width)
        self.decode_task_layer = nn.Sequential(
            nn.Linear(sizes.code_width, sizes.code_width), nn.Tanh(), nn.Linear(sizes.code_width, width)
        )
        self.position_embedding = nn.Parameter(torch.empty(1, sizes.queries, width))
        self.blocks = nn.ModuleList(_image_block(sizes, unshaped) for _ in range(sizes.image_depth))
        self.image_down = nn.Sequential(
            nn.Linear(width, first, bias=False),
            nn.ReLU(),
            nn.Linear(first, second, bias=False),
            nn.ReLU(),
            nn.Linear(second, third, bias=False),
        )
        self.projection = nn.Linear(sizes.queries * third, sizes.embed_width)

    def forward(self, codes_BQ: torch.Tensor) -> torch.Tensor:
        """(B, Q) int64 to (B, E) float32."""
        hidden = self.decode_task_layer(self.codebook(codes_BQ)) + self.position_embedding
        for block in self.blocks:
            hidden = block(hidden)
        return self.projection(self.image_down(hidden).flatten(1))


def normalise(pictures_BSS3: torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 by CLIP's means and deviations, where the pictures are."""
    pixels = pictures_BSS3.permute(0, 3, 1, 2).float() / _MAX_BYTE
    # By channel with plain numbers: a tensor of constants would be copied to the device for every batch.
    return torch.stack([(pixels[:, n] - MEAN[n]) / STD[n] for n in range(3)], dim=1)


def causal_mask(queries: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(1, 1, Q, Q) additive: 0 for itself and what came before, the dtype's least for what comes after."""
    return torch.full((queries, queries), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)[None, None]


def look_up(latents_BQD: torch.Tensor, codebook_KD: torch.Tensor, half_norms_K: torch.Tensor) -> torch.Tensor:
    """(B, Q) int64 nearest codes; see :func:`pipeline.tokenizers.rvq.nearest_codes`, which refuses half precision."""
    return nearest_codes(latents_BQD.flatten(0, 1), codebook_KD, half_norms_K).reshape(latents_BQD.shape[:2])


def random_seed2(
    vision: VisionSizes | None = None,
    sizes: QuantizerSizes | None = None,
    unshaped: Unshaped | None = None,
    *,
    seed: int = 0,
    num_pictures: int = 2,
) -> tuple[Seed2Encoder, Seed2Decoder]:
    """Both halves with random weights under which codes differ from picture to picture; published sizes by default.

    The library's own initialisation is of no use: the ViT's standard deviation is 1e-10, so every picture would have the
    same codes. The codebook is drawn around the latents of random pictures.

    Args:
        num_pictures: to draw the codebook around.
    """
    vision, sizes, unshaped = vision or VisionSizes(), sizes or QuantizerSizes(), unshaped or Unshaped()
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        encoder, decoder = Seed2Encoder(vision, sizes, unshaped), Seed2Decoder(sizes, unshaped)
    for module in (encoder, decoder):
        module.to_empty(device="cpu").eval().requires_grad_(False)
        for name, parameter in module.named_parameters():
            _fill(name, parameter, generator)
    shape = (num_pictures, vision.image_size, vision.image_size, 3)
    pictures = torch.randint(0, _MAX_BYTE + 1, shape, generator=generator, dtype=torch.uint8)
    # Flat halves and noise: pictures that differ in more than their noise.
    pictures[::2, : vision.image_size // 2] = pictures[::2, :1, :1]
    with torch.inference_mode():
        latents_BQD = encoder(pictures)
        # As far around a query's latents as these differ from picture to picture: much less than from query to query.
        spread_QD = latents_BQD.std(dim=0)
    drawn = torch.randint(0, num_pictures * sizes.queries, (sizes.codebook_size,), generator=generator)
    noise = torch.randn(encoder.codebook.weight.shape, generator=generator)
    codebook = latents_BQD.flatten(0, 1)[drawn] + spread_QD[drawn % sizes.queries] * noise
    encoder.codebook.weight.copy_(codebook)
    decoder.codebook.weight.copy_(encoder.codebook.weight)
    return encoder, decoder


def _fill(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Normal with a deviation that keeps activations at the same size, and queries apart, through all layers.

    With plain random weights every query looks everywhere alike, so after twelve layers all 32 have one code: sharper
    looks and quieter answers keep them apart (spread over queries 0.37 of a latent instead of 0.07, measured).
    """
    parameter.normal_(generator=generator)
    if "norm" in name.lower():
        parameter.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("bias"):
        parameter.mul_(0.05)
        if name.endswith("qkv.bias"):
            # A ViT has no bias on keys; its files do not store one.
            parameter.chunk(3)[1].zero_()
    elif parameter.ndim > 1 and not name.endswith(("embedding", "tokens")):
        gain = _SHARPER if name.endswith("attention.query.weight") else 1.0
        gain *= _QUIETER if name.startswith("qformer") and "output" in name else 1.0
        parameter.mul_(gain / math.sqrt(parameter[0].numel()))


def _vision_config(sizes: VisionSizes, unshaped: Unshaped) -> Blip2VisionConfig:
    config = Blip2VisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=unshaped.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        layer_norm_eps=unshaped.vision_eps,
    )
    return _with_sdpa(config)


def _qformer_config(sizes: QuantizerSizes, unshaped: Unshaped) -> Blip2QFormerConfig:
    config = Blip2QFormerConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=unshaped.qformer_heads,
        intermediate_size=sizes.mlp,
        layer_norm_eps=unshaped.qformer_eps,
        cross_attention_frequency=sizes.cross_every,
        encoder_hidden_size=sizes.vision_width,
        use_qformer_text_input=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _with_sdpa(config)


def _with_sdpa(config: Any) -> Any:
    config._attn_implementation = "sdpa"
    return config


def _image_block(sizes: QuantizerSizes, unshaped: Unshaped) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        sizes.width,
        unshaped.image_heads,
        sizes.image_mlp,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=unshaped.image_eps,
        batch_first=True,
        norm_first=True,
    )
