"""What the numbers mean: ordered blocks of token ids, one block for the text and one for each medium.

Source: AnyGPT (arXiv 2402.12226) section 3.1, Table 1; the strings and the order of addition are those of the
released code (added tokens: dialogue markers first, then image, speech, music).

A medium's block is ``codebook_size * levels`` code ids followed by its start and its end marker, so a token id tells
its modality by its block. Media at rest are codec-local codes ``(frames, levels)``; only here do they become token
ids, so a new vocabulary never means tokenizing media again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ConfigError, DatasetError, SampleError
from shards.modality import Modality as Modality  # what a block is the ids of, so people look for it here

_BLOCK_KEYS = ("name", "prefix", "start", "end", "codebook_size", "levels", "first_id")

Codes = npt.NDArray[np.uint16]
TokenIds = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class MediaBlock:
    """The ids of one medium: ``first_id ... first_id + codebook_size*levels - 1``, then start, then end marker.

    ``levels`` counts the levels the language model reads (image 1, speech 1, music 4), not those kept at rest.
    """

    name: str
    prefix: str
    start: str
    end: str
    codebook_size: int
    levels: int
    first_id: int

    @property
    def num_codes(self) -> int:
        """Number of code ids in this block, markers not counted."""
        return self.codebook_size * self.levels

    @property
    def stop_id(self) -> int:
        """One past the last code id."""
        return self.first_id + self.num_codes

    @property
    def start_id(self) -> int:
        """Id of the start marker."""
        return self.stop_id

    @property
    def end_id(self) -> int:
        """Id of the end marker."""
        return self.stop_id + 1

    def to_token_ids(self, codes: Codes) -> TokenIds:
        """Flatten codes frame by frame and shift each level into its own id range; markers are not added.

        Args:
            codes: (frames, levels at rest), values in [0, codebook_size); levels above ``self.levels`` are not read.

        Returns:
            (frames * levels,) int64 token ids in [first_id, stop_id).

        Raises:
            SampleError: ``codes_out_of_range`` if the shape or a value does not fit the codebook.
        """
        if codes.ndim != 2 or codes.shape[1] < self.levels:
            raise SampleError(
                "codes_out_of_range",
                f"{self.name}: expected (frames, >={self.levels}) codes, found shape {codes.shape}",
            )
        read = codes[:, : self.levels].astype(np.int64)
        if read.size and (int(read.min()) < 0 or int(read.max()) >= self.codebook_size):
            raise SampleError(
                "codes_out_of_range",
                f"{self.name}: expected codes in [0, {self.codebook_size}), found {int(read.min())}..{int(read.max())}",
            )
        offsets = np.arange(self.levels, dtype=np.int64) * self.codebook_size + self.first_id
        return (read + offsets).reshape(-1)

    def to_codes(self, token_ids: TokenIds) -> Codes:
        """Inverse of :meth:`to_token_ids`.

        Args:
            token_ids: (frames * levels,) ids of this block, levels in order.

        Returns:
            (frames, levels) uint16.

        Raises:
            SampleError: ``levels_out_of_order`` if an id is outside the block, of the wrong level, or a frame is cut.
        """
        ids = np.asarray(token_ids, dtype=np.int64) - self.first_id
        if ids.size % self.levels:
            raise SampleError(
                "levels_out_of_order", f"{self.name}: expected a multiple of {self.levels} ids, found {ids.size}"
            )
        grid = ids.reshape(-1, self.levels)
        codes = grid - np.arange(self.levels, dtype=np.int64) * self.codebook_size
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise SampleError("levels_out_of_order", f"{self.name}: an id lies outside its level's range")
        return codes.astype(np.uint16)

    def to_text(self, codes: Codes) -> str:
        """AnyGPT's own string for these codes, with markers: ``<soim><👀17>...<eoim>``."""
        local = self.to_token_ids(codes) - self.first_id
        return self.start + "".join(f"<{self.prefix}{index}>" for index in local.tolist()) + self.end

    def from_text(self, text: str) -> Codes:
        """Inverse of :meth:`to_text`; strict about markers, prefix (U+FE0F included), range and digits.

        Raises:
            SampleError: ``token_text_malformed`` naming what is wrong.
        """
        if not (text.startswith(self.start) and text.endswith(self.end)):
            raise SampleError(
                "token_text_malformed", f"{self.name}: expected {self.start}...{self.end}, found {text[:40]!r}"
            )
        body = text[len(self.start) : len(text) - len(self.end)]
        if not re.fullmatch(rf"(?:<{re.escape(self.prefix)}(?:0|[1-9][0-9]*)>)+", body):
            found = f"expected only <{self.prefix}N> tokens, found {body[:60]!r}"
            raise SampleError("token_text_malformed", f"{self.name}: {found}")
        local = np.array([int(digits) for digits in re.findall(rf"<{re.escape(self.prefix)}([0-9]+)>", body)], np.int64)
        if int(local.max()) >= self.num_codes:
            raise SampleError(
                "token_text_malformed",
                f"{self.name}: expected indices below {self.num_codes}, found {int(local.max())}",
            )
        return self.to_codes(local + self.first_id)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Text ids, dialogue markers and media blocks, in that order unless a checkpoint says otherwise.

    Attributes:
        name: the layout, e.g. ``anygpt-stage1``.
        text_size: ids ``[0, text_size)`` belong to the text tokenizer.
        markers: added dialogue markers (``[Human]`` ...) to their ids.
        blocks: media blocks by name; a block that is no ``Modality`` is carried, unused.
        bos_id, eos_id, pad_id: ids of ``<s>``, ``</s>`` and the padding (``<unk>`` in LLaMA) inside the text ids.
        text_fingerprint: identity of the text tokenizer's files; empty in a layout that no tokenizer was bound to yet.
    """

    name: str
    text_size: int
    markers: Mapping[str, int]
    blocks: Mapping[str, MediaBlock]
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 0
    text_fingerprint: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        taken = [(0, self.text_size, "text")]
        taken += [(marker_id, marker_id + 1, marker) for marker, marker_id in self.markers.items()]
        taken += [(block.first_id, block.end_id + 1, name) for name, block in self.blocks.items()]
        taken.sort()
        for (_, stop, left), (start, _, right) in pairwise(taken):
            if start != stop:
                raise ConfigError(
                    f"vocabulary {self.name}: expected {right!r} to begin at id {stop}, right after {left!r}, "
                    f"found {start}; every block must be contiguous"
                )
        object.__setattr__(self, "size", taken[-1][1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """How ids are stored: uint16 while the vocabulary is <= 65,536, uint32 above."""
        return np.dtype(np.uint16) if self.size <= 1 << 16 else np.dtype(np.uint32)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides what an id means."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def block(self, modality: str) -> MediaBlock:
        """The block of a modality.

        Raises:
            ConfigError: if this vocabulary has none.
        """
        if modality not in self.blocks:
            raise ConfigError(f"vocabulary {self.name}: expected a block {modality!r}, found {sorted(self.blocks)}")
        return self.blocks[modality]

    def marker(self, name: str) -> int:
        """Id of a dialogue marker such as ``<eoh>``; ``ConfigError`` if the layout lacks it."""
        if name not in self.markers:
            raise ConfigError(f"vocabulary {self.name}: expected the marker {name!r}, found {sorted(self.markers)}")
        return self.markers[name]

    def media_token_ids(self, modality: str, codes: Codes) -> TokenIds:
        """Start marker + flattened codes + end marker."""
        block = self.block(modality)
        return np.concatenate([[block.start_id], block.to_token_ids(codes), [block.end_id]])

    def modality_names(self) -> list[str]:
        """Names in the order of :meth:`modality_index`: ``text`` first, then the media blocks in id order."""
        return ["text", *(b.name for b in sorted(self.blocks.values(), key=lambda b: b.first_id))]

    def modality_index(self) -> npt.NDArray[np.uint8]:
        """(size,) lookup: token id -> index into :meth:`modality_names`; markers of a medium count as that medium."""
        index = np.zeros(self.size, np.uint8)
        for number, name in enumerate(self.modality_names()):
            if name != "text":
                block = self.blocks[name]
                index[block.first_id : block.end_id + 1] = number
        return index

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` turns back into an equal vocabulary."""
        return {
            "name": self.name,
            "text_size": self.text_size,
            "markers": dict(self.markers),
            "blocks": [
                {key: getattr(block, key) for key in _BLOCK_KEYS}
                for block in sorted(self.blocks.values(), key=lambda b: b.first_id)
            ],
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "text_fingerprint": self.text_fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_json` wrote."""
        blocks = {str(block["name"]): MediaBlock(**block) for block in data["blocks"]}
        rest = {key: value for key, value in data.items() if key != "blocks"}
        return cls(blocks=blocks, **rest)


def lay_out(
    name: str,
    *,
    text_size: int,
    markers: Sequence[str],
    media: Sequence[Mapping[str, Any]],
    text_fingerprint: str = "",
    bos_id: int = 1,
    eos_id: int = 2,
    pad_id: int = 0,
) -> Vocabulary:
    """Number a layout the way the released scripts add tokens: text, dialogue markers, then each medium in order.

    Args:
        media: one mapping a medium with ``name prefix start end codebook_size levels``.
    """
    marker_ids = {marker: text_size + number for number, marker in enumerate(markers)}
    next_id = text_size + len(marker_ids)
    blocks: dict[str, MediaBlock] = {}
    for medium in media:
        block = MediaBlock(first_id=next_id, **medium)
        blocks[block.name] = block
        next_id = block.end_id + 1
    return Vocabulary(
        name,
        text_size,
        marker_ids,
        blocks,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        text_fingerprint=text_fingerprint,
    )


def from_added_tokens(
    name: str, *, text_size: int, added_tokens: Mapping[str, int], media: Sequence[Mapping[str, Any]]
) -> Vocabulary:
    """Build the map from a checkpoint's own ``added_tokens.json``; never assume ids of a published checkpoint.

    Args:
        text_size: rows of the base text tokenizer (32,000 for LLaMA-2).
        added_tokens: token string -> id, as the file has it.
        media: what may be there, as for :func:`lay_out`; a medium whose first token is absent is left out.

    Raises:
        DatasetError: if a run ``<prefix0>...<prefixN-1>`` or its markers are incomplete or not contiguous.
    """
    rest = dict(added_tokens)
    blocks: dict[str, MediaBlock] = {}
    for medium in media:
        first = rest.get(f"<{medium['prefix']}0>")
        if first is None:
            continue
        block = MediaBlock(first_id=first, **medium)
        expected = {f"<{block.prefix}{index}>": first + index for index in range(block.num_codes)}
        expected |= {block.start: block.start_id, block.end: block.end_id}
        wrong = [token for token, token_id in expected.items() if rest.pop(token, None) != token_id]
        if wrong:
            raise DatasetError(
                f"vocabulary {name}: expected {block.name} as one contiguous run from id {first}, found {wrong[0]!r} "
                f"elsewhere or missing ({len(wrong)} in all); use the tokenizer files of the checkpoint itself"
            )
        blocks[block.name] = block
    # Some tokenizers list their own <s> </s> <unk> among the added tokens.
    markers = {token: token_id for token, token_id in rest.items() if token_id >= text_size}
    return Vocabulary(name, text_size, dict(sorted(markers.items(), key=lambda item: item[1])), blocks)
