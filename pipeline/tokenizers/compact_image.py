"""``compact`` pictures: two-tone block coding, 32 codes of 8,192 for any 224x224 picture.

A picture is cut into 4x4 cells. Each cell is written as two codes, a *pattern* (which part of the cell is foreground,
a soft 14x14 mask) and a *palette* (the cell's two colours); the decoder paints ``back + mask * (fore - back)``.
Codes run cell by cell in reading order, pattern before palette. Both kinds share Table 1's one codebook:

    [0, 2048)     palettes   (back RGB, fore RGB)
    [2048, 8192)  patterns   (14 x 14 masks); the first of them is always the empty mask of a flat cell

Why two kinds: form and colour become separate codes, so a language model that has seen stars and has seen blue can
write a blue star that no training picture showed. Which of a cell's two colours is "back" is decided once per picture,
by its border, and not by brightness; otherwise the mask of a shape would depend on its colour.

Codebooks are covers, not k-means: a vector becomes a new entry only if no entry lies within a radius, and the radius
grows until the entries fit. Shades that nobody can tell apart then share one code instead of being split into dozens,
which is what k-means does on clean drawings (measured in docs/decisions/0001-compact-codecs.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.tokenizers.base import Medium
from shards.vocabulary import Codes, Modality

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, Floats]

CODE_VERSION = 1
CODEBOOK_SIZE = 8192
NUM_PALETTES = 2048
NUM_PATTERNS = CODEBOOK_SIZE - NUM_PALETTES
SIDE = 224
GRID = 4  # cells per side
MASK = 14  # mask values per side of a cell
_HALF = SIDE // 2  # analysis runs at half resolution: four times cheaper, colours and masks are averages anyway
_CELL = _HALF // GRID
NUM_CODES = 2 * GRID * GRID

# Two colours closer than this (0..255, RMS over RGB) are one colour: the cell is flat.
_FLAT_DISTANCE = 14.0
PALETTE_RADIUS = 9.0  # RMS over the six colour values, 0..255
PATTERN_RADIUS = 0.13  # RMS over the 196 mask values, 0..1
_RADIUS_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Cells:
    """What a batch of pictures looks like to the codebooks, before quantisation.

    Attributes:
        palettes: (n, 16, 6) back RGB then fore RGB, 0..255.
        masks: (n, 16, 196) share of foreground, 0..1.
    """

    palettes: Floats
    masks: Floats


class CompactImage:
    """Picture codec; implements ``MediaTokenizer`` and ``MediaDetokenizer``."""

    name = "compact-image"
    modality = Modality.IMAGE
    codebook_size = CODEBOOK_SIZE
    levels = 1
    sample_rate_hz = 0
    frame_rate_hz = 0.0

    def __init__(self, tensors: Tensors, fingerprint: str = "") -> None:
        self.palettes = np.ascontiguousarray(tensors["palettes"], np.float32)
        self.patterns = np.ascontiguousarray(tensors["patterns"], np.float32)
        self.fingerprint = fingerprint

    def frames_for(self, num_samples: int) -> int:
        """32, whatever the picture."""
        del num_samples
        return NUM_CODES

    def encode(self, batch: Sequence[Medium]) -> list[Codes]:
        """(32, 1) codes per picture.

        Raises:
            ValueError: if a picture is not (224, 224, 3) uint8.
        """
        return [self._encode_one(_checked(picture)) for picture in batch]

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(224, 224, 3) uint8 per item; total: a code of the wrong kind paints a flat or a grey cell.

        Raises:
            ValueError: if an item does not hold exactly 32 codes.
        """
        return [self._decode_one(np.asarray(codes).reshape(-1)) for codes in batch]

    def _encode_one(self, picture: npt.NDArray[np.uint8]) -> Codes:
        cells = analyse(picture[None])
        codes = np.empty((GRID * GRID, 2), np.uint16)
        codes[:, 0] = NUM_PALETTES + nearest(cells.masks[0], self.patterns)
        codes[:, 1] = nearest(cells.palettes[0], self.palettes)
        return codes.reshape(NUM_CODES, 1)

    def _decode_one(self, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        if codes.size != NUM_CODES:
            raise ValueError(f"compact-image: expected {NUM_CODES} codes, found {codes.size}")
        pairs = codes.astype(np.int64).reshape(-1, 2)
        pattern = pairs[:, 0] - NUM_PALETTES
        masks = np.where(
            ((pattern >= 0) & (pattern < len(self.patterns)))[:, None], self.patterns[pattern % len(self.patterns)], 0.0
        )
        colours = np.where(
            (pairs[:, 1] < len(self.palettes))[:, None], self.palettes[pairs[:, 1] % len(self.palettes)], 127.5
        )
        return _paint(masks, colours)


def analyse(pictures: npt.NDArray[np.uint8]) -> Cells:
    """Two colours and a soft mask for each of the 16 cells of each picture.

    Args:
        pictures: (n, 224, 224, 3) uint8.
    """
    half = pictures.reshape(-1, _HALF, 2, _HALF, 2, 3).mean(axis=(2, 4), dtype=np.float32)
    edges = (half[:, :2], half[:, -2:], half[:, :, :2], half[:, :, -2:])
    border = np.concatenate([edge.reshape(len(half), -1, 3) for edge in edges], axis=1)
    outside = np.median(border, axis=1)[:, None, None, :]
    cells = half.reshape(-1, GRID, _CELL, GRID, _CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = cells.reshape(len(half), GRID * GRID, _CELL * _CELL, 3)
    back, fore = _two_colours(pixels, outside)
    flat = np.sqrt(np.mean((back - fore) ** 2, axis=-1, keepdims=True)) < _FLAT_DISTANCE
    mean = pixels.mean(axis=2)
    back, fore = np.where(flat, mean, back), np.where(flat, mean, fore)
    axis = (fore - back)[:, :, None, :]
    length = np.maximum((axis**2).sum(-1), 1e-6)
    share = np.clip(((pixels - back[:, :, None, :]) * axis).sum(-1) / length, 0.0, 1.0)
    share = np.where(flat, 0.0, share).reshape(len(half), GRID * GRID, MASK, _CELL // MASK, MASK, _CELL // MASK)
    masks = share.mean(axis=(3, 5)).reshape(len(half), GRID * GRID, MASK * MASK)
    return Cells(np.concatenate([back, fore], axis=-1).astype(np.float32), masks.astype(np.float32))


def fit_image(pictures: npt.NDArray[np.uint8]) -> dict[str, Floats]:
    """Fit both codebooks on pictures; the same pictures in the same order give the same tensors.

    Args:
        pictures: (n, 224, 224, 3) uint8.
    """
    parts = [analyse(pictures[start : start + 64]) for start in range(0, len(pictures), 64)]
    palettes = np.concatenate([part.palettes.reshape(-1, 6) for part in parts])
    masks = np.concatenate([part.masks.reshape(-1, MASK * MASK) for part in parts])
    drawn = masks[masks.max(axis=1) > 0]
    empty = np.zeros((1, MASK * MASK), np.float32)
    return {
        "palettes": cover(palettes, NUM_PALETTES, PALETTE_RADIUS),
        "patterns": np.concatenate([empty, cover(drawn, NUM_PATTERNS - 1, PATTERN_RADIUS)]),
    }


def cover(vectors: Floats, max_entries: int, radius: float) -> Floats:
    """A codebook in which every vector has an entry within a radius, each entry the mean of what it stands for.

    Args:
        vectors: (n, d).
        radius: RMS distance to start from; grown by a quarter until the cover has at most ``max_entries``.

    Returns:
        (entries <= max_entries, d), in order of first appearance.
    """
    if not len(vectors):
        return np.zeros((1, vectors.shape[1]), np.float32)
    entries = _leaders(vectors, max_entries, radius)
    while entries is None:
        radius *= _RADIUS_GROWTH
        entries = _leaders(vectors, max_entries, radius)
    owner = nearest(vectors, entries)
    total = np.zeros(entries.shape, np.float64)
    np.add.at(total, owner, vectors)
    count = np.bincount(owner, minlength=len(entries))[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), entries).astype(np.float32)


def nearest(vectors: Floats, entries: Floats) -> npt.NDArray[np.int64]:
    """(n,) index of the closest entry, fp32, ties to the lowest index; pieces of fixed size bound the memory."""
    half_norm = 0.5 * (entries * entries).sum(axis=1)
    pieces = [
        np.argmax(vectors[start : start + 1024] @ entries.T - half_norm, axis=1)
        for start in range(0, len(vectors), 1024)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _leaders(vectors: Floats, max_entries: int, radius: float) -> Floats | None:
    limit = radius * radius * vectors.shape[1]
    entries = np.empty((max_entries, vectors.shape[1]), np.float32)
    count = 0
    for start in range(0, len(vectors), 2048):
        block = vectors[start : start + 2048]
        if count:
            known = entries[:count]
            closest = (block**2).sum(1) + ((known**2).sum(1) - 2 * block @ known.T).min(axis=1)
            block = block[closest > limit]
        while len(block):
            if count == max_entries:
                return None
            entries[count] = block[0]
            block = block[((block - entries[count]) ** 2).sum(1) > limit]
            count += 1
    return entries[:count].copy()


def _two_colours(pixels: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """Two-means of each cell's pixels; ``back`` is the one closer to the colour outside.

    Args:
        pixels: (n, cells, pixels, 3).
        outside: (n, 1, 1, 3).
    """
    distance = ((pixels - outside) ** 2).sum(-1)
    back = np.take_along_axis(pixels, distance.argmin(-1)[..., None, None], axis=2)[:, :, 0]
    fore = np.take_along_axis(pixels, distance.argmax(-1)[..., None, None], axis=2)[:, :, 0]
    for _ in range(4):
        to_back = ((pixels - back[:, :, None]) ** 2).sum(-1)
        is_fore = (((pixels - fore[:, :, None]) ** 2).sum(-1) < to_back).astype(np.float32)[..., None]
        weight = is_fore.sum(2)
        fore = np.where(weight > 0, (pixels * is_fore).sum(2) / np.maximum(weight, 1), fore)
        rest = pixels.shape[2] - weight
        back = np.where(rest > 0, (pixels * (1 - is_fore)).sum(2) / np.maximum(rest, 1), back)
    swap = ((fore - outside[:, 0]) ** 2).sum(-1, keepdims=True) < ((back - outside[:, 0]) ** 2).sum(-1, keepdims=True)
    return np.where(swap, fore, back), np.where(swap, back, fore)


def _paint(masks: Floats, colours: Floats) -> npt.NDArray[np.uint8]:
    """Blend each cell's two colours by its mask, masks interpolated bilinearly inside the cell."""
    weights = _interpolation(SIDE // GRID)
    smooth = np.einsum("pm,cmn,qn->cpq", weights, masks.reshape(-1, MASK, MASK), weights)[..., None]
    back, fore = colours[:, None, None, :3], colours[:, None, None, 3:]
    cells = (back + smooth * (fore - back)).reshape(GRID, GRID, SIDE // GRID, SIDE // GRID, 3)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, 3)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _interpolation(size: int) -> Floats:
    """(size, 14) bilinear weights with edge replication: centres of ``size`` pixels between centres of 14."""
    position = np.clip((np.arange(size) + 0.5) * MASK / size - 0.5, 0, MASK - 1)
    low = np.minimum(position.astype(int), MASK - 2)
    weights = np.zeros((size, MASK), np.float32)
    weights[np.arange(size), low] = 1 - (position - low)
    weights[np.arange(size), low + 1] = position - low
    return weights


def _checked(picture: Medium) -> npt.NDArray[np.uint8]:
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"compact-image: expected (224, 224, 3) uint8, found {picture.shape} {picture.dtype}")
    return picture.astype(np.uint8, copy=False)
