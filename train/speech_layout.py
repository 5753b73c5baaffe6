"""Pieces of speech of many lengths, lifted out of flat rows into batches of neighbours in length.

Letters: B pieces of a group, N frames of the longest of them, L levels, all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from train.masking import Flags, Masking, Span

_SHORTEST = 0.75
"""Of the longest in its group: what is shorter begins another, so that at most a quarter is padding."""


@dataclass(frozen=True, slots=True)
class SpeechGroup:
    """Pieces that go through the network together.

    Attributes:
        places: (B, N, L) where each code is in the flattened rows; 0 where there is padding.
        mask: (B, N) True for frames, or None where all are of one length.
        levels: (B,) the level each is to tell, from 1.
    """

    places: torch.Tensor
    mask: torch.Tensor | None
    levels: torch.Tensor


@dataclass(frozen=True, slots=True)
class SpeechLayout:
    """All pieces of a forward pass.

    Attributes:
        is_hidden: (rows * length,) bool.
    """

    groups: tuple[SpeechGroup, ...]
    is_hidden: torch.Tensor


def lay_out_speech(spans: Sequence[Span], is_hidden: Flags, masking: Masking, device: torch.device) -> SpeechLayout:
    """Group the pieces of some rows.

    Args:
        is_hidden: (rows, length).
    """
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (-span.num_frames, span.start)):
        if not groups or span.num_frames < _SHORTEST * groups[-1][0].num_frames:
            groups.append([])
        groups[-1].append(span)
    laid_out = tuple(_group(group, masking.block.levels, device) for group in groups)
    return SpeechLayout(laid_out, torch.from_numpy(np.ascontiguousarray(is_hidden).reshape(-1)).to(device))


def _group(spans: Sequence[Span], num_levels: int, device: torch.device) -> SpeechGroup:
    longest = spans[0].num_frames
    starts_B11 = torch.tensor([span.start for span in spans])[:, None, None]
    frames_B1 = torch.tensor([span.num_frames for span in spans])[:, None]
    mask_BN = torch.arange(longest) < frames_B1
    places_NL = torch.arange(longest * num_levels).reshape(longest, num_levels)
    places_BNL = torch.where(mask_BN[..., None], starts_B11 + places_NL, 0)
    levels_B = torch.tensor([span.level for span in spans])
    mask = None if bool(mask_BN.all()) else mask_BN.to(device)
    return SpeechGroup(places_BNL.to(device), mask, levels_B.to(device))
