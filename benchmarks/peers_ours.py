"""This project's loader as one more peer of the scripts in ``../shared/bench/peers``: ``write_ours`` and ``load_ours``.

The scripts are neither changed nor copied: :func:`load_scripts` imports them and adds our entries to their table. They start
every measurement as ``python THIS_FILE ...`` with their own arguments, so this file is also that command.

Entries: ``ours`` fills one int64 tensor again and again, as their ``floor`` does; ``ours-new`` gives a new tensor each time,
as most peers do; ``ours-stream`` is the trainer's stream: narrow ids with loss masks, gathered by its thread, widened here.

``shuffle``, all rows once in an order without pattern, is a mixture with the shares the sets have. A saved position is a
number of rows and the fingerprint of what they are rows of, whatever the number of ranks.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.manifest import Manifest, fingerprint, write_manifest
from shards.mixed_rows import MixedRows
from shards.mixture import Mixture
from shards.packed import FORMAT_VERSION, PackedRow, Placement, write_packed_shard
from shards.reader import PackedDataset, open_packed
from shards.vocabulary import lay_out

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = PROJECT.parent / "shared" / "bench" / "peers"
OURS = ("ours", "ours-new", "ours-stream")
_TEXT_SIZE = 53_516
_ROWS_PER_SHARD = 5000
_STEPS_PLANNED = 512


@dataclass(frozen=True, slots=True)
class Scripts:
    """The peers' modules, ours in their table."""

    peers: Any
    run: Any
    correct: Any

    @contextmanager
    def command_of(self, name: str) -> Iterator[None]:
        """While this lasts, measurements of ``name`` start as the command that knows it."""
        if name not in OURS:
            yield
            return
        scripts, variables = (self.run, self.correct), dict(os.environ)
        for script in scripts:
            script.__file__ = str(Path(__file__).resolve())
        # The folder of this file has modules with names of the standard library: it must not be searched.
        os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([str(PROJECT), str(SCRIPTS)])}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= variables
            for script, file in zip(scripts, ("run.py", "correct.py"), strict=True):
                script.__file__ = str(SCRIPTS / file)


def load_scripts() -> Scripts:
    """Import the peers' scripts and add our entries to their table.

    Raises:
        FileNotFoundError: they are not beside the project.
    """
    if not (SCRIPTS / "peers.py").is_file():
        raise FileNotFoundError("expected the peers' scripts in ../shared/bench/peers, found none")
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    peers, run, correct = (importlib.import_module(name) for name in ("peers", "run", "correct"))
    loads: tuple[Callable[..., Any], ...] = (load_ours, load_ours_new, load_ours_stream)
    for name, load in zip(OURS, loads, strict=True):
        peers.PEERS[name] = (write_ours, load, "ours")
        peers.SHARED[name] = OURS[0]
    peers.IMPORTS["ours-stream"] = "train.stream"
    return Scripts(peers, run, correct)


def write_ours(src: Sequence[np.ndarray], out: str) -> None:
    """Pack rows of uint16 ids as they are, one document each, with their sample ids: one dataset for each array.

    Args:
        src: (rows, sequence_length) each.
    """
    vocabulary = lay_out("peers", text_size=_TEXT_SIZE, markers=[], media=[])
    for number, rows in enumerate(src):
        name, length = f"set{number}", rows.shape[1]
        entries = [
            write_packed_shard(
                Path(out) / name / f"shard-{shard:05d}.arrow",
                (
                    _row(ids, f"{name}-{start + i:08d}", name)
                    for i, ids in enumerate(rows[start : start + _ROWS_PER_SHARD])
                ),
                vocabulary=vocabulary,
                sequence_length=length,
            )
            for shard, start in enumerate(range(0, len(rows), _ROWS_PER_SHARD))
        ]
        identity = fingerprint([entry.sha256 for entry in entries])
        extra = {"sequence_length": length}
        manifest = Manifest("packed", name, identity, entries, FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
        write_manifest(Path(out) / name, manifest)


def load_ours(
    out: str,
    mode: str,
    workers: int = 0,
    seed: int = 1,
    state: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    *,
    fresh: bool = False,
    **_: object,
) -> Any:
    """Int64 batches of rows of a mixture, from a saved position on.

    Args:
        workers: worker processes of other loaders; this one has none.
        state: what the returned ``Run``'s state function gave, on any number of ranks.
        fresh: a new tensor for each batch; otherwise the one before is overwritten.

    Returns:
        The scripts' ``Run``.
    """
    peers = _peers()
    mixture, datasets, stop = _open(out, mode, seed)
    batch_rows = peers.BATCH * world
    mixed = MixedRows(mixture, datasets)
    position = _Position(mixture.fingerprint, state, batch_rows)

    def batches() -> Iterator[torch.Tensor]:
        buffer = torch.empty((peers.BATCH, peers.SEQ), dtype=torch.int64)
        view = buffer.numpy()
        for first in range(position.rows // batch_rows, stop // batch_rows, _STEPS_PLANNED):
            steps = range(first, min(first + _STEPS_PLANNED, stop // batch_rows))
            rows = mixed.plan(mixture.batches(steps, batch_rows, rank=rank, world_size=world))
            for start in range(0, len(rows), peers.BATCH):
                mixed.gather(rows, view, start=start)
                position.rows += batch_rows
                yield buffer.clone() if fresh else buffer

    return peers.Run(batches(), position.save)


def load_ours_new(*args: Any, **options: Any) -> Any:
    """:func:`load_ours` with a new tensor for each batch."""
    return load_ours(*args, **options, fresh=True)


def load_ours_stream(
    out: str,
    mode: str,
    workers: int = 0,
    seed: int = 1,
    state: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    **_: object,
) -> Any:
    """:func:`load_ours` by way of the trainer's stream, which the scripts have imported by now."""
    from train.stream import RowStream

    peers = _peers()
    mixture, datasets, stop = _open(out, mode, seed)
    batch_rows = peers.BATCH * world
    position = _Position(mixture.fingerprint, state, batch_rows)

    def batches() -> Iterator[torch.Tensor]:
        first = position.rows // batch_rows + 1
        with RowStream(
            mixture, datasets, batch_rows=batch_rows, attention="row", first_step=first, rank=rank, world_size=world
        ) as stream:
            for _ in range(first, stop // batch_rows + 1):
                batch = stream.next()
                position.rows += batch_rows
                yield torch.from_numpy(batch.token_ids).to(torch.int64)

    return peers.Run(batches(), position.save)


class _Position:
    """Rows that all ranks have read, as the scripts save and restore it."""

    def __init__(self, mixture: str, state: dict[str, Any] | None, batch_rows: int) -> None:
        saved = state or {"rows": 0, "mixture": mixture}
        if saved["mixture"] != mixture:
            raise ValueError(f"expected a position in mixture {mixture}, found one in {saved['mixture']}")
        if saved["rows"] % batch_rows:
            raise ValueError(f"expected a position between batches of {batch_rows} rows, found {saved['rows']} rows")
        self.rows, self._mixture = int(saved["rows"]), mixture

    def save(self) -> dict[str, Any]:
        return {"rows": self.rows, "mixture": self._mixture}


def _open(out: str, mode: str, seed: int) -> tuple[Mixture, tuple[PackedDataset, ...], int]:
    """The mixture of a mode, its datasets in order, and the rows of an epoch of it."""
    peers = _peers()
    found = {path.parent.name: open_packed(path.parent) for path in sorted(Path(out).glob("set*/manifest.json"))}
    sizes = {name: dataset.num_rows for name, dataset in found.items()}
    total = sum(sizes.values())
    parts = peers.WEIGHTS if mode == "mix" else [size / total for size in sizes.values()]
    mixture = Mixture(dict(zip(found, parts, strict=True)), sizes, seed=seed)
    return mixture, tuple(found[name] for name in mixture.names), peers.MIX_EPOCH if mode == "mix" else total


def _row(ids: np.ndarray, sample_id: str, dataset: str) -> PackedRow:
    length = len(ids)
    placement = Placement(sample_id, dataset, 0, "text", 0, length)
    return PackedRow(ids, length, (0,), ((0, length),), (placement,))


def _peers() -> Any:
    """The peers' table, imported by whoever asks for a batch."""
    return importlib.import_module("peers")


def main(arguments: Sequence[str]) -> None:
    """What the scripts start: a rank of ``correct.py``, or a command of ``run.py``."""
    scripts = load_scripts()
    script = scripts.correct if arguments[0] == "child" else scripts.run
    with scripts.command_of(OURS[0]):
        if arguments[0] == "child":
            script.child(*arguments[1:])
        else:
            script.main(list(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
