"""anygpt-mix: the paper's epochs from the paper's sizes, a run on disk, phases and caps from a file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.load import validate
from train.mix_cli import main
from train.mix_config import DatasetSize, PhasedMixtureConfig

RUN = "steps = 100\nbatch_rows = 20\nsequence_length = 50\n"


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]):
    def run(*words: str) -> dict[str, Any]:
        assert main([*words, "--plan", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def by_name(plan: dict[str, Any], key: str) -> dict[str, Any]:
    return {dataset["name"]: dataset[key] for dataset in plan["datasets"]}


def test_the_papers_epochs_follow_from_the_papers_sizes(repository: Path, run_json):
    """2.9, 20 and 44: what the design's page says, within two per cent, and the numbers they come from exactly."""
    plan = run_json(str(repository / "configs/mixtures/paper-epochs.toml"))
    assert plan["slots"] == 174_960_000_000
    epochs = by_name(plan, "epochs")
    assert epochs["mls"] == pytest.approx(2.9, rel=0.02)
    assert epochs["common-voice-gigaspeech"] == pytest.approx(20, rel=0.02)
    assert epochs["music"] == pytest.approx(44, rel=0.02)
    # Codes alone: 50 a second of speech, 1,000 a piece of music. A row more or less is the only rounding.
    assert epochs["mls"] == pytest.approx(0.13 * 174.96e9 / (44_000 * 3600 * 50), rel=1e-5)
    assert epochs["common-voice-gigaspeech"] == pytest.approx(0.27 * 174.96e9 / (13_000 * 3600 * 50), rel=1e-5)
    assert epochs["music"] == pytest.approx(0.25 * 174.96e9 / 1e9, rel=1e-5)
    assert by_name(plan, "share") == pytest.approx(
        {"mmc4": 0.05, "image-text": 0.3, "mls": 0.13, "common-voice-gigaspeech": 0.27, "music": 0.25}
    )
    assert by_name(plan, "first_repeat")["music"] == 222_223 * 4 // 480 + 1
    assert plan["tokens"]["speech"] == pytest.approx(0.4 * 174.96e9, rel=1e-4)


def test_text_and_padding_make_the_epochs_fewer(repository: Path, run_json):
    """Four pieces of music of 1,037 ids a row: 250,000 rows for a million pieces."""
    codes = by_name(run_json(str(repository / "configs/mixtures/paper-epochs.toml")), "epochs")
    packed = run_json(str(repository / "configs/mixtures/paper-epochs-packed.toml"))
    epochs = by_name(packed, "epochs")
    assert all(epochs[name] < codes[name] for name in codes)
    assert epochs["music"] == pytest.approx(9_720_000 / 250_000, rel=1e-3)
    assert sum(packed["tokens"].values()) < packed["slots"]


def test_the_shares_of_the_paper_are_those_of_the_shipped_mixture(repository: Path, run_json):
    """paper-table7.toml splits two lines of Table 7 among their corpora; the sums are the same."""
    text = (repository / "configs/mixtures/paper-table7.toml").read_text(encoding="utf-8")
    split = tomllib.loads(text)["shares"]
    joined = by_name(run_json(str(repository / "configs/mixtures/paper-epochs.toml")), "share")
    assert split["common-voice"] + split["gigaspeech"] == pytest.approx(joined["common-voice-gigaspeech"])
    pictures = sum(split[name] for name in ("laion2b", "laion-coco", "laion-aesthetics", "journeydb"))
    assert pictures == pytest.approx(joined["image-text"])
    for name in ("mmc4", "mls", "music"):
        assert split[name] == pytest.approx(joined[name])


def test_a_training_config_is_planned_from_its_manifests(data: Path, tmp_path: Path, run_json):
    config = tmp_path / "toy.toml"
    config.write_text(
        f'output = "{tmp_path}/run"\ndata = "{data}"\nmixture = "{data}/mixture.toml"\nsteps = 10\nbatch_rows = 12\n',
        encoding="utf-8",
    )
    plan = run_json(str(config), "--ranks", "3")
    assert by_name(plan, "num_rows") == {"image": 24, "speech": 24, "music": 24}
    assert by_name(plan, "rows_read") == {"image": 60, "speech": 30, "music": 30}
    assert by_name(plan, "epochs") == {"image": 2.5, "speech": 1.25, "music": 1.25}
    manifest = json.loads((data / "image" / "manifest.json").read_text(encoding="utf-8"))
    stored = manifest["shards"][0]["tokens"]
    assert by_name(plan, "tokens")["image"] == pytest.approx({name: 2.5 * count for name, count in stored.items()})
    assert plan["ranks"][0]["rows"] == 4
    assert run_json(str(config), "--limit", "5")["steps"] == 5


def test_sizes_and_datasets_on_disk_may_be_mixed(data: Path, tmp_path: Path, run_json):
    config = tmp_path / "mix.toml"
    config.write_text(
        f'steps = 10\nbatch_rows = 10\ndata = "{data}"\n[shares]\nimage = 0.5\nplanned = 0.5\n'
        "[datasets.planned]\ntokens.text = 6400\n",
        encoding="utf-8",
    )
    # Rows are as long as those on disk: 64 ids.
    assert by_name(run_json(str(config)), "num_rows") == {"image": 24, "planned": 100}


def test_phases_ramps_and_caps_come_from_the_file(tmp_path: Path, run_json, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "mix.toml"
    text = (
        RUN + 'max_epochs = 2.0\nwhen_exhausted = "drop"\n'
        "[shares]\na = 0.5\nb = 0.5\n"
        "[[phases]]\nfirst_step = 51\nramp_steps = 20\nshares = { a = 0.5, c = 0.5 }\n"
        "[datasets]\na.rows = 1000\nb.rows = 100\nc.rows = 1000\n"
    )
    config.write_text(text, encoding="utf-8")
    plan = run_json(str(config))
    assert by_name(plan, "left_before") == {"a": None, "b": 21, "c": None}
    assert by_name(plan, "rows_read")["b"] == 200
    assert plan["stretches"][1]["shares"] == {"a": 1.0} and plan["stretches"][-1]["first_step"] == 71
    assert plan["stretches"][-1]["shares"] == {"a": 0.5, "c": 0.5}

    assert main([str(config), "--plan", "--set", "when_exhausted=refuse"]) == 2
    message = capsys.readouterr().err
    assert "mix.toml" in message and "'b' may be read 2 times and reaches that in step 21 of 100" in message


def test_the_table_says_what_the_json_says(repository: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(repository / "configs/mixtures/paper-epochs.toml"), "--plan", "--ranks", "8", "32"]) == 0
    text = capsys.readouterr().out
    music = next(line for line in text.splitlines() if line.startswith("music"))
    assert music.split() == ["music", "0.2500", "222,223", "9,720,000", "43.74", "step", "1,852", "music", "43.74", "G"]
    assert "from step 1 on exact in any 100 rows" in text
    assert "8 ranks: 60 rows each a step" in text and "32 ranks: 15 rows each a step" in text
    assert max(map(len, text.splitlines())) < 130


@pytest.mark.parametrize(
    ("text", "words", "more"),
    [
        (RUN + "[shares]\na = 1.0\n", "dataset 'a': expected a packed dataset in data/a", []),
        (RUN + "[shares]\na = 1.0\n[datasets.a]\n", "expected rows, tokens, hours or images", []),
        (RUN + "[shares]\na = 1.0\n[datasets.a]\nhours.image = 3\n", "expected hours of a sound", []),
        (RUN + "[shares]\na = 0.9\n[datasets.a]\nrows = 3\n", "sum to 1, found 0.9", []),
        (RUN + "[shares]\na = 1.0\n[datasets.a]\nrow = 3\n", "unknown key 'datasets.a.row'", []),
        (RUN + "[shares]\na = 1.0\n[datasets.a]\nrows = 3\n", "does not divide over 7 ranks", ["--ranks", "7"]),
        ("steps = 9\nbatch_rows = 2\n[shares]\na = 1.0\n[datasets.a]\nrows = 3\n", "key 'sequence_length'", []),
    ],
)
def test_a_wrong_file_exits_with_2_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str, more: Sequence[str]
):
    config = tmp_path / "mix.toml"
    config.write_text(text, encoding="utf-8")
    assert main([str(config), "--plan", *more]) == 2
    message = capsys.readouterr().err
    assert words in message and "mix.toml" in message, message
    assert len(message.splitlines()) == 1


def test_dry_run_prints_the_resolved_config_first(repository: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(repository / "configs/mixtures/paper-epochs-packed.toml"), "--dry-run", "--set", "seed=4"]) == 0
    text = capsys.readouterr().out
    assert '"seed": 4' in text and text.index('"seed": 4') < text.index("paper-epochs-packed: 81,000 steps")


def test_the_examples_of_the_page_are_files_that_load(repository: Path):
    """docs/mixtures.md: the first block is a mixture file, the second one describes datasets."""
    page = (repository / "docs/mixtures.md").read_text(encoding="utf-8")
    first, second = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    mixture = validate(first, PhasedMixtureConfig, where="docs/mixtures.md")
    assert mixture.names == ["image", "speech", "music", "journeydb"] and mixture.max_epochs == 4.0
    sizes = {name: validate(size, DatasetSize, where=name) for name, size in second["datasets"].items()}
    assert sizes["mls"].holding(4500).tokens == {"text": 440_000_000, "speech": 7_920_000_000}
    assert sizes["journeydb"].holding(4500).num_rows == -(-4_429_000 * 32 // 4500)
    assert sizes["music"].holding(4500).num_rows == 250_000
