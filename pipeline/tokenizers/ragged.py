"""Layers of a sound encoder over clips of different lengths, so that no clip notices its neighbours.

A batch is ``x_BCT`` with the true length of every clip; what lies behind a clip's end is arbitrary and never read. A
padded batch run as it is changes the tail of every shorter clip (7 to 8 % of the codes, 75 % of a very short one), because
reflection then mirrors the padding and a bidirectional LSTM reads it first (tokenizers sheet 5). Here every convolution
pads each clip about its **own** end, exactly as the SEANet layers of the public codecs (EnCodec, SpeechTokenizer) pad a
clip alone, and an LSTM stops at each clip's own end. Codes are then the same alone and in any batch.

**Every length from one sample may be batched**: a clip shorter than its reflection is treated as the public layers treat
it (zeros are put behind it first, and cut off again), so there is no shortest length.

Padding of a layer: ``(kernel - 1) * dilation + 1 - stride`` samples in all, half of them left (the odd one too), or all of
them left if causal; and right of that as many as the last stride needs to be whole. So a length becomes
``ceil(length / stride)``.

Lengths are a tensor beside the batch, so nothing is read back from the device before an LSTM, and a graph of these
layers holds for any lengths.

Letters: B clips, C channels, T the longest length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PadMode = Literal["reflect", "constant"]
Step = Callable[[nn.Module, torch.Tensor, torch.Tensor, "nn.ELU | None"], tuple[torch.Tensor, torch.Tensor]]
"""A layer, (B, C, T), lengths (B,) and what comes before the layer, to (B, C', T') and the new lengths."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How much a convolution pads a clip; see :func:`conv_padding`.

    Attributes:
        left: samples before the clip.
        right: samples after it, those that fill the last stride not counted.
    """

    left: int
    right: int


def conv_padding(kernel_size: int, stride: int = 1, dilation: int = 1, *, causal: bool = False) -> Padding:
    """Padding of a SEANet convolution, whose ``nn.Conv1d`` has none of its own."""
    total = (kernel_size - 1) * dilation + 1 - stride
    right = 0 if causal else total // 2
    return Padding(total - right, right)


def conv_ragged(
    x_BCT: torch.Tensor,
    lengths_B: torch.Tensor,
    conv: Callable[[torch.Tensor], torch.Tensor],
    *,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    pad_mode: PadMode = "reflect",
    causal: bool = False,
    elu: nn.ELU | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One convolution with SEANet's padding, each clip padded about its own end.

    Args:
        x_BCT: T is the longest length; what lies behind a clip's end is never read.
        lengths_B: int64 on the device of ``x_BCT``, each at least 1.
        conv: the bare convolution without padding, e.g. an ``nn.Conv1d``, weight-normed or not, and what may follow it
            frame by frame. Not the library's padding wrapper.
        pad_mode: ``reflect``, or ``constant`` for zeros.
        causal: pad on the left only (but for the samples that fill the last stride).
        elu: applied before the convolution; ``x_BCT`` is left as it is.

    Returns:
        (B, C', ceil(T / stride)), and the new lengths, ``ceil(length / stride)``.
    """
    padding = conv_padding(kernel_size, stride, dilation, causal=causal)
    padded = pad_ragged(x_BCT, lengths_B, padding, stride=stride, pad_mode=pad_mode)
    if elu is not None:
        # What is padded is a copy already: one tensor less to write and to read. Reflections and zeros pass alike.
        padded = elu(padded) if padded is x_BCT else functional.elu_(padded, elu.alpha)
    return conv(padded), lengths_after(lengths_B, stride)


def conv_transpose_ragged(
    x_BCT: torch.Tensor,
    lengths_B: torch.Tensor,
    conv: Callable[[torch.Tensor], torch.Tensor],
    *,
    kernel_size: int,
    stride: int,
    causal: bool = False,
    trim_right_ratio: float = 1.0,
    elu: nn.ELU | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One transposed convolution trimmed as SEANet trims it, each clip as if nothing came behind it.

    Args:
        conv: the bare ``nn.ConvTranspose1d``.
        causal: trim on the right only, or as much of it there as ``trim_right_ratio`` says.
        elu: applied before the convolution; ``x_BCT`` is left as it is.

    Returns:
        (B, C', T * stride), and the new lengths, ``length * stride``.
    """
    total = kernel_size - stride
    right = math.ceil(total * trim_right_ratio) if causal else total // 2
    steps_T = torch.arange(x_BCT.shape[-1], device=x_BCT.device)
    behind_BT = steps_T >= lengths_B.unsqueeze(1)
    x_BCT = x_BCT.masked_fill(behind_BT.unsqueeze(1), 0)
    y_BCT = conv(x_BCT if elu is None else functional.elu_(x_BCT, elu.alpha))
    return y_BCT[..., total - right : y_BCT.shape[-1] - right], lengths_B * stride


def walk_ragged(
    layers: Iterable[nn.Module], x_BCT: torch.Tensor, lengths_B: torch.Tensor, step: Step
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run layers one after another; each clip comes out as it would alone.

    Args:
        x_BCT: T is the longest length.
        lengths_B: int64 on the device of ``x_BCT``.
        step: runs one layer of the package at hand; an ELU is not run but handed to the step of the layer behind it.

    Returns:
        (B, C', T'), and the new lengths; what lies behind a clip's end is arbitrary.
    """
    elu: nn.ELU | None = None
    for layer in layers:
        if isinstance(layer, nn.ELU):
            elu = layer
            continue
        x_BCT, lengths_B = step(layer, x_BCT, lengths_B, elu)
        elu = None
    return (x_BCT if elu is None else elu(x_BCT)), lengths_B


def lengths_after(lengths_B: torch.Tensor, stride: int) -> torch.Tensor:
    """``ceil(length / stride)``."""
    return lengths_B if stride == 1 else torch.div(lengths_B + (stride - 1), stride, rounding_mode="floor")


def pad_ragged(
    x_BCT: torch.Tensor, lengths_B: torch.Tensor, padding: Padding, *, stride: int = 1, pad_mode: PadMode = "reflect"
) -> torch.Tensor:
    """Pad every clip about its own beginning and end.

    Returns:
        (B, C, left + T + right + stride - 1), a clip's first sample at ``left``; behind a clip's own padding, arbitrary.
        A convolution over it gives ceil(T / stride) frames.
    """
    if padding.left == padding.right == 0 and stride == 1:
        return x_BCT
    clips, channels, length = x_BCT.shape
    # functional.pad would write all of it twice.
    padded = x_BCT.new_empty(clips, channels, padding.left + length + padding.right + stride - 1)
    padded[..., padding.left : padding.left + length] = x_BCT
    padded[..., padding.left + length :] = 0
    sources_BS, targets_BS = _edges(lengths_B, padding, stride)
    if pad_mode == "constant":
        values = x_BCT.new_zeros(()).expand(len(x_BCT), channels, sources_BS.shape[1])
    else:
        inside_BS = sources_BS.clamp(max=x_BCT.shape[-1] - 1)
        values = x_BCT.gather(2, inside_BS.unsqueeze(1).expand(-1, channels, -1))
        values = values.masked_fill((sources_BS >= lengths_B.unsqueeze(1)).unsqueeze(1), 0)
    return padded.scatter_(2, targets_BS.unsqueeze(1).expand(-1, channels, -1), values)


def lstm_ragged(x_BCT: torch.Tensor, lengths_B: torch.Tensor, lstm: nn.LSTM, *, skip: bool = True) -> torch.Tensor:
    """An LSTM over time that begins and ends with each clip.

    Args:
        lengths_B: on any device; best on the CPU, since packing waits for them.
        lstm: time first (``batch_first=False``).
        skip: add the input, which a bidirectional LSTM gets once for either direction.

    Returns:
        (B, width, T); what lies behind a clip's end is arbitrary.
    """
    x_TBC = x_BCT.permute(2, 0, 1)
    if len(x_BCT) > 1:
        # Forwards alone, running over the padding would give the same; on a CPU it took twelve times as long.
        packed = pack_padded_sequence(x_TBC, lengths_B.cpu(), enforce_sorted=False)
        y_TBC = pad_packed_sequence(lstm(packed)[0], total_length=len(x_TBC))[0]
    else:
        y_TBC = lstm(x_TBC)[0]
    if skip:
        y_TBC = y_TBC + (x_TBC.repeat(1, 1, 2) if lstm.bidirectional else x_TBC)
    return y_TBC.permute(1, 2, 0)


def _edges(lengths_B: torch.Tensor, padding: Padding, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each sample of a clip's two reflections: which sample it repeats, and where it goes in the padded tensor.

    A source at or behind the clip's end stands for a zero: a clip that is too short to be mirrored gets zeros behind it
    first, is mirrored about the last of them, and is cut to its length again, as the public layers do.
    """
    lengths_B1 = lengths_B.unsqueeze(1)
    rights_B1 = padding.right + torch.remainder(-lengths_B1, stride)
    mirrors_B1 = torch.maximum(lengths_B1, rights_B1.clamp(min=padding.left) + 1)
    before_L = torch.arange(padding.left, device=lengths_B.device).expand(len(lengths_B), -1)
    behind_BR = lengths_B1 + torch.arange(padding.right + stride - 1, device=lengths_B.device)
    mirrored_BR = torch.where(behind_BR < mirrors_B1, behind_BR, 2 * (mirrors_B1 - 1) - behind_BR)
    # Clips that need fewer samples to fill their last stride mirror more than they have; nobody reads that.
    sources = torch.cat([padding.left - before_L, mirrored_BR.clamp(min=0)], dim=1)
    return sources, torch.cat([before_L, padding.left + behind_BR], dim=1)
