"""Looking at weight files without opening them as weights: are they there, whole, and weights at all?

The usual faults are told by a file's first and last bytes: a git-lfs pointer where the large file should be, a web page
that a download saved, a download that was cut, a folder in place of a file. A loader would report each of them as a broken
pickle. A digest is read in blocks, because weights are gigabytes and people wait.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.tokenizers.codecs import WeightFile

Status = Literal["ok", "missing", "wrong", "skipped"]
"""First word of every line: well; not there; there but not what it should be; not tried, for a reason that is said."""

Progress = Callable[[Path, int, int], None]
"""Told the file, bytes done and bytes in all, while a digest is taken."""

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt", ".dev"})
_FILE_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".model", ".toml"}
_BLOCK = 1 << 22
_HEAD = 512
_MAX_HEADER = 100 << 20
_WEB_PAGE = (b"<!doctype html", b"<html", b"<?xml", b"<head")
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class FileState:
    """One file as it lies there.

    Attributes:
        name: relative to the folder it was found in; its own name otherwise.
        sha256: 64 hex digits, or empty if it was not asked for.
        note: what is wrong with it, and what to do; empty if nothing is.
    """

    name: str
    status: Status
    size: int
    sha256: str
    note: str


@dataclass(frozen=True, slots=True)
class FileFinding:
    """What became of one file, or folder, that a codec reads.

    Attributes:
        option: the key that names it.
        path: absolute; None if the option names none.
        size: bytes, of all files together if it is a folder.
        parts: the weight files and JSON files of a folder, or the one file.
    """

    option: str
    path: Path | None
    needed_for: str
    published_as: str
    required: bool
    status: Status
    size: int
    parts: tuple[FileState, ...]
    note: str

    @property
    def stops(self) -> bool:
        """Whether the codec cannot be used because of it."""
        return self.status == "wrong" or (self.status == "missing" and self.required)


def examine_weight_file(file: WeightFile, *, sha256: bool = True, progress: Progress | None = None) -> FileFinding:
    """Look where a codec would look, and say what is there."""
    path = None if file.path is None else file.path.absolute()
    if path is None:
        note = f"no path is given; set options.{file.option}"
        return _finding(file, None, "missing", (), note)
    if not path.exists():
        note = "a link that leads nowhere" if path.is_symlink() else _nearest(path)
        return _finding(file, path, "missing", (), note)
    if not path.is_dir():
        state = examine_file(path, path.name, sha256=sha256, progress=progress)
        return _finding(file, path, state.status, (state,), state.note)
    if path.suffix in _FILE_SUFFIXES:
        return _finding(file, path, "wrong", (), "a folder in place of a file; give the file inside it")
    found = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix in _FILE_SUFFIXES)
    parts = tuple(
        examine_file(one, one.relative_to(path).as_posix(), sha256=sha256, progress=progress) for one in found
    )
    faults = [part for part in parts if part.status != "ok"]
    if not parts:
        return _finding(file, path, "wrong", (), "a folder without a weight file or a config in it")
    note = f"{len(faults)} of its {len(parts)} files: {faults[0].name}: {faults[0].note}" if faults else ""
    return _finding(file, path, "wrong" if faults else "ok", parts, note)


def examine_file(path: Path, name: str, *, sha256: bool = True, progress: Progress | None = None) -> FileState:
    """One file that exists: its size, its digest, and what is wrong with it to the eye."""
    try:
        size = path.stat().st_size
        fault = fault_of(path)
        digest = sha256_of(path, progress) if sha256 else ""
    except OSError as error:
        return FileState(name, "wrong", 0, "", f"it cannot be read ({error.strerror or error}); mind its permissions")
    return FileState(name, "wrong" if fault else "ok", size, digest, fault)


def fault_of(path: Path) -> str:
    """What a file evidently is instead of weights; empty if it may be weights.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if size == 0:
        return "an empty file; get it again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file it points to; get the file itself, e.g. with git lfs pull"
    if b"/annex/objects/" in head and size < _HEAD:
        return "a git-annex pointer, not the file it points to; get the file itself, e.g. with git annex get"
    if head.lstrip().lower().startswith(_WEB_PAGE):
        return "a web page saved under this name; get the file itself, perhaps after accepting its licence"
    if path.suffix == ".json":
        return _json_fault(path)
    if path.suffix == ".safetensors":
        return _safetensors_fault(path, size)
    if head.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return (
            f"the beginning of a weight file, without its end after {size:,} bytes; the download was cut, get it again"
        )
    return ""


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """64 hex digits; ``progress`` is told after every block.

    Raises:
        OSError: it cannot be read.
    """
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(path, done, size)
    return digest.hexdigest()


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by key, read from the header alone.

    Raises:
        OSError: it cannot be read.
        ValueError: no header of safetensors.
    """
    return {
        key: tuple(int(size) for size in cast(Sequence[int], entry["shape"]))
        for key, entry in _safetensors_header(path)[1].items()
        if key != "__metadata__"
    }


def _finding(
    file: WeightFile, path: Path | None, status: Status, parts: tuple[FileState, ...], note: str
) -> FileFinding:
    size = sum(part.size for part in parts)
    return FileFinding(file.option, path, file.needed_for, file.published_as, file.required, status, size, parts, note)


def _json_fault(path: Path) -> str:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"no JSON ({error}); get it again"
    return ""


def _safetensors_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length of the header, and what it says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("a header that is no table")
    return length, cast(dict[str, Any], header)


def _safetensors_fault(path: Path, size: int) -> str:
    try:
        length, header = _safetensors_header(path)
        ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"no safetensors file ({type(error).__name__}: {error}), or its beginning only; get it again"
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "the download was cut" if size < expected else "something was added to it"
        return f"expected {expected:,} bytes by its header, found {size:,}; {what}, get it again"
    return ""


def _nearest(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"there is no folder {path.parent}"
    others = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))[:4]
    return f"the folder is there and holds {', '.join(others)}" if others else "the folder is there and is empty"
