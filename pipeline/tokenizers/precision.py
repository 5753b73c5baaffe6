"""What float32 means while an encoder runs: full float32, or the short mantissa of a GPU's matrix units (TF32).

PyTorch lets cuDNN convolutions and LSTMs use TF32 unless told otherwise, and a CPU may compute float32 products in
bfloat16 if a caller once asked for ``medium`` products. Both change codes (tokenizers sheet 5.2), so an encoder never
relies on what the process happens to be set to: it runs inside :func:`arithmetic`, and a codebook look-up inside
``arithmetic("fp32")``. Nothing here knows bfloat16: it changes 7 to 26 % of the codes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch

from pipeline.tokenizers.weights import Precision

_BACKENDS = cast(Any, torch.backends)
_NUM_GPU_BACKENDS = 3


def encoder_dtype(precision: Precision) -> torch.dtype:
    """What an encoder's weights and activations are kept in: float16 for ``fp16``, float32 otherwise."""
    return torch.float16 if precision == "fp16" else torch.float32


@contextmanager
def arithmetic(precision: Precision) -> Generator[None]:
    """Set what float32 products may be computed in, on every device, and put it back afterwards.

    ``tf32`` lets matrix products, convolutions and LSTMs of a GPU use TF32; ``fp32`` and ``fp16`` (whose few float32
    products are there for a reason) do not. Autocast is off inside: a caller's may not reach in. The settings belong to
    the process, as PyTorch's do: do not run two encoders of different precision in two threads.
    """
    before = [backend.fp32_precision for backend in _backends()]
    legacy = _legacy_flags()
    try:
        # The older switches as well as the newer ones: the compiler reads the older, and they must agree.
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        _BACKENDS.cudnn.allow_tf32 = precision == "tf32"
        for number, backend in enumerate(_backends()):
            backend.fp32_precision = "tf32" if precision == "tf32" and number < _NUM_GPU_BACKENDS else "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            _BACKENDS.cudnn.allow_tf32 = legacy[1]
        for backend, value in zip(_backends(), before, strict=True):
            backend.fp32_precision = value


def _backends() -> list[Any]:
    """Products, convolutions and recurrences: of a GPU, then of a CPU."""
    return [
        *(_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn),
        *(_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn),
    ]


def _legacy_flags() -> tuple[str, bool] | None:
    """None where a caller set the newer switches only: PyTorch refuses to read the older ones then."""
    try:
        return torch.get_float32_matmul_precision(), bool(_BACKENDS.cudnn.allow_tf32)
    except RuntimeError:
        return None
