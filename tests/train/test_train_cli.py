"""A wrong config is one message with the file, the key and the fix, and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_config
from shards.errors import ConfigError
from shards.vocabulary import Vocabulary, lay_out
from train.cli import main
from train.config import MixtureConfig, TrainConfig
from train.plan import legal_process_counts, make_plan, micro_batch_rows

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def config_file(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(
        f'output = "{tmp_path}/run"\ndata = "{data}"\nmixture = "{data}/mixture.toml"\nsteps = 10\nbatch_rows = 12\n'
        "[model]\nhidden_size = 32\nnum_heads = 2\nnum_layers = 1\nintermediate_size = 48\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=1", ["toy.toml", "unknown key 'optimizer.learning_rate'"]),
        ("step=3", ["toy.toml", "unknown key 'step'", "did you mean 'steps'?"]),
        ("steps=many", ["toy.toml", "key 'steps'", "integer", "many"]),
        ("attention=none", ["toy.toml", "key 'attention'", "'row' or 'document'"]),
        ("model.num_heads=3", ["toy.toml", "key 'model'", "multiple of num_heads"]),
        ("mixture=nowhere.toml", ["nowhere.toml", "expected a config file, found none"]),
        ("data=nowhere", ["mixture.toml", "key 'shares.image'", "nowhere/image", "pack it first"]),
        ("engine.micro_batch_rows=5", ["toy.toml", "engine.micro_batch_rows", "divisor of batch_rows 12, found 5"]),
        ("init.from=nowhere", ["key 'init.from'", "expected a model in nowhere"]),
    ],
)
def test_a_wrong_key_or_value_exits_with_2_and_says_where(
    config_file: Path, capsys: pytest.CaptureFixture[str], override: str, words: list[str]
):
    assert main([str(config_file), "--set", override]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 1 and "Traceback" not in message


def test_shares_that_do_not_sum_to_one_name_the_file(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mixture = tmp_path / "mixture.toml"
    mixture.write_text("[shares]\nimage = 0.5\nmusic = 0.4\n", encoding="utf-8")
    assert main([str(config_file), "--set", f"mixture={mixture}"]) == 2
    message = capsys.readouterr().err
    assert str(mixture) in message and "sum to 1, found 0.9" in message and "change one of them by +0.1" in message


def test_datasets_of_different_vocabularies_are_refused_by_name(
    config_file: Path,
    data: Path,
    tmp_path: Path,
    vocabulary: Vocabulary,
    write_dataset: Callable[[Path, str, Vocabulary], Path],
    capsys: pytest.CaptureFixture[str],
):
    media = [
        {key: getattr(block, key) for key in ("name", "prefix", "start", "end", "codebook_size", "levels")}
        for block in vocabulary.blocks.values()
    ]
    other = lay_out("other", text_size=41, markers=[], media=media)
    folder = write_dataset(tmp_path, "music", other)
    mixture = tmp_path / "mixture.toml"
    mixture.write_text(f'[shares]\nimage = 0.5\nmusic = 0.5\n[paths]\nmusic = "{folder}"\n', encoding="utf-8")
    assert main([str(config_file), "--set", f"mixture={mixture}"]) == 1
    message = capsys.readouterr().err
    assert str(folder) in message and "vocabulary other" in message and "image with toy" in message


def test_weights_of_another_vocabulary_are_refused(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "weights"
    folder.mkdir()
    shape = {"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "intermediate_size": 48}
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    assert main([str(config_file), "--set", f"init.from={folder}"]) == 1
    assert "expected a model of the 40 text ids or of all 128 ids of toy, found 50" in capsys.readouterr().err
    named = lay_out("named", text_size=50, markers=[], media=[])
    (folder / "vocabulary.json").write_text(json.dumps(named.to_json()), encoding="utf-8")
    assert main([str(config_file), "--set", f"init.from={folder}"]) == 1
    assert "the weights speak vocabulary named" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(config_file), "--dry-run", "--set", "engine.micro_batch_rows=2"]) == 0
    output = capsys.readouterr().out
    config, _, plan = output.partition("\n}\n")
    assert json.loads(config + "}")["batch_rows"] == 12
    assert "10 steps of 12 rows of 64" in plan and "7,680 (768 a step)" in plan
    assert "processes    1, 2, 3, 6\n" in plan
    assert not (tmp_path / "run").exists()


def test_480_rows_do_not_divide_over_64_processes_and_the_message_lists_what_does(
    make_config: Callable[..., TrainConfig],
):
    config = make_config(batch_rows=480, engine={"micro_batch_rows": 1})
    with pytest.raises(ConfigError, match=r"over 64 processes.* 48, 60, 80, 96, 120, 160, 240, 480"):
        micro_batch_rows(config, 64)
    assert micro_batch_rows(config, 96) == 1
    assert legal_process_counts(480, 2)[-1] == 240


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_names_a_mixture_that_sums_to_one(path: Path):
    config = load_config(path, TrainConfig)
    mixture = load_config(CONFIGS.parent / config.mixture, MixtureConfig)
    assert sum(mixture.shares.values()) == pytest.approx(1.0, abs=1e-12)
    assert config.name == path.stem


def test_the_7b_recipes_carry_the_numbers_of_the_paper():
    """Tables 7 and 8."""
    pretrain = load_config(CONFIGS / "train" / "anygpt-7b-pretrain.toml", TrainConfig)
    assert (pretrain.steps, pretrain.batch_rows, pretrain.optimizer.lr) == (81_000, 480, 6e-5)
    assert (pretrain.schedule.warmup, pretrain.optimizer.clip, pretrain.attention) == (0.03, 1.0, "row")
    sft = load_config(CONFIGS / "train" / "anygpt-7b-sft.toml", TrainConfig)
    assert (sft.steps, sft.batch_rows, sft.optimizer.lr) == (5_000, 64, 2e-5)
    shares = load_config(CONFIGS.parent / pretrain.mixture, MixtureConfig).shares
    pictures = sum(shares[name] for name in ("laion2b", "laion-coco", "laion-aesthetics", "journeydb"))
    assert (shares["mmc4"], shares["mls"], shares["music"]) == (0.05, 0.13, 0.25)
    assert pictures == pytest.approx(0.30)
    assert shares["common-voice"] + shares["gigaspeech"] == pytest.approx(0.27)


def test_the_backbone_of_the_paper_has_6_88_billion_parameters(make_config: Callable[..., TrainConfig]):
    """LLaMA-2-7B with 49,536 embeddings."""
    plan = make_plan(make_config(), where="test.toml")
    shape = type(plan.shape)(49_536, 4096, 32, 32, 32, 11_008, False)
    assert shape.num_parameters == pytest.approx(6.882e9, rel=1e-4)
