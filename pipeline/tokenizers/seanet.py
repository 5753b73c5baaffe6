"""SpeechTokenizer's SEANet encoder and decoder walked layer by layer over clips of different lengths.

The layers, and so the weights and their keys, are the ``speechtokenizer`` package's own; only the padding between them is
:mod:`pipeline.tokenizers.ragged`'s. Layers that look at one sample at a time are called as they are.

Letters: B clips, C channels, T the longest length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from speechtokenizer.modules.conv import SConv1d, SConvTranspose1d
from speechtokenizer.modules.lstm import SLSTM
from speechtokenizer.modules.seanet import SEANetResnetBlock
from torch import nn

from pipeline.tokenizers.ragged import conv_ragged, conv_transpose_ragged, lstm_ragged, walk_ragged


def walk(
    layers: Iterable[nn.Module], x_BCT: torch.Tensor, lengths_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`pipeline.tokenizers.ragged.walk_ragged` over this package's layers."""
    return walk_ragged(layers, x_BCT, lengths_B, _step)


def split_at_lstm(layers: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], Sequence[nn.Module], Sequence[nn.Module]]:
    """The layers before the LSTM, which a compiler takes whole; the LSTM (none or one); and the layers after it."""
    positions = [number for number, layer in enumerate(layers) if isinstance(layer, SLSTM)] or [len(layers)]
    return layers[: positions[0]], layers[positions[0] : positions[0] + 1], layers[positions[0] + 1 :]


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Multiply weight norms into the weights, in place; they are recomputed on every call otherwise."""
    for layer in module.modules():
        if hasattr(layer, "weight_g"):
            cast(Any, nn.utils.remove_weight_norm)(layer)
    return module


def _step(
    layer: nn.Module, x: torch.Tensor, lengths: torch.Tensor, elu: nn.ELU | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(layer, SConv1d):
        inner_conv = cast(nn.Conv1d, layer.conv.conv)
        return conv_ragged(
            x,
            lengths,
            layer.conv,
            kernel_size=inner_conv.kernel_size[0],
            stride=inner_conv.stride[0],
            dilation=inner_conv.dilation[0],
            pad_mode=cast(Any, layer).pad_mode,
            causal=layer.causal,
            elu=elu,
        )
    if isinstance(layer, SConvTranspose1d):
        inner_transpose = cast(nn.ConvTranspose1d, layer.convtr.convtr)
        return conv_transpose_ragged(
            x,
            lengths,
            layer.convtr,
            kernel_size=inner_transpose.kernel_size[0],
            stride=inner_transpose.stride[0],
            causal=layer.causal,
            trim_right_ratio=layer.trim_right_ratio,
            elu=elu,
        )
    x = x if elu is None else elu(x)
    if isinstance(layer, SEANetResnetBlock):
        # A block neither stretches nor shortens; its branches see the same clips.
        inner, _ = walk(cast(Iterable[nn.Module], layer.block), x, lengths)
        return inner.add_(walk([layer.shortcut], x, lengths)[0]), lengths
    if isinstance(layer, SLSTM):
        return lstm_ragged(x, lengths, layer.lstm, skip=layer.skip), lengths
    # Snake keeps its own factors in float32, whatever the rest is in.
    return layer(x).to(x.dtype), lengths
