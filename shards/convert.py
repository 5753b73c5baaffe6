"""AnyGPT's own data files to sample shards, and sample shards to AnyGPT's data files.

Import walks a folder of ``.jsonl`` files. Each gives Parquet files of at most ``lines_per_shard`` lines under the same
relative name; what cannot be used goes to ``rejects.parquet`` with its line and a named reason, and every line that a
later export could not give back byte for byte is counted (``inexact``). Export writes the files again, in their order.

Samples of any other origin are exported too, as ``<modality>/<corpus>.jsonl``, in the published form.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.anygpt_jsonl import form_of, format_line, has_form, parse_line
from shards.errors import CorpusError, DatasetError, SampleError
from shards.manifest import Manifest, ShardEntry, fingerprint, read_manifest, write_manifest
from shards.records import FORMAT_VERSION, Provenance, TokenizedSample, samples_to_table, table_to_samples
from shards.storage import arrow_source
from shards.writer import TEMPORARY_SUFFIX, commit_bytes, commit_file, commit_table, file_sha256

CONVERTER_VERSION = 1
LINES_PER_SHARD = 1 << 15
REJECTS_NAME = "rejects.parquet"

# File names as published -> the corpus they were made of; any other file is its own corpus.
PUBLISHED_CORPORA = {
    "laion-coco-caption": "laion_coco",
    "laion_aesthetics_6plus_8m": "laion_aesthetics",
    "music-1m": "youtube_music",
    "anyinstruct_speech": "anyinstruct",
}
REJECT_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("source_file", pa.string()),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line, or one dialogue of a line, that is no sample."""

    corpus: str
    reason: str
    message: str
    provenance: Provenance


@dataclass(slots=True)
class ImportCounts:
    """``inputs = written + rejected``; lines, or dialogues where a line has several."""

    written: int = 0
    inexact: int = 0
    frames: Counter[str] = field(default_factory=Counter[str])
    rejects: list[RejectedLine] = field(default_factory=list[RejectedLine])

    def summary(self) -> dict[str, Any]:
        """What manifest and report hold."""
        rejected = Counter(reject.reason for reject in self.rejects)
        return {
            "inputs": self.written + len(self.rejects),
            "written": self.written,
            "filtered": {},
            "rejected": dict(sorted(rejected.items())),
        }


def import_jsonl(source: Path, output: Path, *, lines_per_shard: int = LINES_PER_SHARD) -> Manifest:
    """Make sample shards of every ``.jsonl`` under ``source``; does nothing if ``output`` holds just that already.

    Raises:
        CorpusError: no such file there.
    """
    files = [source] if source.is_file() else sorted(source.rglob("*.jsonl"))
    if not files:
        raise CorpusError(f"{source}: expected AnyGPT .jsonl files, found none; give the folder that holds them")
    root = source.parent if source.is_file() else source
    names = {path.relative_to(root).as_posix(): path for path in files}
    facts = {
        "converter": CONVERTER_VERSION,
        "lines_per_shard": lines_per_shard,
        "files": {name: file_sha256(path) for name, path in names.items()},
    }
    made_of = fingerprint(facts)
    if (output / "manifest.json").is_file() and (done := read_manifest(output)).fingerprint == made_of:
        return done
    # Until the new one is written there is no dataset here, whatever shards lie about.
    (output / "manifest.json").unlink(missing_ok=True)
    counts, shards, endings = ImportCounts(), list[ShardEntry](), dict[str, bool]()
    for name, path in names.items():
        shards += _import_file(name, path, output, counts, lines_per_shard)
        endings[name] = _ends_in_newline(path)
    commit_table(output / REJECTS_NAME, _rejects_table(counts.rejects))
    manifest = Manifest(
        kind="samples",
        name="anygpt-jsonl",
        fingerprint=made_of,
        shards=tuple(shards),
        format_version=FORMAT_VERSION,
        tokenizers=dict.fromkeys(sorted(counts.frames), "imported from AnyGPT token text"),
        config={"lines_per_shard": lines_per_shard},
        counts=counts.summary(),
        extra={"final_newline": endings, "inexact": counts.inexact},
    )
    write_manifest(output, manifest)
    report = counts.summary() | {"tokens": dict(counts.frames), "inexact": counts.inexact}
    commit_bytes(output / "report.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    return manifest


def export_jsonl(dataset: Path, output: Path) -> dict[str, int]:
    """Write a dataset of samples as AnyGPT's files.

    Returns:
        Number of lines by file written, and of samples by reason left out, as ``left out: <reason>``.

    Raises:
        DatasetError: packed shards, or a source name that points outside ``output``.
    """
    manifest = read_manifest(dataset)
    if manifest.kind != "samples":
        raise DatasetError(
            f"{dataset}: expected sample shards, found a dataset of kind {manifest.kind!r}; export those, or packed shards "
            "with --format megatron, mds or webdataset"
        )
    endings: dict[str, bool] = manifest.extra.get("final_newline", {})
    samples = (
        sample
        for entry in manifest.shards
        for sample in table_to_samples(pq.read_table(arrow_source(dataset / entry.path)))
    )
    written = dict.fromkeys(endings, 0)
    left_out: Counter[str] = Counter()
    with ExitStack() as stack:
        # A file without a single line is still a file.
        opened = {name: _open_output(output / _inside(name, dataset), stack) for name in endings}
        for (name, _), group in groupby(samples, key=_place_of):
            try:
                line = format_line(list(group))
            except SampleError as error:
                left_out[f"left out: {error.reason}"] += 1
                continue
            if name not in opened:
                opened[name] = _open_output(output / _inside(name, dataset), stack)
            opened[name].write((b"\n" if written.get(name) else b"") + line)
            written[name] = written.get(name, 0) + 1
        for name, file in opened.items():
            file.write(b"\n" if endings.get(name, True) and written[name] else b"")
            file.flush()
            os.fsync(file.fileno())
    for name in opened:
        path = output / name
        commit_file(path.with_name(path.name + TEMPORARY_SUFFIX), path)
    return dict(sorted((written | left_out).items()))


def _import_file(
    name: str, path: Path, output: Path, counts: ImportCounts, lines_per_shard: int
) -> Iterator[ShardEntry]:
    stem = PurePosixPath(name).stem
    corpus = PUBLISHED_CORPORA.get(stem, stem.replace("-", "_"))
    with path.open("rb") as file:
        for number, lines in enumerate(batched_lines(file, lines_per_shard)):
            before = Counter(counts.frames)
            samples = [sample for at, line in lines for sample in _import_line(line, corpus, name, at, counts)]
            shard = f"{name.removesuffix('.jsonl')}-{number:05d}.parquet"
            sha256 = commit_table(output / shard, samples_to_table(samples))
            tokens = dict(counts.frames - before)
            yield ShardEntry(shard, len(samples), (output / shard).stat().st_size, sha256, tokens)


def batched_lines(file: Iterable[bytes], count: int) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their numbers, line feeds taken off, ``count`` at a time."""
    batch: list[tuple[int, bytes]] = []
    for number, line in enumerate(file):
        batch.append((number, line.removesuffix(b"\n")))
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def _import_line(line: bytes, corpus: str, name: str, number: int, counts: ImportCounts) -> list[TokenizedSample]:
    try:
        found = parse_line(line, corpus=corpus, source_file=name, number=number)
    except SampleError as error:
        found = [error]
    good = [item for item in found if isinstance(item, TokenizedSample)]
    for item in found:
        if isinstance(item, SampleError):
            counts.rejects.append(RejectedLine(corpus, item.reason, str(item), Provenance(name, "", number)))
    counts.written += len(good)
    counts.inexact += bool(good) and format_line(good) != line
    for sample in good:
        for segment in sample.segments:
            if segment.codes is not None:
                counts.frames[str(segment.modality)] += len(segment.codes)
    return good


def _rejects_table(rejects: Sequence[RejectedLine]) -> pa.Table:
    rows = [
        {
            "sample_id": f"{reject.provenance.source_file.removesuffix('.jsonl')}/{reject.provenance.offset:06d}",
            "corpus": reject.corpus,
            "reason": reject.reason,
            "message": reject.message,
            "source_file": reject.provenance.source_file,
            "member": reject.provenance.member,
            "offset": reject.provenance.offset,
        }
        for reject in rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) == b"\n"


def _place_of(sample: TokenizedSample) -> tuple[str, str]:
    """(file, line): dialogues of one line share it; samples of another origin have a line each."""
    if has_form(sample):
        return sample.provenance.source_file, str(sample.provenance.offset)
    form = form_of(sample)
    return f"{form.keys[-1] if len(form.keys) == 2 else 'other'}/{sample.corpus}.jsonl", sample.sample_id


def _inside(name: str, dataset: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DatasetError(f"{dataset}: expected source files below the output folder, found {name!r}; it is not ours")
    return path


def _open_output(path: Path, stack: ExitStack) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.with_name(path.name + TEMPORARY_SUFFIX).open("wb"))
