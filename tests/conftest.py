"""What all rooms' tests share: where the repository is, and where the shared corpora are, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Decided before any test imports torch, transformers or ray: no network, no usage figures, one thread per operation,
# because several processes share two cores and floating-point sums must not depend on how many there are.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

# Two cores are shared with whatever else runs there; how long one example takes says nothing.
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_CORPORA = REPOSITORY.parent / "shared" / "corpora"
PARITY = Path(os.environ.get("PARITY_DIR", REPOSITORY.parent / "shared" / "reference" / "parity"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_corpora() -> Path:
    """The folder of small real corpora beside the repository; the test is skipped, visibly, where it is absent."""
    if not SHARED_CORPORA.is_dir():
        pytest.skip("no ../shared/corpora beside the repository; its own miniature fixtures cover the same readers")
    return SHARED_CORPORA


@pytest.fixture(scope="session")
def parity() -> Path:
    """Small checkpoints in the published layouts with the outputs of the authors' code; absent, visibly skipped.

    ``$PARITY_DIR``, or ../shared/reference/parity. Sizes differ from set to set: tests read them from the configs there.
    """
    if not PARITY.is_dir():
        pytest.skip(f"no parity fixtures at {PARITY.name}/; set PARITY_DIR to their folder")
    return PARITY
