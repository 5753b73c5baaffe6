"""Tokenization and take-downs: what was removed stays out, whatever is done again, and the bytes stay the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.load import load_config
from shards.removal import remove_samples
from shards.sample_reader import read_samples
from shards.verify import verify_dataset
from tests.tokenize_jobs.test_tokenize_job import tree, write_codec, write_config, write_corpus
from tokenize_jobs.job import Choice, Job, _begin, _finish, prepare_job
from tokenize_jobs.log import JobLog
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.stages import EncodeRow, decode_row


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TokenizeConfig:
    """A finished dataset, from which five samples are removed: two of one unit, one rejected, one filtered."""
    folder = tmp_path_factory.mktemp("removed")
    root, codec = write_corpus(folder / "root"), write_codec(folder / "codec.safetensors")
    config = load_config(write_config(folder, root, codec), TokenizeConfig)
    run(prepare_job(config))
    samples = [sample.sample_id for sample in read_samples(config.output)]
    rejects = ids_of(config.output / "rejects.parquet")
    filtered = ids_of(config.output / "filtered.parquet")
    remove_samples(config.output, [*samples[3:5], samples[-1], rejects[0], filtered[0]], reason="withdrawn")
    return config


def ids_of(path: Path) -> list[str]:
    return pq.read_table(path)["sample_id"].to_pylist()


def run(job: Job) -> None:
    """What run_jobs does, without Ray."""
    _begin(job)
    encode = EncodeRow([job.task])
    for row in job.units.to_table(job.todo, task=0, again=job.again).to_pylist():
        assert encode(decode_row(row, [job.task]))["error"] == b""
    job.is_done[:] = True
    with JobLog(corpus=job.config.dataset_name, output=job.config.output) as log:
        _finish(job, log, 1.0)


def state(output: Path) -> dict[str, str]:
    return tree(output, but=("report.json", "report.html", "datacard.md"))


@pytest.mark.parametrize("again", ["only", "retry", "lost", "deleted"])
def test_a_removed_sample_does_not_come_back(again: str, config: TokenizeConfig, tmp_path: Path) -> None:
    output = Path(shutil.copytree(config.output, tmp_path / "out"))
    here = config.model_copy(update={"output": output})
    expected, report = state(output), json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["filtered"]["removed"] == 5
    choice = Choice()
    if again == "only":
        choice = Choice(only=tuple(range(len(prepare_job(here).units))))
    elif again == "retry":
        choice = Choice(retry=True)
    elif again == "lost":
        for path in (output / "shards").iterdir():
            path.unlink()
    else:
        for name in ("shards", "ledger", "rejects"):
            shutil.rmtree(output / name)
        (output / "manifest.json").unlink()
    job = prepare_job(here, choice=choice)
    assert len(job.todo)
    run(job)
    assert state(output) == expected
    assert verify_dataset(output).faults == ()
    after = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert {name: after[name] for name in ("inputs", "written", "filtered", "rejected", "tokens")} == {
        name: report[name] for name in ("inputs", "written", "filtered", "rejected", "tokens")
    }
