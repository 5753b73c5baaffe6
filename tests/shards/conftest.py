"""A small vocabulary with the real codebook sizes, and packed datasets of random rows that obey Table 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import Manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, Placement, sidecar_path, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out
from shards.writer import file_sha256

MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 1024, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 2048, "levels": 4},
]
SEQUENCE_LENGTH = 96


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return lay_out("test", text_size=300, markers=["[Human]"], media=MEDIA, text_fingerprint="text")


@pytest.fixture(scope="session")
def make_row(vocabulary: Vocabulary) -> Callable[[np.random.Generator, str], PackedRow]:
    """A row of random documents: text, a picture, speech and music between their markers."""
    return lambda rng, name: _row(rng, name, vocabulary)


@pytest.fixture
def packed_folder(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """Two shards of 300 and 20 rows."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "packed"
    entries, sidecars = [], {}
    for number, num_rows in enumerate((300, 20)):
        rows = [_row(rng, f"sample-{number}-{row}", vocabulary) for row in range(num_rows)]
        path = folder / f"shard-{number:05d}.arrow"
        entries.append(write_packed_shard(path, rows, vocabulary=vocabulary, sequence_length=SEQUENCE_LENGTH))
        sidecars[sidecar_path(path).name] = file_sha256(sidecar_path(path))
    extra = {"sequence_length": SEQUENCE_LENGTH, "sidecars": sidecars}
    manifest = Manifest("packed", "test", "f" * 16, tuple(entries), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def tokenize_units() -> Callable[[Path, Sequence[Sequence[object]]], Path]:
    """Outcomes of units -> the dataset that anygpt-tokenize writes of them, by its own functions, without Ray or codecs."""
    return _tokenize_units


def _tokenize_units(output: Path, units: Sequence[Sequence[object]]) -> Path:
    # Only tests of whole datasets need these; they import torch.
    from pipeline.samples import Source
    from shards.ledger import read_entries
    from shards.left_out import join_parts
    from shards.summary import summarize
    from tokenize_jobs.ledger import commit_facts
    from tokenize_jobs.plan import TokenizeConfig, cut_units
    from tokenize_jobs.report import make_manifest, write_report
    from tokenize_jobs.stages import Task, commit_unit

    root = output.parent / f"{output.name}-raw"
    root.mkdir(parents=True)
    for number in range(len(units)):
        (root / f"{number:05d}.tar").write_bytes(b"raw")
    plan = cut_units(
        [Source(root / f"{number:05d}.tar", len(unit)) for number, unit in enumerate(units)], unit_items=99
    )
    config = TokenizeConfig(corpus="laion2b", root=root, output=output, tokenizers={})
    commit_facts(output, {"config": output.name})
    for unit, encoded in zip(plan, units, strict=True):
        commit_unit(Task(config, "f" * 16, plan.sources_only()), unit, encoded)
    summary = summarize(read_entries(output))
    join_parts(summary.parts(output), output)
    write_report(output, summary.sums, seconds=1.0)
    facts = {"config": output.name}
    manifest = make_manifest(output.name, summary, fingerprint="f" * 16, facts=facts, tokenizers={"image": "a" * 16})
    write_manifest(output, manifest)
    return output


def _row(rng: np.random.Generator, name: str, vocabulary: Vocabulary) -> PackedRow:
    ids: list[int] = []
    placements: list[Placement] = []
    spans: list[tuple[int, int]] = []
    for number in range(int(rng.integers(1, 4))):
        document = _document(rng, vocabulary)
        if len(ids) + len(document) > SEQUENCE_LENGTH:
            break
        start, stop = len(ids), len(ids) + len(document)
        ids += document
        spans.append((start + 1, stop))
        placements.append(Placement(f"{name}-{number}", "test", 0, "text_to_image", start, stop))
    padded = np.full(SEQUENCE_LENGTH, vocabulary.pad_id)
    padded[: len(ids)] = ids
    starts = tuple(placement.start for placement in placements)
    return PackedRow(padded, len(ids), starts, tuple(spans), tuple(placements))


def _document(rng: np.random.Generator, vocabulary: Vocabulary) -> list[int]:
    modality = str(rng.choice(["image", "speech", "music"]))
    shape = {"image": (32, 1), "speech": (int(rng.integers(1, 30)), 1), "music": (int(rng.integers(1, 9)), 4)}[modality]
    codes = rng.integers(0, vocabulary.block(modality).codebook_size, shape).astype(np.uint16)
    text = rng.integers(3, 300, int(rng.integers(1, 12))).tolist()
    media = vocabulary.media_token_ids(modality, codes).tolist()
    return [vocabulary.bos_id, *text, *media, vocabulary.eos_id]
