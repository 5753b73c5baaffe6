"""Which samples a packed dataset was made of, told from manifests alone.

Packing stores no path of any machine. Its fingerprint covers its config and, of every source, name, fingerprint and the
checksums of all shards; so it can be computed again from sample datasets at hand. When no order of them gives the
stored one, the samples are others, or have changed since: the packed dataset is stale.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from shards.manifest import Manifest, fingerprint

_MAX_SOURCES = 6


def packing_fingerprint(config: Mapping[str, Any], sources: Sequence[Manifest]) -> str:
    """Fingerprint of rows packed with ``config`` out of ``sources``, in that order."""
    inputs = [[m.name, m.fingerprint, [[s.path, s.num_rows, s.sha256] for s in m.shards]] for m in sources]
    return fingerprint({"config": config, "inputs": inputs})


def is_fresh(packed: Manifest, sources: Sequence[Manifest]) -> bool:
    """Whether a packed dataset was made of exactly these sample datasets as they are now, in whichever order."""
    if len(sources) > _MAX_SOURCES:
        return packing_fingerprint(packed.config, sources) == packed.fingerprint
    orders = itertools.permutations(sources)
    return any(packing_fingerprint(packed.config, order) == packed.fingerprint for order in orders)


def source_names(packed: Manifest) -> tuple[str, ...]:
    """Names of the sample datasets that gave a packed dataset its tokens."""
    return tuple(sorted(packed.extra.get("sources", {})))
