"""What is in a WebDataset shard: samples by key, and where their members lie. Nothing is ever extracted to disk.

Names are split into key and extension as ``webdataset`` splits them, and on a clean shard the samples are exactly those
that ``webdataset.WebDataset`` yields (tests compare both; the package itself would import torch). Its own iteration reads
members in a stream, and so must give up on what real shards hold: it splits samples whose members are interleaved, and
stops at a key that comes twice. Reading the headers first costs a few milliseconds per thousand samples, repairs both,
and lets a unit begin in mid-shard.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.reading.files import is_inside
from pipeline.reading.tar_header import PlainFileInfo
from shards.errors import SampleError
from shards.storage import open_random

MAX_MEMBER_BYTES = 64 << 20
# What tarfile and the decompressors below it raise on damaged archives.
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError)
# WebDataset keeps these names for itself.
_META = "__"
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


@dataclass(slots=True)
class ShardEntry:
    """One input of a shard.

    Attributes:
        key: what the names of its members have in common.
        members: extension -> header.
        problem: the reason it is a reject, or empty.
    """

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict[str, tarfile.TarInfo])
    problem: str = ""

    @property
    def offset(self) -> int:
        """Of its first member's data in the (decompressed) shard."""
        return min((member.offset_data for member in self.members.values()), default=0)


@contextmanager
def open_shard(path: Path) -> Generator[tuple[tarfile.TarFile | None, list[ShardEntry]]]:
    """A shard and its index in file order; no shard and one entry if it cannot be opened at all."""
    if not path.stat().st_size:
        yield None, [ShardEntry("", problem="file_empty")]
        return
    with open_random(path) as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:*", tarinfo=PlainFileInfo)  # noqa: SIM115 - closed below, and opening may fail
        except _DAMAGE:
            yield None, [ShardEntry("", problem="archive_unreadable")]
            return
        with archive:
            yield archive, index_shard(archive)


def count_entries(path: Path) -> int:
    """Number of inputs of a shard, damaged ones included."""
    with open_shard(path) as (_, entries):
        return len(entries)


def index_shard(archive: tarfile.TarFile) -> list[ShardEntry]:
    """Group the members of a shard by key.

    Repairs: members of several samples may be interleaved; shards may follow each other in one file; folders, names
    without an extension and WebDataset's own ``__meta__`` names are no inputs. Problems: ``path_outside_archive``,
    ``member_not_a_file`` (links, devices), ``duplicate_key``, ``archive_truncated`` (it ends too early) and
    ``archive_damaged`` (something that is no header; reading goes on at the next one).
    """
    entries: list[ShardEntry] = []
    latest: dict[str, ShardEntry] = {}
    part: tarfile.TarFile | None = archive
    while part is not None:
        cut = _index_part(part, entries, latest)
        part, problem = _resume(part)
        if problem and not cut:
            entries.append(ShardEntry("", problem=problem))
    return entries


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, cut at the first dot behind the folders; None where there is none to cut at."""
    match = _NAME.match(name)
    return (match[1], match[2]) if match else None


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of one member.

    Raises:
        SampleError: ``media_too_large``, ``archive_truncated``.
    """
    if member.size > MAX_MEMBER_BYTES:
        raise SampleError(
            "media_too_large", f"{member.name}: expected at most {MAX_MEMBER_BYTES} bytes, found {member.size}"
        )
    try:
        file = archive.extractfile(member)
        data = file.read() if file is not None else b""
    except _DAMAGE as error:
        raise SampleError("archive_truncated", f"{member.name}: {type(error).__name__}: {error}") from error
    if len(data) != member.size:
        raise SampleError("archive_truncated", f"{member.name}: expected {member.size} bytes, found {len(data)}")
    return data


def _file(member: tarfile.TarInfo, entries: list[ShardEntry], latest: dict[str, ShardEntry]) -> ShardEntry | None:
    """Put a member where it belongs; returns its entry, or None if it is no input."""
    name = split_name(member.name)
    if name is None or member.isdir() or name[0].rpartition("/")[2].startswith(_META):
        return None
    key, extension = name
    entry = latest.get(key)
    if entry is None or extension in entry.members:
        problem = "" if entry is None else "duplicate_key"
        entry = latest[key] = ShardEntry(key, problem=problem)
        entries.append(entry)
    entry.members[extension] = member
    if not is_inside(member.name):
        entry.problem = "path_outside_archive"
    elif not member.isreg():
        entry.problem = "member_not_a_file"
    return entry


def _index_part(archive: tarfile.TarFile, entries: list[ShardEntry], latest: dict[str, ShardEntry]) -> bool:
    """Index up to the first thing that is no member; whether the archive broke off there, which is noted."""
    member: tarfile.TarInfo | None = None
    entry: ShardEntry | None = None
    try:
        for member in archive:
            entry = _file(member, entries, latest)
    except _DAMAGE:
        if member is not None and entry is not None and not _is_whole(archive, member):
            entry.problem = "archive_truncated"
        else:
            entries.append(ShardEntry("", problem="archive_truncated"))
        return True
    return False


def _resume(archive: tarfile.TarFile) -> tuple[tarfile.TarFile | None, str]:
    """What follows the end that tarfile saw, and what is wrong with the bytes in between, if anything is.

    For tarfile, zeros and anything that is no header are the end, and it says nothing about what it leaves unread.
    """
    file = archive.fileobj
    if file is None:
        return None, ""
    problem = ""
    try:
        position = archive.offset
        file.seek(position)
        while block := file.read(tarfile.BLOCKSIZE):
            if _is_header(block):
                file.seek(position)
                return tarfile.TarFile(fileobj=file, tarinfo=PlainFileInfo), problem
            if any(block):
                problem = problem or ("archive_damaged" if len(block) == tarfile.BLOCKSIZE else "archive_truncated")
            position += tarfile.BLOCKSIZE
    except _DAMAGE:
        return None, "archive_truncated"
    return None, problem


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _is_whole(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    try:
        read_member(archive, member)
    except SampleError as error:
        return error.reason == "media_too_large"
    return True
