"""What holds for a shard of any kind: it is there, as long as the manifest says, and can be read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from shards.errors import AnyGPTError
from shards.manifest import ShardEntry

UNREADABLE = (AnyGPTError, pa.ArrowException, OSError, MemoryError, ValueError, TypeError, LookupError, OverflowError)
"""What reading a file of any bytes may raise: Arrow's own errors, and those of numpy over its buffers."""

NOT_AS_WRITTEN = "its bytes are not the bytes that were written; copy it again or make it again"


def size_fault(path: Path, entry: ShardEntry) -> str:
    """What is wrong with the length of a shard, or an empty string."""
    if not path.is_file():
        return "named in the manifest and not there; copy it again or make it again"
    size = path.stat().st_size
    if size != entry.num_bytes:
        return f"expected {entry.num_bytes:,} bytes, found {size:,}; copy it again or make it again"
    return ""


def without_path(error: BaseException, path: Path) -> str:
    """What an error says, without the path that a fault begins with anyway."""
    return str(error).removeprefix(f"{path}: ") or type(error).__name__
