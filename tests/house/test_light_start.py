"""A command that finds nothing to do must not first import what only the doing needs: `make sft` walks seven of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tokenize_jobs.test_tokenize_job import tree, write_codec, write_config, write_corpus
from tokenize_jobs.cli import tokenize

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchaudio", "transformers", "deepspeed", "ray", "pandas", "tensorboard", "duckdb", "webdataset"}

# What a command imports before it knows what there is to do.
STARTS = [
    "evaluation.cli",
    "pipeline.cli",
    "pipeline.sample_corpora.cli",
    "tokenize_jobs.cli",
    "tokenize_jobs.packing_cli",
    "train.cli",
]


def heavy_modules(program: str, folder: Path) -> set[str]:
    """Those of ``HEAVY`` that a program has imported when it ends."""
    tail = "\nimport sys; print('modules', *{name.split('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program + tail], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("module", STARTS)
def test_a_command_starts_light(module: str, tmp_path: Path):
    assert heavy_modules(f"import {module}", tmp_path) == set()


def test_a_finished_tokenization_is_told_and_stays_light(tmp_path: Path):
    """The same command again looks at every fact of the corpus: with its codec gone it has something to say."""
    root = write_corpus(tmp_path / "root", shards=1, pictures=3)
    config = write_config(tmp_path, root, write_codec(tmp_path / "codec.safetensors"))
    again = f"from tokenize_jobs.cli import tokenize; assert tokenize([{str(config)!r}]) == {{}}"
    assert tokenize([str(config)]) == 0
    before = tree(tmp_path / "out")
    assert heavy_modules(again.format(0), tmp_path) == set()
    assert tree(tmp_path / "out") == before
    (tmp_path / "codec.safetensors").unlink()
    assert heavy_modules(again.format(2), tmp_path) == set()
