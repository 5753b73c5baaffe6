"""One writer at a time in a dataset's folder, and what killed ones have left there."""

from __future__ import annotations

from pathlib import Path

from shards import lease, writer
from shards.ledger import LEDGER
from shards.left_out import PARTS_FOLDER

only_writer = lease.exclusive_writer
"""Hold an output folder for one run at a time, here or in an object store; a killed run lets go by itself."""


def remove_temporaries(output: Path) -> None:
    """Remove what writers that were killed have left."""
    writer.remove_temporaries(output, output / "shards", output / PARTS_FOLDER, output / LEDGER)
