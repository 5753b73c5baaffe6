"""Headers of a tar, read faster: what indexing a shard needs of a plain file, and nothing else.

The standard library takes every number out of a header (owner, times, devices), which is most of the time that indexing
costs. Of a plain file with a short name, which is all that img2dataset writes, only name, size and checksum count;
anything else goes to the standard library. Give the class to it: ``tarfile.open(path, tarinfo=PlainFileInfo)``.
"""

from __future__ import annotations

import tarfile
from typing import Self

_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _PREFIX = 156, 345
_PLAIN = frozenset((ord("0"), 0))
# The first byte of a number that is not octal.
_BINARY = frozenset((0o200, 0o377))


class PlainFileInfo(tarfile.TarInfo):
    """A header whose owner, mode and times are not read, if it is a plain file's."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header of 512 bytes; raises as ``tarfile.TarInfo.frombuf``."""
        if len(buf) != tarfile.BLOCKSIZE or buf[_TYPE] not in _PLAIN or buf[_PREFIX] or buf[_SIZE.start] in _BINARY:
            return super().frombuf(buf, encoding, errors)
        name = buf[_NAME].partition(b"\0")[0]
        try:
            size, checksum = _octal(buf[_SIZE]), _octal(buf[_CHECKSUM])
        except ValueError:
            return super().frombuf(buf, encoding, errors)
        # A name that ends so is a folder's in the oldest tars; the checksum has blanks in its own place.
        if name.endswith(b"/") or checksum != sum(buf) - sum(buf[_CHECKSUM]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        info = cls(name.decode(encoding, errors))
        info.size = size
        info.type = bytes(buf[_TYPE : _TYPE + 1])
        return info


def _octal(field: bytes | bytearray) -> int:
    return int(field.partition(b"\0")[0].strip() or b"0", 8)
