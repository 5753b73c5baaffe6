"""Files of a corpus: found in a fixed order, opened only inside its folder, read only up to a size."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import CorpusError, SampleError
from shards.storage import is_remote, match_files

# A 64 MiB picture or clip is a mistake; long recordings are not read through here.
MAX_MEDIA_BYTES = 64 << 20
# An absolute path, a step up, or what another system would take for one.
_LEADS_OUT = re.compile(r"^/|(?:^|/)\.\.(?:/|$)|[\\\0]")


def find_files(root: Path, patterns: Iterable[str], *, corpus: str) -> list[Path]:
    """Files below ``root`` that match one of the patterns, in the order of their names.

    Raises:
        CorpusError: if there are none.
    """
    patterns = tuple(patterns)
    found = match_files(root, patterns)
    if not found:
        raise CorpusError(
            f"{root}: expected files {' or '.join(patterns)} of the corpus {corpus}, found none; "
            "check root and the layout described in pipeline/corpora"
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def relative_name(path: Path, root: Path) -> str:
    """The path below the corpus folder, the same on every machine."""
    return path.relative_to(root).as_posix()


def is_inside(name: str) -> bool:
    """Whether a relative name stays below the folder it is relative to, judged by the name alone."""
    return bool(name) and _LEADS_OUT.search(name) is None


def resolve_media(folder: Path, name: Any, *, root: Path) -> Path:
    """The file that a record names, which must exist inside the corpus.

    Raises:
        SampleError: ``record_malformed`` (no name), ``path_outside_corpus``, ``media_missing``, ``media_empty``.
    """
    path = _inside(folder, name)
    _check_media(path, name, root)
    return path


def read_media(folder: Path, name: Any, *, root: Path, max_bytes: int = MAX_MEDIA_BYTES) -> bytes:
    """The bytes of a media file; raises as :func:`resolve_media`, and ``media_too_large``."""
    path = _inside(folder, name)
    size = _check_media(path, name, root)
    if size > max_bytes:
        raise SampleError("media_too_large", f"{name}: expected at most {max_bytes} bytes, found {size}")
    return path.read_bytes()


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise SampleError("record_malformed", f"expected the name of a media file, found {name!r}")
    if not is_inside(name):
        raise SampleError("path_outside_corpus", f"expected a file inside the corpus, found {name!r}")
    # Names as ./000/x.jpg are common, and an object store takes the dot for a part of the name.
    return folder / str(PurePosixPath(name))


def _check_media(path: Path, name: str, root: Path) -> int:
    """The size of a medium that is a file with something in it and lies inside the corpus."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise SampleError("media_missing", f"expected {name!r}, found nothing: {type(error).__name__}") from error
    # A link inside the corpus may lead out of it; an object store has no links.
    if not is_remote(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise SampleError(
            "path_outside_corpus", f"expected a file inside the corpus, found that {name!r} leads out of it"
        )
    if not stat.S_ISREG(status.st_mode):
        raise SampleError("media_missing", f"expected {name!r} to be a file, found something else")
    if not status.st_size:
        raise SampleError("media_empty", f"expected a medium in {name!r}, found no bytes")
    return status.st_size
