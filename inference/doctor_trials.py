"""One sample through a codec and back: rate, range, the same alone and in a batch, the right length, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inference.diagnosis import Check, attempt
from inference.doctor_media import made_up_media
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer, Medium
from pipeline.tokenizers.weights import Precision
from shards.modality import Modality
from shards.vocabulary import Codes

TOLERATED: Mapping[Precision, float] = {"fp32": 0.0, "tf32": 0.01, "fp16": 0.01}
"""Share of codes that may differ between alone and in a batch. Short mantissas depend on the order of a kernel's sums,
and that on the size of a batch; float32 has never been seen to change a code by it."""
_PICTURE_SHAPE = (3, 3)
"""Dimensions, and colours in the last of them."""


def try_codec(
    codec: MediaTokenizer,
    open_back: Callable[[], MediaDetokenizer],
    *,
    precision: Precision = "fp32",
    absent: Sequence[str] = (),
) -> list[Check]:
    """A sample through the codec: rate, range, batch, and back.

    Args:
        open_back: asked for only if the codec does not decode itself.
        absent: files that the way back needs and that are not there.
    """
    media = made_up_media(codec.modality)
    together, check = attempt("codes", lambda: codec.encode(media))
    if together is None:
        return [check]
    started = time.perf_counter()
    first, check = attempt("codes", lambda: codec.encode(media[:1])[0])
    seconds = time.perf_counter() - started
    if first is None:
        return [check]
    checks = [check_codes(first, media[0], codec)]
    if checks[0].status == "wrong":
        return checks
    checks.append(check_speed("way in, speed", media[0], seconds, codec.modality))
    alone, check = attempt("batch", lambda: [first, *(codec.encode([medium])[0] for medium in media[1:])])
    checks.append(check if alone is None else check_batch(alone, together, tolerated=TOLERATED[precision]))
    if absent:
        return [*checks, Check("skipped", "way back", f"it needs {'; '.join(absent)}; the way in does without")]
    return checks + try_way_back(codec, first, open_back)


def try_way_back(codec: MediaTokenizer, codes: Codes, open_back: Callable[[], MediaDetokenizer]) -> list[Check]:
    """Codes to a medium: its shape, and how long it took."""
    back: MediaDetokenizer | None
    if isinstance(codec, MediaDetokenizer):
        back = codec
    else:
        back, check = attempt("way back", open_back)
        if back is None:
            return [check]
    opened = back
    started = time.perf_counter()
    media, check = attempt("way back", lambda: opened.decode([codes]))
    seconds = time.perf_counter() - started
    if media is None:
        return [check]
    checks = [
        check_medium(media[0], codes, codec.modality),
        check_speed("way back, speed", media[0], seconds, codec.modality),
    ]
    if codec.modality is Modality.SPEECH:
        level_1, check = attempt("level 1 alone", lambda: opened.decode([codes[:, :1]])[0])
        checks.append(
            check if level_1 is None else check_medium(level_1, codes[:, :1], codec.modality, "level 1 alone")
        )
    return checks


def check_codes(codes: Codes, medium: Medium, codec: MediaTokenizer) -> Check:
    """Hold the codes of one sample to Table 1."""
    rate = codec.modality.rate
    expected = (rate.frames_for(len(medium)), rate.levels_at_rest)
    if codes.shape != expected:
        return Check("wrong", "codes", f"expected (frames, levels) = {expected} by Table 1, found {codes.shape}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= rate.codebook_size:
        return Check("wrong", "codes", f"expected codes in [0, {rate.codebook_size:,}), found {low} to {high}")
    pace = f"{rate.frame_rate_hz:g} frames/s" if rate.is_sound else "any picture"
    note = f"{codes.shape}, as Table 1 says for {pace}; {low} to {high} of {rate.codebook_size:,}"
    distinct = len(np.unique(codes))
    if distinct == 1:
        return Check("wrong", "codes", f"{note}; but all of them are {low}: the weights are not trained, or not these")
    return Check("ok", "codes", f"{note}, {distinct} different ones")


def check_batch(alone: Sequence[Codes], together: Sequence[Codes], *, tolerated: float) -> Check:
    """Hold codes of a batch to those of each item alone.

    Args:
        tolerated: share of codes that may differ.
    """
    pairs = list(zip(alone, together, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return Check("wrong", "batch", "a sample has another number of codes in a batch than alone")
    differing, total = sum(int((a != b).sum()) for a, b in pairs), sum(one.size for one in alone)
    note = f"{differing:,} of {total:,} codes differ between each of {len(pairs)} samples alone and all in a batch"
    if differing > tolerated * total:
        return Check("wrong", "batch", f"{note}; use precision fp32, and report it if it is that already")
    return Check("ok", "batch", note)


def check_medium(medium: Medium, codes: Codes, modality: Modality, what: str = "way back") -> Check:
    """Hold what was decoded to the shape and range that its codes promise."""
    if not modality.is_sound:
        is_picture = (medium.ndim, medium.shape[-1]) == _PICTURE_SHAPE and medium.dtype == np.uint8
        if not is_picture:
            return Check(
                "wrong", what, f"expected a picture (height, width, 3) uint8, found {medium.shape} {medium.dtype}"
            )
        return Check("ok", what, f"a picture of {medium.shape[0]} x {medium.shape[1]} from {len(codes)} codes")
    expected = len(codes) * modality.rate.samples_per_frame
    if medium.shape != (expected,) or medium.dtype != np.float32:
        return Check("wrong", what, f"expected {expected:,} samples of float32, found {medium.shape} {medium.dtype}")
    if not np.isfinite(medium).all():
        return Check("wrong", what, "some samples are no number; use precision fp32")
    return Check("ok", what, f"{expected:,} samples from codes {codes.shape}, peak {float(np.abs(medium).max()):.3g}")


def check_speed(what: str, medium: Medium, seconds: float, modality: Modality) -> Check:
    """Say how long one sample took; no speed is wrong."""
    if not modality.is_sound:
        return Check("ok", what, f"{seconds:.2f} s for one picture")
    duration_s = len(medium) / modality.rate.sample_rate_hz
    return Check(
        "ok", what, f"{seconds:.2f} s for {duration_s:.2f} s, {duration_s / max(seconds, 1e-9):,.0f} times real time"
    )
