"""Which weights adapters belong to: they are a difference, and mean nothing on top of others.

A 7B folder has 13 GB, and a run asks at every start: what is compared is the beginning of each file, where safetensors has
names, shapes and places, and stretches spread over the rest. A folder that was trained on differs in nearly all of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from shards.errors import CheckpointError
from shards.manifest import fingerprint

_HEAD_BYTES = 1 << 20
_STRETCHES = 64
_STRETCH_BYTES = 64 << 10


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits over the weight files of a Hugging Face folder, equal for equal files wherever they lie.

    Raises:
        CheckpointError: there are none.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if not paths:
        raise CheckpointError(f"{folder}: expected weights (*.safetensors or *.bin), found none; give a whole model")
    return fingerprint([[path.name, path.stat().st_size, _sampled(path)] for path in paths])


def _sampled(path: Path) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for number in range(_STRETCHES):
            file.seek(max(0, size - _STRETCH_BYTES) * (number + 1) // _STRETCHES)
            digest.update(file.read(_STRETCH_BYTES))
    return digest.hexdigest()
