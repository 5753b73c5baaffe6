"""Which codec a path means: a fitted ``compact`` file, or a config that names published weights.

``tokenizers.image = "data/tokenizers/compact.safetensors"`` is a file of the compact family, which carries all it needs.
``tokenizers.image = "configs/tokenizers/seed2.toml"`` is a :class:`CodecConfig`: ``codec`` is the name of a file in this
folder, ``options`` are that file's own. There is no registry; a codec of published weights is a module with::

    class Options(CodecOptions): ...                          # its files are fields that end in a Path
    MODALITY: Modality
    def weight_files(options) -> list[WeightFile]             # what must be on disk, for anygpt-doctor
    def load(options) -> MediaTokenizer
    def load_detokenizer(options) -> MediaDetokenizer         # often the same object

Both loaders raise ``ConfigError`` or ``TokenizerError`` with the option, the path and what to do. Paths are relative to
the working directory, as in every config.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from configs.load import Config, load_config, validate
from pipeline.tokenizers import compact
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from shards.errors import ConfigError
from shards.vocabulary import Modality

if TYPE_CHECKING:
    # Imports torch, which the compact family does without.
    from pipeline.tokenizers.weights import CodecOptions

_PACKAGE = "pipeline.tokenizers"
_MARK = re.compile(r"^class Options\(\w*CodecOptions\)", re.MULTILINE)


class CodecConfig(Config):
    """A file in ``configs/tokenizers`` that names published weights."""

    codec: str
    """A file in ``pipeline/tokenizers``."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keys of that file's own ``Options``."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file, or a folder, that a codec reads.

    Attributes:
        option: the key of ``options`` that names it.
        needed_for: ``encode``, ``decode`` or both, in words.
        published_as: where people get it, e.g. ``seed_quantizer.pt of AILab-CVC/seed-tokenizer-2``.
        required: False if the codec does without it (the way back of pictures, say).
    """

    option: str
    path: Path | None
    needed_for: str
    published_as: str
    required: bool = True


def open_tokenizer(path: Path, modality: Modality) -> MediaTokenizer:
    """The tokenizer a path means; opened once per process, and again if its file is another one now.

    Raises:
        ConfigError: nothing there, a codec or an option that does not exist, or a codec of another modality.
        TokenizerError: weights that are missing, cut or of another layout.
    """
    return _tokenizer(path, modality, _version(path, modality))


def open_tokenizers(paths: Mapping[Modality, Path]) -> dict[Modality, MediaTokenizer]:
    """All tokenizers of a corpus config."""
    return {modality: open_tokenizer(path, modality) for modality, path in paths.items()}


def open_detokenizer(path: Path, modality: Modality) -> MediaDetokenizer:
    """The way back; see :func:`open_tokenizer`."""
    return _detokenizer(path, modality, _version(path, modality))


def served_modalities(path: Path) -> list[Modality]:
    """What a codec file or codec config can tokenize."""
    if _is_config(path):
        module, _ = read_codec_config(path)
        return [module.MODALITY]
    return sorted(compact.read_family_info(path).fingerprints)


def codec_weight_files(path: Path) -> list[WeightFile]:
    """Every file that a codec config names; a compact file is its own."""
    if _is_config(path):
        module, options = read_codec_config(path)
        return module.weight_files(options)
    return [WeightFile("tokenizers", path, "encode and decode", "the output of anygpt-fit")]


def read_codec_config(path: Path, overrides: tuple[str, ...] = ()) -> tuple[ModuleType, CodecOptions]:
    """The module and the options of a codec config.

    Raises:
        ConfigError: no such file, codec or option.
    """
    config = load_config(path, CodecConfig, overrides)
    known = codec_names()
    if config.codec not in known:
        near = difflib.get_close_matches(config.codec, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"{path}: codec = {config.codec!r}: expected a codec of published weights; {hint}")
    module = import_module(f"{_PACKAGE}.{config.codec}")
    kind = cast("type[CodecOptions]", module.Options)
    return module, validate(config.options, kind, where=f"{path}: options")


def codec_names() -> list[str]:
    """Codecs of published weights, in alphabetical order; told by their text, for importing them takes seconds."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if _MARK.search(path.read_text(encoding="utf-8")))


def _is_config(path: Path) -> bool:
    return path.suffix == ".toml"


def _version(path: Path, modality: Modality) -> tuple[int, ...]:
    """Changes when a file behind the path does; size and time, for weights are gigabytes."""
    if not path.is_file():
        raise ConfigError(
            f"tokenizers.{modality} = {path}: expected a codec for {modality}, found nothing; fit one with anygpt-fit, "
            f"or give the path of a codec file or of a config in configs/tokenizers with --set tokenizers.{modality}=FILE"
        )
    paths = [path]
    if _is_config(path):
        paths += [file.path for file in codec_weight_files(path) if file.path is not None and file.path.exists()]
    statuses = [one.stat() for one in paths]
    return tuple(number for one in statuses for number in (one.st_size, one.st_mtime_ns, one.st_ino))


@functools.lru_cache(maxsize=8)
def _tokenizer(path: Path, modality: Modality, version: tuple[int, ...]) -> MediaTokenizer:
    del version  # part of the key only
    return _load(path, modality, "load")


@functools.lru_cache(maxsize=8)
def _detokenizer(path: Path, modality: Modality, version: tuple[int, ...]) -> MediaDetokenizer:
    del version
    return _load(path, modality, "load_detokenizer")


def _load(path: Path, modality: Modality, loader: str) -> Any:
    if not _is_config(path):
        return compact.load_codec(path, modality)
    module, options = read_codec_config(path)
    if module.MODALITY is not modality:
        raise ConfigError(
            f"tokenizers.{modality} = {path}: expected a codec for {modality}, found one for {module.MODALITY}"
        )
    return getattr(module, loader)(options)
