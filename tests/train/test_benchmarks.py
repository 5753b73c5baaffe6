"""The benchmark for a GPU runs to its end on a tiny network, also where DeepSpeed and Ray are not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# As on a machine where they are not installed: importing them fails.
WITHOUT = "import sys; sys.modules['deepspeed'] = sys.modules['ray'] = None; from benchmarks.gpu_trainer import main; "


def last_line(command: str, repository: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + command],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure")
def test_the_gpu_s_benchmark_says_that_there_is_none_and_proves_itself_on_a_small_network(repository: Path):
    """Both in one process, as importing takes the longest: nothing measured, then every line of it."""
    small = "main(['--small', '--steps', '1', '--recompute', '0.5', '--gradients', 'fp32', '--profile'])"
    found = last_line(f"main(); {small}", repository)
    assert found["device"] == "cpu"
    for kind in ("row", "document"):
        figures = found[kind]
        assert isinstance(figures, dict)
        assert figures["tokens_per_s"] > 0 and figures["mfu"] == 0, "nobody knows the peak of this CPU"
        assert figures["tokens_per_s"] * figures["seconds"] == pytest.approx(2 * 120, rel=1e-2)
