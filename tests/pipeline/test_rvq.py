"""Nearest codes: always float32, and the same as the long form's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechtokenizer.quantization import ResidualVectorQuantizer

from pipeline.tokenizers.precision import arithmetic, encoder_dtype
from pipeline.tokenizers.rvq import decode_residual, encode_residual, half_norms, nearest_codes


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal values, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 16), st.integers(0, 1000))
def test_a_code_is_never_farther_than_any_other(count: int, codes: int, width: int, seed: int):
    """Against distances in float64, but for what float32 cannot tell apart."""
    latents, codebook = gaussian(count, width, seed=seed), gaussian(codes, width, seed=seed + 1)
    found = nearest_codes(latents, codebook)
    distances = torch.cdist(latents.double(), codebook.double()).square()
    assert found.shape == (count,) and found.dtype == torch.int64
    assert (distances.gather(1, found[:, None])[:, 0] - distances.min(dim=1).values).max() < 1e-4


def test_of_equal_codes_the_first_is_taken():
    """An order that does not depend on the machine."""
    codebook = gaussian(1, 5, seed=0).repeat(7, 1)
    assert nearest_codes(gaussian(9, 5, seed=1), codebook).tolist() == [0] * 9


def test_many_latents_are_looked_up_as_few_are():
    """More than one block of them."""
    latents, codebook = gaussian((1 << 16) + 5, 3, seed=0), gaussian(4, 3, seed=1)
    assert torch.equal(nearest_codes(latents, codebook)[-5:], nearest_codes(latents[-5:], codebook))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 1000))
def test_residual_codes_are_those_of_the_package_and_decode_to_its_sum(batch: int, frames: int, seed: int):
    """All levels, on latents that were never seen."""
    package = ResidualVectorQuantizer(dimension=6, n_q=8, bins=64).eval()
    codebooks = gaussian(8, 64, 6, seed=seed) * torch.logspace(0, -1, 8)[:, None, None]
    for layer, codebook in zip(package.vq.layers, codebooks, strict=True):
        layer._codebook.embed.copy_(codebook)
        layer._codebook.inited.fill_(1)
    latents = gaussian(batch, frames, 6, seed=seed + 1)
    codes = encode_residual(latents, codebooks)
    theirs = package.encode(latents.transpose(1, 2))
    assert codes.shape == (batch, frames, 8)
    assert torch.equal(codes, theirs.permute(1, 2, 0))
    torch.testing.assert_close(decode_residual(codes, codebooks), package.decode(theirs).transpose(1, 2))
    last = decode_residual(codes[..., 3:], codebooks, first_level=3)
    torch.testing.assert_close(last, package.decode(theirs[3:], st=3).transpose(1, 2))


def test_a_level_is_looked_up_in_what_the_levels_before_left_over():
    """By hand: 2.9 is 2 and a rest of 0.9, which is 1."""
    codebooks = torch.tensor([[[0.0], [2.0]], [[0.0], [1.0]]])
    assert encode_residual(torch.tensor([[2.9], [0.2]]), codebooks).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_whatever_is_not_float32_is_refused(dtype: torch.dtype):
    """A half-precision look-up changes up to nine codes in ten, and says nothing."""
    latents, codebook = gaussian(4, 3, seed=0), gaussian(5, 3, seed=1)
    for wrong in (
        lambda: nearest_codes(latents.to(dtype), codebook),
        lambda: nearest_codes(latents, codebook.to(dtype)),
        lambda: nearest_codes(latents, codebook, half_norms(codebook).to(dtype)),
        lambda: encode_residual(latents.to(dtype), codebook[None]),
        lambda: encode_residual(latents, codebook[None].to(dtype)),
        lambda: half_norms(codebook.to(dtype)),
    ):
        with pytest.raises(ValueError, match=r"expected .* in float32, found"):
            wrong()


def test_a_callers_autocast_does_not_reach_the_look_up():
    """It would compute the scores in bfloat16."""
    latents, codebook = gaussian(500, 64, seed=0), gaussian(512, 64, seed=1) * 0.01
    expected = nearest_codes(latents, codebook)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        careless = torch.addmm(half_norms(codebook), latents, codebook.t(), beta=-1).argmax(dim=1)
        assert torch.equal(nearest_codes(latents, codebook), expected)
    assert not torch.equal(careless, expected)


def arithmetic_state() -> tuple[str, ...]:
    """What PyTorch may compute float32 products in."""
    backends = torch.backends
    return tuple(
        one.fp32_precision
        for one in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    )


@pytest.mark.parametrize(("precision", "on_gpu"), [("fp32", "ieee"), ("tf32", "tf32"), ("fp16", "ieee")])
def test_arithmetic_holds_inside_and_is_put_back_also_after_an_error(precision: str, on_gpu: str):
    """Both the older and the newer switches agree inside, for the compiler reads the older."""
    before = arithmetic_state(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), arithmetic(precision):  # pyright: ignore[reportArgumentType]
        assert arithmetic_state() == (on_gpu, on_gpu, on_gpu, "ieee")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (on_gpu == "tf32")
        raise KeyError
    assert (arithmetic_state(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_a_process_that_asked_for_short_products_gets_them_back_but_an_encoder_does_not_have_them():
    """``medium`` lets a CPU compute products in bfloat16."""
    torch.set_float32_matmul_precision("medium")
    try:
        before = arithmetic_state()
        with arithmetic("fp32"):
            assert set(arithmetic_state()) == {"ieee"}
        assert arithmetic_state() == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"  # pyright: ignore[reportAttributeAccessIssue]


def test_there_is_no_bfloat16_encoder():
    """It changes 7 to 26 % of the codes."""
    assert [encoder_dtype(one) for one in ("fp32", "tf32", "fp16")] == [torch.float32, torch.float32, torch.float16]
