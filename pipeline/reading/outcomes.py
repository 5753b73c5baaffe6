"""One input, one outcome: a sample, a filtered input or a reject with a named reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from pipeline.reading.text import is_utf8
from pipeline.samples import Filtered, RawSample, Reject
from shards.errors import SampleError
from shards.records import Provenance

Outcome = RawSample | Filtered | Reject


def attempt(
    build: Callable[[], RawSample | Filtered], *, sample_id: str, corpus: str, provenance: Provenance
) -> Outcome:
    """What ``build`` makes of one input; the only place where a reader catches a sample's failure."""
    try:
        return build()
    except SampleError as error:
        return Reject(sample_id, corpus, error.reason, str(error), provenance)


def refuse(reason: str, message: str, *, sample_id: str, corpus: str, provenance: Provenance) -> Reject:
    """A reject that was known before anything was read."""
    return Reject(sample_id, corpus, reason, f"{reason}: {message}", provenance)


def storable(result: Outcome) -> Outcome:
    r"""The same outcome with names that UTF-8 can hold.

    Names of files, tar members and JSON strings may hold bytes or half characters that no Parquet file takes; these are
    written out as ``\udce9``. Texts of segments are refused before, by ``clean_text``.
    """
    where = result.provenance
    names = (result.sample_id, where.source_file, where.member, where.url, where.licence)
    message = "" if isinstance(result, RawSample) else result.message
    if all(map(is_utf8, (*names, message))):
        return result
    sample_id, source_file, member, url, licence = map(_escaped, names)
    provenance = Provenance(source_file, member, where.offset, url, licence)
    if isinstance(result, RawSample):
        return replace(result, sample_id=sample_id, provenance=provenance)
    return replace(result, sample_id=sample_id, message=_escaped(message), provenance=provenance)


def number(value: Any) -> float | None:
    """A finite number, or a string that spells one; None for everything else, booleans and NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) else None


def numbers(record: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, float]:
    """Those of ``keys`` that hold a number: the quality fields of a sample."""
    found = {key: number(record.get(key)) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _escaped(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
