"""SoundStorm: from the first level of speech codes to the other seven, all frames at once.

Source: Borsos et al. 2023, arXiv:2305.09636, in the shape AnyGPT published (tokenizers sheet 4.1): a conformer reads, for
every frame, the sum of an embedding of the first-level code and one of each higher level's code or mask, and answers with
logits for every higher level. It is no language model: nothing is causal, and a codec's frames are its positions.

A block is half a feed-forward, attention with rotary positions, a depthwise convolution, half a feed-forward, each added to
its input, and a LayerNorm at the end. Frames that a mask calls padding are hidden from the attention *and* from the
convolution, so an item in a padded batch gives the numbers it gives alone.

Parameters have names of our own; :mod:`train.soundstorm_keys` translates both published layouts, exactly.

Shapes: B items, N frames, D dimensions, H heads, E dimensions a head, C channels of the convolution, Q levels above the
first, K codes a level.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from train.config import SoundStormConfig

_NORM_EPS = 1e-5
_CHANNEL_NORM_EPS = 1e-6


class SoundStorm(nn.Module):
    """The network; see the module."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.config = config
        dim, levels, codes = config.dim, config.num_quantizers, config.codebook_size
        self.semantic_embedding = nn.Embedding(config.num_semantic, dim)
        self.code_embedding = nn.Embedding(levels * (codes + 1), dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.heads = nn.Linear(dim, levels * dim)
        self.logits_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.logits_weight = nn.Parameter(torch.empty(levels, dim, codes))
        self.logits_bias = nn.Parameter(torch.empty(levels, codes))
        self._initialise()

    def hidden(
        self, semantic_BN: torch.Tensor, codes_BNQ: torch.Tensor, mask_BN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, D) what the last block says of every frame.

        Args:
            semantic_BN: first-level codes; any valid code where there is padding.
            codes_BNQ: codes of the levels above, ``config.mask_id`` where not known.
            mask_BN: bool, True for frames, False for padding at the end; None: no padding. Each item has a frame.
        """
        offsets = torch.arange(codes_BNQ.shape[-1], device=codes_BNQ.device) * (self.config.codebook_size + 1)
        hidden = self.code_embedding(codes_BNQ + offsets).sum(dim=2) + self.semantic_embedding(semantic_BN)
        rotary = _rotary(hidden, self.config.head_dim, self.config.rotary_theta)
        for block in self.blocks:
            hidden = block(hidden, rotary, mask_BN)
        return hidden

    def forward(
        self, semantic_BN: torch.Tensor, codes_BNQ: torch.Tensor, mask_BN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, Q, K) logits of every level; see :meth:`hidden`. What they say of padding means nothing."""
        return self.logits_from(self.hidden(semantic_BN, codes_BNQ, mask_BN), 0)

    def logits_from(self, hidden_BND: torch.Tensor, first: int, stop: int | None = None) -> torch.Tensor:
        """(B, N, stop - first, K) logits of some levels, of all from ``first`` on by default.

        Args:
            first: 0 is the level above the semantic one.
        """
        stop, dim = self.config.num_quantizers if stop is None else stop, self.config.dim
        rows = slice(first * dim, stop * dim)
        heads_BNQD = F.linear(hidden_BND, self.heads.weight[rows], self.heads.bias[rows]).unflatten(-1, (-1, dim))
        logits = torch.einsum("bnqd,qdk->bnqk", self.logits_norm(heads_BNQD), self.logits_weight[first:stop])
        return logits + self.logits_bias[first:stop]

    def level_logits(self, hidden_BND: torch.Tensor, levels_B: torch.Tensor) -> torch.Tensor:
        """(B, N, K) logits of one level of each item: all that training on one level needs.

        Args:
            levels_B: int64 in [0, Q); 0 is the one above the semantic level.
        """
        levels, dim = self.config.num_quantizers, self.config.dim
        weight_BDD = self.heads.weight.view(levels, dim, dim)[levels_B]
        bias_BD = self.heads.bias.view(levels, dim)[levels_B]
        heads = self.logits_norm(torch.baddbmm(bias_BD[:, None], hidden_BND, weight_BDD.transpose(1, 2)))
        return torch.baddbmm(self.logits_bias[levels_B][:, None], heads, self.logits_weight[levels_B])

    def _initialise(self) -> None:
        """Normal weights of one small deviation, zero biases, unit norms, as GPT-2 and BERT begin.

        What a block adds to its input is made smaller by the square root of how many such sums there are (four a block),
        so a deep network begins with the variance of a shallow one. Embeddings are summed over Q + 1 tables and start
        with the same small deviation; the norm at the end of the first block brings them to size.
        """
        deviation = self.config.initializer_range
        residual = deviation / (4 * self.config.depth) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("norm.weight", "gain")):
                nn.init.ones_(parameter)
            else:
                adds = name.endswith(("down.weight", "out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=residual if adds else deviation)


class _Block(nn.Module):
    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.feed_forward_1 = _FeedForward(config)
        self.attention = _Attention(config)
        self.convolution = _Convolution(config)
        self.feed_forward_2 = _FeedForward(config)
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)

    def forward(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask_BN: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = hidden + 0.5 * self.feed_forward_1(hidden)
        hidden = hidden + self.attention(hidden, rotary, mask_BN)
        hidden = hidden + self.convolution(hidden, mask_BN)
        hidden = hidden + 0.5 * self.feed_forward_2(hidden)
        return self.norm(hidden)


class _FeedForward(nn.Module):
    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.up = nn.Linear(config.dim, config.ff_mult * config.dim)
        self.down = nn.Linear(config.ff_mult * config.dim, config.dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(self.norm(hidden))))


class _Attention(nn.Module):
    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        self.num_heads = config.heads
        inner = config.heads * config.head_dim
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.query = nn.Linear(config.dim, inner, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * inner, bias=False)
        self.out = nn.Linear(inner, config.dim)

    def forward(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask_BN: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = self.norm(hidden)
        key, value = self.key_value(hidden).chunk(2, dim=-1)
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (self.query(hidden), key, value)
        )
        # In the bool form True takes part; (B, 1, 1, N) hides padded keys from every query of every head.
        visible = None if mask_BN is None else mask_BN[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            _rotate(query, *rotary), _rotate(key, *rotary), value, attn_mask=visible
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class _Convolution(nn.Module):
    """Gated 1x1, depthwise over frames, channel norm with a gain only, 1x1; the 1x1 are Linear layers here."""

    def __init__(self, config: SoundStormConfig) -> None:
        super().__init__()
        channels = config.conv_expansion * config.dim
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.widen = nn.Linear(config.dim, 2 * channels)
        self.depthwise = nn.Conv1d(
            channels, channels, config.conv_kernel, padding=config.conv_kernel // 2, groups=channels
        )
        self.gain = nn.Parameter(torch.empty(channels))
        self.narrow = nn.Linear(channels, config.dim)

    def forward(self, hidden: torch.Tensor, mask_BN: torch.Tensor | None) -> torch.Tensor:
        hidden_BNC = F.glu(self.widen(self.norm(hidden)), dim=-1)
        if mask_BN is not None:
            # Beyond the end of an item alone the convolution sees zeros.
            hidden_BNC = hidden_BNC.masked_fill(~mask_BN[..., None], 0.0)
        hidden_BNC = F.silu(self.depthwise(hidden_BNC.transpose(1, 2)).transpose(1, 2))
        return self.narrow(_channel_norm(hidden_BNC, self.gain))


def _channel_norm(hidden_BNC: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Upstream's norm over channels: the variance is held above eps, where a LayerNorm would add eps to it."""
    variance, mean = torch.var_mean(hidden_BNC, dim=-1, correction=0, keepdim=True)
    return (hidden_BNC - mean) * variance.clamp(min=_CHANNEL_NORM_EPS).rsqrt() * gain


def _rotary(hidden: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, E) cosines and sines of position times frequency, in float32 and then in the dtype of ``hidden``."""
    device = hidden.device
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(hidden.shape[1], device=device, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _rotate(heads_BHNE: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + E/2)."""
    first, second = heads_BHNE.chunk(2, dim=-1)
    return heads_BHNE * cosines + torch.cat((-second, first), dim=-1) * sines
