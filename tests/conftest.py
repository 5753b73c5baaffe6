"""What all rooms' tests share: where the repository is, and where the shared corpora are, if they are there."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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

# The suite starts a hundred processes, and compiling torch, Ray and DeepSpeed takes each of them longer than what it is
# there for. Who wants no bytecode beside the sources (PYTHONDONTWRITEBYTECODE) gets it in a folder of the tests, once.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(REPOSITORY / ".pytest_cache" / "__pycache__"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, but all files that share a Ray are one, and what takes long is not begun last."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LongFilesFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if "ray_of_this_process" in _text(file) else file

    # The order of the collection then, instead of the number of tests, which says little: see below.
    config.option.loadscopereorder = False
    return LongFilesFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the work: Ray's files, those with a test marked slow, those that start processes, large ones."""
    if not hasattr(config, "workerinput"):
        return
    counts = Counter(item.path for item in items)
    has_ray = {item.path for item in items if "ray_of_this_process" in getattr(item, "fixturenames", ())}
    is_slow = {item.path for item in items if item.get_closest_marker("slow")}
    starts = {path for path in counts if re.search("subprocess|process_groups", path.read_text(encoding="utf-8"))}
    firsts = (has_ray, is_slow, starts)
    items.sort(key=lambda item: (*(item.path not in first for first in firsts), -counts[item.path], item.path))


@functools.cache
def _text(file: str) -> str:
    return (REPOSITORY / file).read_text(encoding="utf-8")


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
