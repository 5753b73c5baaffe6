"""Signatures: one sample to the few bytes by which its copies are found, without keeping the sample.

* Exact: sha256 of the encoded bytes of every medium (a cut of a recording adds its times, as ``media_sha256`` of a shard
  does), and of a sound's decoded samples too, so that the same sound in another container or lossless format is found.
  Sounds get no acoustic fingerprint: one that was coded again with loss is another sound here.
* Near, pictures: a perceptual hash (imagehash) of what the picture tokenizer would read, and the colours of its four
  quarters, because the hash is blind to colour. A picture that shows next to nothing (one colour, or a plain slope from
  one to another) has no perceptual hash: all such pictures would be alike.
* Near, text: MinHash (datasketch) over pieces of the normalised text.
* Leaks: sha256 of every normalised text, and 64-bit digests of every name a sample goes by (:func:`names_of`).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import imagehash
import numpy as np
import numpy.typing as npt
from datasketch import MinHash
from PIL import Image
from pydantic import Field

from configs.load import Config
from pipeline.media import MediaConfig
from pipeline.pictures import decode_picture
from pipeline.samples import RawMedia, RawSample, RawText
from pipeline.sound_files import Channels, read_channels
from pipeline.sounds import RecordingCache
from pipeline.tokenizers.base import Picture
from shards.errors import SampleError
from shards.modality import Modality

SIGNATURES_VERSION = 1
"""Raised whenever the same sample would get another signature under the same config."""
PICTURE_BITS = 64
_HASHES: dict[str, Callable[..., imagehash.ImageHash]] = {
    "phash": imagehash.phash,
    "dhash": imagehash.dhash,
    "whash": imagehash.whash,
    "average": imagehash.average_hash,
}
_SPREAD_SIDE = 32
# A longer file gets no hash of its samples: its bytes must do.
_MOST_SOUND_S = 1200.0
_NO_WORD = re.compile(r"[\W_]+")


class ExactConfig(Config):
    """Copies of the same bytes or the same decoded sound."""

    on: bool = True
    decoded_sounds: bool = True
    """Compare decoded sounds as well as files; every sound is decoded once for it."""
    media: Literal["all", "any"] = "all"
    """Of a sample with several media: leave it out when all of them, or when any of them was seen before. Holds for near
    copies too."""


class PictureHashConfig(Config):
    """Pictures that look the same."""

    on: bool = True
    hash: Literal["phash", "dhash", "whash", "average"] = "phash"
    hash_size: Literal[4, 8] = 8
    """Side of the hash in bits: 8 gives 64."""
    max_distance: int = Field(default=4, ge=0, le=8)
    """Bits two hashes may differ in. The copies we planted (JPEG quality 40 to 90, a third to twice the size) mostly
    differ in at most 4, the hardest in 8; different photographs in 16 and more."""
    max_colour_distance: int = Field(default=24, ge=0, le=255)
    """By how much the mean colour of a quarter may differ, in any channel."""
    min_spread: float = Field(default=6.0, ge=0.0)
    """Standard deviation of the grey picture at 32 x 32, from 0 to 127, without its plain slope; a picture below it has no
    perceptual hash."""


class TextHashConfig(Config):
    """Texts that say almost the same. Off by default: equal short captions are normal."""

    on: bool = False
    slots: tuple[str, ...] = ("caption", "text", "transcript")
    """Which texts of a sample count; they are put together in order."""
    min_chars: int = Field(default=200, ge=1)
    """Shorter ones, once normalised, are never near copies."""
    ngram: int = Field(default=5, ge=1)
    unit: Literal["character", "word"] = "character"
    """What the pieces are made of; words do not work for languages without spaces."""
    permutations: int = Field(default=128, ge=64)
    threshold: float = Field(default=0.8, ge=0.4, le=0.9)
    """Estimated Jaccard similarity from which two texts are near copies."""


class SignatureConfig(Config):
    """Everything that decides a signature, and how alike two must be."""

    exact: ExactConfig = ExactConfig()
    pictures: PictureHashConfig = PictureHashConfig()
    text: TextHashConfig = TextHashConfig()


@dataclass(frozen=True, slots=True)
class MediumSignature:
    """What is remembered of one medium.

    Attributes:
        sha256: of the encoded bytes; empty where they could not be read.
        decoded_sha256: of a sound's samples; empty for pictures and for what cannot be decoded.
        picture: perceptual hash; None without one.
        colours: (12,) uint8 mean RGB of the four quarters; empty without ``picture``.
    """

    slot: str
    modality: Modality
    sha256: bytes = b""
    decoded_sha256: bytes = b""
    picture: int | None = None
    colours: bytes = b""


@dataclass(frozen=True, slots=True)
class Signature:
    """What is remembered of one sample.

    Attributes:
        texts: sha256 of every normalised text that is not empty.
        joined_sha256, minhash: of the texts that near copies are looked for in, if they are long enough; the MinHash is
            (permutations,) little-endian uint32.
        names: uint64 digests of :func:`names_of`.
    """

    sample_id: str
    media: tuple[MediumSignature, ...]
    texts: tuple[bytes, ...]
    joined_sha256: bytes
    minhash: bytes
    names: tuple[int, ...]


def sign(
    sample: RawSample, config: SignatureConfig, media: MediaConfig, *, cache: RecordingCache | None = None
) -> Signature:
    """The signature of one sample; what cannot be decoded has no decoded or perceptual hash.

    Args:
        media: of the corpus: pictures are read as its tokenization reads them.
        cache: of recordings, one for a unit of work; it keeps all channels, so share it with nobody else.
    """
    kept = cache or RecordingCache()
    segments = [segment for segment in sample.segments if isinstance(segment, RawMedia)]
    texts = [segment for segment in sample.segments if isinstance(segment, RawText)]
    normal = [normal_text(segment.text) for segment in texts]
    chosen = [text for segment, text in zip(texts, normal, strict=True) if segment.slot in config.text.slots]
    joined = " ".join(text for text in chosen if text)
    is_long = config.text.on and len(joined) >= config.text.min_chars
    return Signature(
        sample_id=sample.sample_id,
        media=tuple(_sign_medium(segment, config, media, kept) for segment in segments),
        texts=tuple(dict.fromkeys(text_sha256(text) for text in normal if text)),
        joined_sha256=text_sha256(joined) if is_long else b"",
        minhash=minhash(joined, config.text).astype("<u4").tobytes() if is_long else b"",
        names=tuple(dict.fromkeys(map(name_digest, names_of(sample)))),
    )


def normal_text(text: str) -> str:
    """A text without what copies differ in: case, punctuation, white space, forms of the same character."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Once more: what was folded may have a shorter form.
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", folded)).strip()


def text_sha256(normal: str) -> bytes:
    """sha256 of a text that is normalised already."""
    return hashlib.sha256(normal.encode()).digest()


def minhash(normal: str, config: TextHashConfig) -> npt.NDArray[np.uint32]:
    """MinHash of a normalised text; (permutations,) uint32."""
    found = _permutations(config.permutations).copy()
    found.update_batch(sorted(pieces(normal, config)))
    return np.asarray(found.hashvalues, np.uint32)


def pieces(normal: str, config: TextHashConfig) -> set[bytes]:
    """The n-grams of a text; a text shorter than one is one piece."""
    units: Iterable[str] = normal.split() if config.unit == "word" else normal
    items, glue = list(units), " " if config.unit == "word" else ""
    count = max(1, len(items) - config.ngram + 1)
    return {glue.join(items[start : start + config.ngram]).encode() for start in range(count)}


def names_of(sample: RawSample) -> tuple[str, ...]:
    """Every name by which a list of evaluation items may know a sample.

    Its id and the last part of it, the file it comes from, with and without its ending, its URL, the file that names, and
    the video (``v=``). A name of digits alone is a place in somebody's file and no name, unless it is the whole id.
    """
    where = sample.provenance
    url = urlsplit(where.url) if where.url else None
    members = [where.member.rpartition("::")[2] or where.member, unquote(url.path) if url else ""]
    parts = [sample.sample_id.rpartition("/")[2]]
    for member in members:
        name = PurePosixPath(member).name
        parts += [name, PurePosixPath(name).stem]
    parts += parse_qs(url.query).get("v", []) if url else []
    named = [part for part in parts if part and not part.isdecimal()]
    return tuple(dict.fromkeys(name for name in (sample.sample_id, where.url, *named) if name))


def name_digest(name: str) -> int:
    """64 bits of a name; among 10^9 names and 10^5 listed ones, one false alarm in 10^5 runs."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def picture_hash(picture: Picture, config: PictureHashConfig) -> int | None:
    """Perceptual hash of a decoded picture, in the low ``hash_size ** 2`` bits; None if it shows next to nothing."""
    if spread(picture) < config.min_spread:
        return None
    bits = _HASHES[config.hash](Image.fromarray(picture), hash_size=config.hash_size).hash
    return int.from_bytes(np.packbits(np.asarray(bits, bool).ravel()).tobytes(), "big")


def spread(picture: Picture) -> float:
    """How much of a picture there is to recognise: standard deviation of its grey 32 x 32, less a plane."""
    small = Image.fromarray(picture).convert("L").resize((_SPREAD_SIDE, _SPREAD_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.float64).ravel()
    plane = _plane()
    return float((grey - plane @ (plane.T @ grey)).std())


def quarter_colours(picture: Picture) -> bytes:
    """Mean RGB of the four quarters, as 12 bytes."""
    return Image.fromarray(picture).resize((2, 2), Image.Resampling.BOX).tobytes()


def _sign_medium(raw: RawMedia, config: SignatureConfig, media: MediaConfig, cache: RecordingCache) -> MediumSignature:
    if raw.modality is Modality.IMAGE:
        return _sign_picture(raw, config, media)
    try:
        sha256, channels, rate = _sound(raw, config, media, cache)
    except SampleError:
        # A cut of a recording that cannot be read has no bytes of its own.
        sha256 = hashlib.sha256(raw.data).digest() if raw.path is None else b""
        return MediumSignature(raw.slot, raw.modality, sha256)
    return MediumSignature(raw.slot, raw.modality, sha256, _decoded_sha256(channels, rate))


def _sign_picture(raw: RawMedia, config: SignatureConfig, media: MediaConfig) -> MediumSignature:
    try:
        data = raw.data if raw.path is None else raw.path.read_bytes()
    except OSError:
        return MediumSignature(raw.slot, raw.modality)
    sha256 = hashlib.sha256(data).digest()
    if not config.pictures.on:
        return MediumSignature(raw.slot, raw.modality, sha256)
    try:
        picture = decode_picture(data, media.picture)
    except SampleError:
        return MediumSignature(raw.slot, raw.modality, sha256)
    found = picture_hash(picture, config.pictures)
    colours = b"" if found is None else quarter_colours(picture)
    return MediumSignature(raw.slot, raw.modality, sha256, picture=found, colours=colours)


def _sound(
    raw: RawMedia, config: SignatureConfig, media: MediaConfig, cache: RecordingCache
) -> tuple[bytes, Channels, int]:
    """Digest of the encoded bytes, and the samples of all channels at the file's own rate, none if not asked for."""
    reader = media.sound(raw.modality).reader
    nothing = np.empty((0, 1), np.float32)
    if raw.path is not None:
        recording = cache.open(raw.path, channel="all", reader=reader)
        digest = hashlib.sha256(f"{recording.sha256} {raw.begin_s} {raw.end_s}".encode()).digest()
        channels, rate = recording.channels, recording.sample_rate_hz
    else:
        digest = hashlib.sha256(raw.data).digest()
        if not config.exact.decoded_sounds:
            return digest, nothing, 0
        channels, rate = read_channels(raw.data, reader=reader, channel="all", limit_s=_MOST_SOUND_S)
    cut = channels[round((raw.begin_s or 0.0) * rate) : None if raw.end_s is None else round(raw.end_s * rate)]
    wanted = config.exact.decoded_sounds and len(cut) < _MOST_SOUND_S * rate
    return digest, cut if wanted else nothing, rate


def _decoded_sha256(channels: Channels, rate: int) -> bytes:
    """Digest of the samples in 16 bits; none of silence, which has no copies worth the name."""
    whole = np.round(np.clip(channels, -1.0, 1.0) * 32_768.0).astype("<i4")
    if not whole.any():
        return b""
    digest = hashlib.sha256(f"{rate} {whole.shape[1]} ".encode())
    digest.update(np.ascontiguousarray(whole).tobytes())
    return digest.digest()


@lru_cache(maxsize=4)
def _permutations(count: int) -> MinHash:
    # Both are said, for the library's own defaults have changed before.
    return MinHash(num_perm=count, seed=1, scheme="affine32")


@lru_cache(maxsize=1)
def _plane() -> npt.NDArray[np.float64]:
    """(pixels, 3): an orthonormal basis of planes."""
    y, x = np.mgrid[:_SPREAD_SIDE, :_SPREAD_SIDE].astype(np.float64)
    basis, _ = np.linalg.qr(np.stack([np.ones(x.size), x.ravel(), y.ravel()], axis=1))
    return basis
