"""``anygpt-audit``: the chain from a packed row back to the file it came from, for a person or, with --json, a machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from shards.audit import LeftOut, Place, SampleFacts, SegmentFacts, Trail, trace
from shards.errors import AnyGPTError
from shards.storage import open_path


def main(argv: Sequence[str] | None = None) -> int:
    """``anygpt-audit DATASET --id X``: exit 1 when no dataset at hand has the id."""
    parser = argparse.ArgumentParser(prog="anygpt-audit", description="Where did a sample come from?")
    parser.add_argument("dataset", help="folder of packed rows or of sample shards")
    parser.add_argument("--id", required=True, help="of a sample; of a recording, to find all its windows")
    parser.add_argument(
        "--samples", nargs="+", default=[], help="for packed rows: datasets of samples, or folders to search"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    args = parser.parse_args(argv)
    try:
        trail = trace(open_path(args.dataset), args.id, samples=[open_path(text) for text in args.samples])
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(trail), indent=1, ensure_ascii=False) if args.json else format_trail(trail))
    return 0


def format_trail(trail: Trail) -> str:
    """A trail for a terminal: rows, samples, sources, what was left out, notes."""
    lines = [f"{trail.sample_id}: {trail.dataset} ({trail.kind}, fingerprint {trail.fingerprint})"]
    lines += [_place(place) for place in trail.places]
    for sample in trail.samples:
        lines += _sample(sample)
    lines += [_left_out(item) for item in trail.left_out]
    lines += [f"  note: {note}" for note in trail.notes]
    return "\n".join(lines)


def _place(place: Place) -> str:
    piece = f", from id {place.offset} of the document on" if place.offset else ""
    return (
        f"  row {place.row} of {place.shard} (row {place.dataset_row} of the dataset): document {place.position}, ids "
        f"{place.start} to {place.stop}{piece}, {place.sample_id} of {place.source}, {place.direction}, draw {place.draw}"
    )


def _sample(sample: SampleFacts) -> Iterator[str]:
    yield f"  sample {sample.sample_id}: row {sample.row} of {sample.folder}/{sample.shard}"
    yield f"    corpus   {sample.corpus}, split {sample.split}; tokenized as {sample.dataset} ({sample.fingerprint})"
    for segment in sample.segments:
        yield f"    segment  {_segment(segment)}"
    member = f", member {sample.member}" if sample.member else ""
    yield f"    file     {sample.source_file}{member}, offset {sample.offset}"
    for name, value in (("unit", sample.unit), ("url", sample.url), ("licence", sample.licence or "not stated")):
        if value:
            yield f"    {name:<8} {value}"


def _segment(segment: SegmentFacts) -> str:
    if segment.text is not None:
        return f"{segment.slot}: {segment.text!r}"
    length = f", {segment.duration_s:.2f} s" if segment.duration_s is not None else ""
    shape = f"{segment.frames} x {segment.levels} codes"
    sha256 = segment.media_sha256 or "not stored"
    return f"{segment.slot}: {segment.modality}, {segment.tokens} tokens ({shape}){length}, media sha256 {sha256}"


def _left_out(item: LeftOut) -> str:
    where = f"{item.source_file}{f', member {item.member}' if item.member else ''}, offset {item.offset}"
    source = f" ({where})" if item.source_file else ""
    said = f": {item.error}" if item.error else ""
    because = "" if item.reason == item.outcome else f", {item.reason}"
    return f"  {item.outcome}{because}: {item.sample_id} from {item.folder}{source}{said}"
