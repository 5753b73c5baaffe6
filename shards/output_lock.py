"""One writer at a time in a dataset's folder, and what killed ones have left there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import DatasetError
from shards.ledger import LEDGER
from shards.left_out import PARTS_FOLDER
from shards.writer import TEMPORARY_SUFFIX


@contextmanager
def only_writer(output: Path) -> Generator[None]:
    """Hold the output folder for one run at a time; a killed run lets go by itself.

    Raises:
        DatasetError: another run is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(
                f"{output}: expected no other run to write there, found one; wait for it or choose another output"
            ) from error
        yield
    finally:
        os.close(folder)


def remove_temporaries(output: Path) -> None:
    """Remove what writers that were killed have left."""
    for folder in (output, output / "shards", output / PARTS_FOLDER, output / LEDGER):
        for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
