"""Exact layers over clips of different lengths: each clip comes out as the public layers give it alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from speechtokenizer.modules.conv import SConv1d, SConvTranspose1d
from speechtokenizer.modules.lstm import SLSTM
from torch import nn

from pipeline.tokenizers.ragged import (
    Padding,
    conv_padding,
    conv_ragged,
    conv_transpose_ragged,
    lengths_after,
    lstm_ragged,
    pad_ragged,
)

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def ragged_batch(lengths: list[int], channels: int, seed: int) -> torch.Tensor:
    """(B, channels, longest) with what is no number behind every end: whoever reads it is found out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((len(lengths), channels, max(lengths)), torch.nan)
    for row, length in zip(x, lengths, strict=True):
        row[:, :length] = torch.randn(channels, length, generator=generator)
    return x


@settings(deadline=None, max_examples=150)
@given(
    lengths=LENGTHS,
    kernel_size=st.sampled_from([1, 2, 3, 4, 7, 16]),
    stride=st.sampled_from([1, 2, 4, 5, 8]),
    dilation=st.integers(1, 3),
    causal=st.booleans(),
    pad_mode=st.sampled_from(["reflect", "constant"]),
    seed=st.integers(0, 1000),
)
def test_a_convolution_gives_every_clip_of_any_length_what_the_public_layer_gives_it_alone(
    lengths: list[int], kernel_size: int, stride: int, dilation: int, causal: bool, pad_mode: str, seed: int
):
    """From one sample on, with reflections longer than the clip, whatever its neighbours are."""
    assume(kernel_size >= stride and (stride == 1 or dilation == 1))
    layer = SConv1d(2, 3, kernel_size, stride, dilation, causal=causal, pad_mode=pad_mode)
    x = ragged_batch(lengths, 2, seed)
    y, new_lengths = conv_ragged(
        x,
        torch.tensor(lengths),
        layer.conv,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
        pad_mode=pad_mode,  # pyright: ignore[reportArgumentType]
        causal=causal,
    )
    assert new_lengths.tolist() == [-(-length // stride) for length in lengths]
    assert y.shape[-1] == int(new_lengths.max())
    for row, clip, length, new_length in zip(y, x, lengths, new_lengths, strict=True):
        torch.testing.assert_close(row[:, :new_length], layer(clip[None, :, :length])[0], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, stride=st.sampled_from([2, 4, 5, 8]), causal=st.booleans(), seed=st.integers(0, 1000))
def test_a_transposed_convolution_gives_every_clip_what_it_gives_it_alone(
    lengths: list[int], stride: int, causal: bool, seed: int
):
    """Nothing flows from behind a clip into its end, and it grows by the stride."""
    layer = SConvTranspose1d(2, 3, 2 * stride, stride, causal=causal)
    x = ragged_batch(lengths, 2, seed)
    y, new_lengths = conv_transpose_ragged(
        x, torch.tensor(lengths), layer.convtr, kernel_size=2 * stride, stride=stride, causal=causal
    )
    assert new_lengths.tolist() == [length * stride for length in lengths]
    for row, clip, length in zip(y, x, lengths, strict=True):
        torch.testing.assert_close(row[:, : length * stride], layer(clip[None, :, :length])[0], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, bidirectional=st.booleans(), skip=st.booleans(), seed=st.integers(0, 1000))
def test_an_lstm_begins_and_ends_with_each_clip(lengths: list[int], bidirectional: bool, skip: bool, seed: int):
    """One that reads backwards begins at the clip's own end, not in its neighbour's padding."""
    layer = SLSTM(3, num_layers=2, skip=skip, bidirectional=bidirectional)
    x = ragged_batch(lengths, 3, seed)
    y = lstm_ragged(x, torch.tensor(lengths), layer.lstm, skip=skip)
    assert y.shape == (len(lengths), 6 if bidirectional else 3, max(lengths))
    for row, clip, length in zip(y, x, lengths, strict=True):
        torch.testing.assert_close(row[:, :length], layer(clip[None, :, :length])[0], rtol=0, atol=2e-6)


def test_a_batch_that_is_padded_with_zeros_and_run_as_it_is_would_differ():
    """The mistake that this module is there for, so that the tests above are known to see it."""
    layer = SConv1d(2, 3, 7)
    x = ragged_batch([20, 12], 2, seed=0).nan_to_num(0)
    careless = layer(x)[1, :, :12]
    assert (careless - layer(x[1:, :, :12])[0]).abs().max() > 1e-2


def test_each_clip_is_mirrored_about_its_own_end():
    """By hand: three and five samples, two of padding on either side."""
    x = torch.tensor([[[1.0, 2, 3, 9, 9]], [[1, 2, 3, 4, 5]]])
    padded = pad_ragged(x, torch.tensor([3, 5]), Padding(2, 2))
    assert padded[0, 0, :7].tolist() == [3, 2, 1, 2, 3, 2, 1]
    assert padded[1, 0].tolist() == [3, 2, 1, 2, 3, 4, 5, 4, 3]


def test_a_clip_too_short_to_be_mirrored_gets_zeros_behind_it_first():
    """As the public layers do it: 1 2 0 is mirrored, then cut to the padding of two samples."""
    x = torch.tensor([[[1.0, 2, 9, 9, 9]], [[1, 2, 3, 4, 5]]])
    padded = pad_ragged(x, torch.tensor([2, 5]), Padding(2, 2))
    assert padded[0, 0, :6].tolist() == [0, 2, 1, 2, 0, 2]


def test_padding_is_half_left_and_half_right_and_all_of_it_left_if_causal():
    """The odd sample is left."""
    assert conv_padding(7) == Padding(3, 3)
    assert conv_padding(10, 5) == Padding(3, 2)
    assert conv_padding(3, 1, 2, causal=True) == Padding(4, 0)


@given(st.lists(st.integers(1, 2**40), min_size=1), st.integers(1, 640))
def test_lengths_are_rounded_up_however_long_the_sound_is(lengths: list[int], stride: int):
    """In whole numbers: the public layers lose count behind 2^24 samples."""
    assert lengths_after(torch.tensor(lengths), stride).tolist() == [-(-length // stride) for length in lengths]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_is_called_is_the_lstm_itself(bidirectional: bool):
    """No copy of the weights is made: a change of them is a change of the result."""
    lstm = nn.LSTM(2, 2, bidirectional=bidirectional)
    x, lengths = ragged_batch([4, 6], 2, seed=1), torch.tensor([4, 6])
    before = lstm_ragged(x, lengths, lstm, skip=False)[:, :, :4]
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.add_(0.5)
    assert not torch.allclose(before, lstm_ragged(x, lengths, lstm, skip=False)[:, :, :4])
