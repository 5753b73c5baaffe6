"""Training or validation: which part a sample belongs to, told by what it says and shows.

A part is decided by a hash of the content alone: the checksums of the media and the texts, in no order, not the id. So the
same content is in one part however often and in however many corpora it was published, and adding data moves nothing.
Content is the whole sample: one picture with two captions is two contents, and may be in both parts.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from shards.records import Segment, TokenizedSample

SplitBy = Literal["content", "id"]
"""What of a sample is hashed."""


def is_validation(sample: TokenizedSample, share: float, *, by: SplitBy = "content") -> bool:
    """Whether a sample belongs to the validation part.

    Args:
        share: of all contents (or ids) that belong to it, in [0, 1]. A larger share keeps what a smaller one has.
    """
    key = content_key(sample) if by == "content" else sample.sample_id.encode()
    digest = hashlib.blake2b(key, digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def content_key(sample: TokenizedSample) -> bytes:
    """Equal for samples of equal media and texts, in whatever order and under whatever ids and roles."""
    return b"".join(sorted(_segment_key(segment) for segment in sample.segments))


def _segment_key(segment: Segment) -> bytes:
    """A text by its characters; a medium by the checksum of its bytes, or by its codes where that is not known."""
    if segment.text is not None:
        return hashlib.blake2b(segment.text.encode(), digest_size=16, person=b"text").digest()
    if segment.media_sha256 or segment.codes is None:
        return hashlib.blake2b(segment.media_sha256.encode(), digest_size=16, person=b"media").digest()
    codes = np.ascontiguousarray(segment.codes, "<u2")
    return hashlib.blake2b(codes.tobytes(), digest_size=16, person=segment.modality.encode()).digest()
