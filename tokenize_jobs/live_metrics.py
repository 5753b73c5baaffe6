"""Figures on Ray's dashboard while a job runs: counters and a histogram, made inside the process that counts.

Ray exports them to Prometheus under ``ray_anygpt_…``, tagged with the corpus; its Grafana panels read them there.
Outside of Ray (a test, a bare loop) nothing is made and nothing is recorded, so callers need not ask.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

from shards.ledger import Entry

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


@dataclass(frozen=True, slots=True)
class _Metrics:
    samples: Any
    tokens: Any
    left_out: Any
    units: Any
    encode_s: Any
    wait_s: Any
    busy_share: Any


def record_unit(corpus: str, entry: Entry, *, encode_s: float, wait_s: float) -> bool:
    """Count a finished unit; call it in the actor that finished it.

    Returns:
        Whether it was recorded: false outside of Ray.
    """
    metrics = _metrics() if _in_ray() else None
    if metrics is None:
        return False
    tags = {"corpus": corpus}
    metrics.units.inc(1, tags)
    # Ray refuses to count by nothing.
    if entry.written:
        metrics.samples.inc(entry.written, tags)
    for modality, count in entry.tokens.items():
        if count:
            metrics.tokens.inc(count, tags | {"modality": modality})
    for kind, reasons in (("filtered", entry.filtered), ("rejected", entry.rejected)):
        for reason, count in reasons.items():
            if count:
                metrics.left_out.inc(count, tags | {"kind": kind, "reason": reason})
    metrics.encode_s.observe(max(encode_s, 0.0), tags)
    metrics.wait_s.observe(max(wait_s, 0.0), tags)
    if encode_s + wait_s > 0:
        metrics.busy_share.set(encode_s / (encode_s + wait_s), tags)
    return True


def _in_ray() -> bool:
    # Who is in Ray has imported it; nobody else shall wait a second for the answer.
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@functools.lru_cache(maxsize=1)
def _metrics() -> _Metrics:
    """Made once a process, for Ray warns about a name that is registered twice."""
    from ray.util.metrics import Counter, Gauge, Histogram

    corpus = ("corpus",)
    return _Metrics(
        samples=Counter("anygpt_samples", "Samples written.", corpus),
        tokens=Counter("anygpt_tokens", "Tokens written, by modality.", ("corpus", "modality")),
        left_out=Counter("anygpt_left_out", "Inputs filtered or rejected, by reason.", ("corpus", "kind", "reason")),
        units=Counter("anygpt_units", "Units committed.", corpus),
        encode_s=Histogram("anygpt_encode_seconds", "Encoding of a unit, seconds.", _SECONDS, corpus),
        wait_s=Histogram("anygpt_wait_seconds", "Encoder idle before a unit, seconds.", [0.001, *_SECONDS], corpus),
        busy_share=Gauge("anygpt_busy_share", "Share of its time an encoder encoded, last unit.", corpus),
    )
