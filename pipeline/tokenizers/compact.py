"""The ``compact`` family: one safetensors file with the codecs of any number of modalities.

Tensors are named ``image.palettes``, ``speech.level2``, ``music.level1`` ...; the header holds one JSON text under the
key ``compact`` (one key, because the order of several is not defined, and the same fit must give the same bytes)::

    {"format_version": 1, "config": {...}, "modalities":
        {"image": {"code_version": 1, "facts": {...}, "fingerprint": "..."}, "speech": {...}, "music": {...}}}

A modality's fingerprint covers its own tensors, its code version and its front end alone: fitting music again does not
make a picture's codes another codec's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.tokenizers import compact_image, compact_music, compact_speech
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from shards.errors import TokenizerError
from shards.vocabulary import Modality
from shards.writer import commit_bytes

FORMAT_VERSION = 1
_HEADER_KEY = "compact"

Tensors = Mapping[str, npt.NDArray[Any]]


class MediaCodec(MediaTokenizer, MediaDetokenizer, Protocol):
    """Both directions in one object, as every ``compact`` codec is."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the family knows of one modality's codec; a dimension of None may be anything."""

    make: Callable[[Tensors, str], MediaCodec]
    code_version: int
    facts: Mapping[str, Any]
    shapes: Mapping[str, tuple[int | None, ...]]


_KINDS: Mapping[Modality, _Kind] = {
    Modality.IMAGE: _Kind(
        compact_image.CompactImage,
        compact_image.CODE_VERSION,
        {"side": compact_image.SIDE, "grid": compact_image.GRID, "mask": compact_image.MASK},
        {"palettes": (None, 6), "patterns": (None, compact_image.MASK**2)},
    ),
    Modality.SPEECH: _Kind(
        compact_speech.CompactSpeech, compact_speech.CODE_VERSION, compact_speech.FACTS, compact_speech.SHAPES
    ),
    Modality.MUSIC: _Kind(
        compact_music.CompactMusic, compact_music.CODE_VERSION, compact_music.FACTS, compact_music.SHAPES
    ),
}


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """What the header of a family file says.

    Attributes:
        config: the resolved config of the fit.
        fingerprints: 16 hex digits by modality; its keys are the modalities in the file.
    """

    config: Mapping[str, Any]
    fingerprints: Mapping[Modality, str]


def save_family(
    path: Path, tensors: Mapping[Modality, Tensors], *, config: Mapping[str, Any] | None = None
) -> FamilyInfo:
    """Write the codecs of all given modalities as one file, atomically; equal content gives equal bytes.

    Raises:
        TokenizerError: a modality without a codec here, or tensors of the wrong names or shapes.
    """
    flat: dict[str, npt.NDArray[Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for modality in sorted(tensors):
        kind = _kind(modality, path)
        _check_tensors(tensors[modality], kind, path, modality)
        flat |= {f"{modality}.{name}": np.ascontiguousarray(tensors[modality][name]) for name in sorted(kind.shapes)}
        entries[str(modality)] = {
            "code_version": kind.code_version,
            "facts": dict(kind.facts),
            "fingerprint": fingerprint(modality, tensors[modality]),
        }
    header = {"format_version": FORMAT_VERSION, "config": dict(config or {}), "modalities": entries}
    commit_bytes(path, save(flat, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)}))
    return _info(header)


def load_codec(path: Path, modality: Modality) -> MediaCodec:
    """The codec of one modality; the others' tensors are not read.

    Raises:
        TokenizerError: no such file, not of this family or version, no such modality, or other tensors than were saved.
    """
    header = _read_header(path)
    kind = _kind(modality, path)
    entry = header["modalities"].get(str(modality))
    if entry is None:
        raise TokenizerError(
            f"{path}: expected a codec for {modality}, found {', '.join(sorted(header['modalities'])) or 'none'}; "
            f"fit one: anygpt-fit with a section [{modality}]"
        )
    if entry["code_version"] != kind.code_version or entry["facts"] != dict(kind.facts):
        raise TokenizerError(
            f"{path}: {modality} was fitted for code version {entry['code_version']} with {entry['facts']}, this code is "
            f"version {kind.code_version} with {dict(kind.facts)}; fit it again, or use the code that wrote it"
        )
    tensors = _read_tensors(path, modality)
    _check_tensors(tensors, kind, path, modality)
    found = fingerprint(modality, tensors)
    if found != entry["fingerprint"]:
        raise TokenizerError(
            f"{path}: expected {modality} tensors with fingerprint {entry['fingerprint']}, found {found}; "
            "the file was changed after it was written, fit it again"
        )
    return kind.make(tensors, found)


def read_family_info(path: Path) -> FamilyInfo:
    """Config and fingerprints, without reading a tensor.

    Raises:
        TokenizerError: no such file, or not of this family or version.
    """
    return _info(_read_header(path))


def read_tensors(path: Path, modality: Modality) -> dict[str, npt.NDArray[Any]]:
    """The tensors of one modality by their short names, e.g. to save them again beside others.

    Raises:
        TokenizerError: as :func:`load_codec`.
    """
    load_codec(path, modality)
    return _read_tensors(path, modality)


def fingerprint(modality: Modality, tensors: Tensors) -> str:
    """16 hex digits over code version, front end and tensors of one modality.

    Raises:
        TokenizerError: a modality without a ``compact`` codec.
    """
    kind = _kind(modality, None)
    facts = {"modality": str(modality), "code_version": kind.code_version, "facts": dict(kind.facts)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"\0{name} {tensor.dtype.str} {tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()[:16]


def _kind(modality: Modality, path: Path | None) -> _Kind:
    if modality not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise TokenizerError(f"{path or 'compact'}: expected one of {known}, found {modality}; it has no compact codec")
    return _KINDS[modality]


def _check_tensors(tensors: Tensors, kind: _Kind, path: Path, modality: Modality) -> None:
    if set(tensors) != set(kind.shapes):
        raise TokenizerError(
            f"{path}: {modality}: expected tensors {sorted(kind.shapes)}, found {sorted(tensors)}; fit it again"
        )
    for name, shape in kind.shapes.items():
        found = tensors[name].shape
        if len(found) != len(shape) or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            raise TokenizerError(f"{path}: {modality}.{name}: expected shape {shape}, found {found}; fit it again")


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a compact codec file, found nothing; fit one with anygpt-fit CONFIG")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
    except SafetensorError as error:
        raise TokenizerError(f"{path}: expected a safetensors file, found none ({error}); fit it again") from error
    if text is None:
        raise TokenizerError(
            f"{path}: expected codecs of the compact family, found other tensors; name the file of anygpt-fit"
        )
    header = cast(dict[str, Any], json.loads(text))
    if header["format_version"] != FORMAT_VERSION:
        raise TokenizerError(
            f"{path}: expected format version {FORMAT_VERSION}, found {header['format_version']}; fit it again"
        )
    return header


def _read_tensors(path: Path, modality: Modality) -> dict[str, npt.NDArray[Any]]:
    prefix = f"{modality}."
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - a handle, not a dict
        return {name.removeprefix(prefix): file.get_tensor(name) for name in sorted(names)}


def _info(header: Mapping[str, Any]) -> FamilyInfo:
    fingerprints = {Modality(name): str(entry["fingerprint"]) for name, entry in header["modalities"].items()}
    return FamilyInfo(header["config"], fingerprints)
