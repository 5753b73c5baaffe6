"""The plan before the bill: the paper's figures from the shipped recipes, with neither data nor weights on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from shards.errors import ConfigError
from train.bill import cost, first_that_fits, layouts, legal_counts, machine_counts, memory_of, run_flops
from train.cli import main
from train.config import LoraConfig, TrainConfig
from train.devices import find_device, read_devices
from train.flops import flops_per_token, matmul_parameters
from train.outline import Outline, outline_run
from train.plan import check_process_count, legal_process_counts
from train.shape import LLAMA_2_7B, Shape

RECIPE = "configs/train/anygpt-7b-{}.toml"
STAGE_1 = replace(LLAMA_2_7B, vocabulary_size=49_418)


@pytest.fixture
def nowhere(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the shipped configs and nothing else: no data, no models, no runs."""
    (tmp_path / "configs").symlink_to(repository / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pretrain(nowhere: Path) -> Outline:
    return outline(nowhere, "pretrain")


def outline(folder: Path, stage: str, *overrides: str) -> Outline:
    path = folder / RECIPE.format(stage)
    return outline_run(load_config(path, TrainConfig, overrides), where=str(path))


def dry_run(capsys: pytest.CaptureFixture[str], stage: str, *options: str) -> str:
    assert main([RECIPE.format(stage), "--dry-run", *options]) == 0
    return capsys.readouterr().out


def test_the_paper_s_figures_come_out_of_the_recipe_alone(nowhere: Path, capsys: pytest.CaptureFixture[str]):
    """6.88 G parameters, 47.15 GFLOP a token, 174.96 G tokens, 8.25e21 FLOPs."""
    output = dry_run(capsys, "pretrain")
    assert "81,000 steps of 480 rows of 4,500" in output and "6.88 G parameters" in output
    assert "47.15 G as PaLM counts, attention whole; 43.61 G with its causal half" in output
    assert "8.25e+21 for 174.96 G tokens" in output and "174,960,000,000 (2,160,000 a step)" in output
    assert "anygpt-stage1: 49,418 ids" in output
    missing = [line for line in output.splitlines() if line.startswith("not there")]
    assert len(missing) == 2 and "all datasets" in missing[0] and "models/llama-2-7b" in missing[1]
    assert list(nowhere.iterdir()) == [nowhere / "configs"], "a plan writes nothing"


@pytest.mark.parametrize(
    ("kind", "gpus", "mfu", "days", "tokens_per_s"),
    [
        ("A100", 96, 0.4, 8.0, 2647),
        ("A100", 96, 0.5, 6.4, 3308),
        ("A100", 8, 0.5, 76.5, 3308),
        ("H100", 240, 0.6, 0.7, 12_590),
        ("H200", 8, 0.4, 30.2, 8393),
        ("H200", 96, 0.5, 2.0, 10_492),
    ],
)
def test_days_of_the_run_on_real_devices(
    pretrain: Outline, kind: str, gpus: int, mfu: float, days: float, tokens_per_s: int
):
    _, device = find_device(kind)
    found = cost(pretrain, device, gpus=gpus, mfu=mfu, usd_per_hour=3.0)
    assert found.days == pytest.approx(days, abs=0.05)
    assert found.tokens_per_s == pytest.approx(tokens_per_s, rel=1e-3)
    assert found.gpu_hours == pytest.approx(found.days * 24 * gpus)
    assert found.usd == pytest.approx(3.0 * found.gpu_hours)


@given(st.integers(1, 512), st.floats(0.05, 1.0))
def test_hours_of_all_devices_together_do_not_depend_on_how_many_there_are(gpus: int, mfu: float):
    outline = Outline(TINY, STAGE_1, 4500, "v", STAGE_1.vocabulary_size, None, ())
    device = read_devices()["H100"]
    one, many = (cost(outline, device, gpus=count, mfu=mfu) for count in (1, gpus))
    assert one.gpu_hours == pytest.approx(many.gpu_hours) and one.days == pytest.approx(gpus * many.days)
    assert many.usd is None


def test_flops_of_a_token_in_both_conventions():
    shape = replace(LLAMA_2_7B, vocabulary_size=49_536)
    assert shape.num_parameters / 1e9 == pytest.approx(6.882, abs=5e-4)
    assert matmul_parameters(shape) / 1e9 == pytest.approx(6.679, abs=5e-4)
    assert flops_per_token(shape, 4500) / 1e9 == pytest.approx(47.15, abs=5e-3)
    assert flops_per_token(shape, 4500, causal=True) / 1e9 == pytest.approx(43.61, abs=5e-3)
    assert flops_per_token(shape, 0) / 1e9 == pytest.approx(40.07, abs=1e-2)
    assert flops_per_token(replace(shape, tied=True), 4500) == flops_per_token(shape, 4500)


def test_adapters_save_the_gradients_of_frozen_weights(nowhere: Path):
    whole, adapters = outline(nowhere, "sft"), outline(nowhere, "sft", "lora.rank=16")
    assert adapters.config.lora == LoraConfig(rank=16)
    assert 0.70 < run_flops(adapters) / run_flops(whole) < 0.73


def test_the_batch_of_the_paper_does_not_divide_over_powers_of_two(nowhere: Path, capsys: pytest.CaptureFixture[str]):
    """480 rows over 64, 128 or 256 GPUs: refused up front, with all numbers that work and the nearest batch that would."""
    for gpus, batch, steps in [(64, 512, 75_938), (128, 512, 75_938), (256, 512, 75_938)]:
        assert main([RECIPE.format("pretrain"), "--dry-run", "--gpus", str(gpus)]) == 2
        message = capsys.readouterr().err
        assert f"does not divide over {gpus} processes" in message and "480 rows" in message
        assert "8, 10, 12, 15, 16, 20, 24, 30, 32, 40, 48, 60, 80, 96, 120, 160, 240, 480" in message
        assert f"batch_rows = {batch} and steps = {steps}" in message and len(message.splitlines()) == 1
    for gpus in ("8", "96", "240"):
        assert main([RECIPE.format("pretrain"), "--dry-run", "--gpus", gpus]) == 0


@given(st.integers(1, 600), st.sampled_from([None, 1, 2, 3]), st.integers(1, 600))
def test_a_number_of_processes_is_legal_if_everyone_gets_as_many_whole_passes(rows: int, micro: int | None, count: int):
    if micro and rows % micro:
        return
    is_legal = rows % (count * (micro or 1)) == 0
    assert (count in legal_process_counts(rows, micro)) == is_legal
    engine = TINY.engine.model_copy(update={"micro_batch_rows": micro})
    config = TINY.model_copy(update={"batch_rows": rows, "engine": engine})
    if is_legal:
        check_process_count(config, count)
        return
    with pytest.raises(ConfigError, match="these numbers work: 1") as caught:
        check_process_count(config, count)
    suggested = int(str(caught.value).partition("batch_rows = ")[2].partition(" ")[0])
    check_process_count(config.model_copy(update={"batch_rows": suggested}), count)


def test_every_stage_of_the_paper_runs_on_8_16_and_32_gpus(nowhere: Path):
    machines = [set(machine_counts(outline(nowhere, stage))) for stage in ("pretrain", "quality", "sft")]
    assert set.intersection(*machines) == {8, 16, 32}
    assert set(machine_counts(outline(nowhere, "sft"))) == {8, 16, 32, 64}


def test_kinds_of_devices_are_those_of_the_data_sheets():
    """Dense peaks: 1,979 TFLOP/s is the sparse figure of an H100, and a common error."""
    devices = read_devices()
    assert devices["A100"].bf16_tflops == 312.0
    assert devices["H100"].bf16_tflops == devices["H200"].bf16_tflops == 989.4
    for name, device in devices.items():
        assert 10 < device.memory_gib < 150, name
        assert device.peak in (0.0, (device.bf16_tflops or 0) * 1e12)
        assert device.bf16_tflops is None or abs(device.bf16_tflops - device.tflops["fp16"]) < 1, name
    assert not devices["V100"].peak and not devices["T4"].peak
    assert find_device("NVIDIA H200")[0] == "H200" and find_device("a100-40gb")[0] == "A100-40GB"
    with pytest.raises(ConfigError, match=r"--kind TPU: expected one of V100, .*H200; add it"):
        find_device("TPU")


def test_what_fits_where(pretrain: Outline):
    """An 80 GB card takes a row without recomputing on eight GPUs; 40 GB do with recomputing; an H200 takes more."""
    a100, small, h200 = (find_device(kind)[1] for kind in ("A100", "A100-40GB", "H200"))
    on_small, on_large = first_that_fits(pretrain, 8, small), first_that_fits(pretrain, 8, a100)
    assert on_small is not None and on_small.checkpointed
    assert on_large is not None and not on_large.checkpointed
    for device in (a100, small, h200):
        fitting = [one for one in layouts(pretrain, 8) if memory_of(pretrain, one).fits(device.memory_gib)]
        assert fitting[0] == first_that_fits(pretrain, 8, device)
    assert first_that_fits(pretrain, 1, small) is None, "states alone are 110 GB"


def test_the_bill_says_what_was_asked(nowhere: Path, capsys: pytest.CaptureFixture[str]):
    output = dry_run(capsys, "pretrain", "--gpus", "96", "--kind", "H200", "--hourly", "3", "--mfu", "0.5")
    assert "GPU-hours    4,632, $13,897 at $3 an hour" in output
    assert "of each of 96 GPUs" in output and "H200        139.8 GiB: fits" in output and "A100" not in output
    assert json.loads(output.partition("\n}\n")[0] + "}")["steps"] == 81_000
    everything = dry_run(capsys, "pretrain")
    assert "A100 " in everything and "H100 " in everything and "T4" not in everything
    on_cpu = dry_run(capsys, "pretrain", "--kind", "cpu")
    assert "days" not in on_cpu and "of each of 1 processes" in on_cpu


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kind", "TPU"], "--kind TPU: expected one of"),
        (["--kind", "V100"], "expected a device with bfloat16"),
        (["--mfu", "50"], "--mfu 50: expected a part of the peak"),
        (["--set", "model.hidden_size=4095"], "multiple of num_heads"),
        (
            ["--set", "vocabulary=configs/vocabulary/tiny.toml"],
            "key 'vocabulary': expected a layout file with text_size",
        ),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    nowhere: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
):
    assert main([RECIPE.format("pretrain"), "--dry-run", *options]) == 2
    assert words in capsys.readouterr().err


def test_without_a_shape_a_missing_model_is_taken_for_llama_2_7b(nowhere: Path, repository: Path):
    text = (repository / RECIPE.format("pretrain")).read_text(encoding="utf-8")
    before, _, after = text.partition("[model]")
    path = nowhere / "bare.toml"
    path.write_text(before + "[optimizer]" + after.partition("[optimizer]")[2], encoding="utf-8")
    found = outline_run(load_config(path, TrainConfig), where=str(path))
    assert found.shape == STAGE_1 and "planned with the shape of LLaMA-2-7B" in found.missing[1]


def test_a_folder_of_another_shape_than_expected_is_refused(nowhere: Path, capsys: pytest.CaptureFixture[str]):
    folder = nowhere / "models" / "llama-2-7b"
    folder.mkdir(parents=True)
    there = {"model_type": "llama", "vocab_size": 32_000, "hidden_size": 5120, "num_hidden_layers": 40}
    there |= {"num_attention_heads": 40, "intermediate_size": 13_824}
    (folder / "config.json").write_text(json.dumps(there), encoding="utf-8")
    assert main([RECIPE.format("pretrain"), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "key 'model.hidden_size'" in message and "4096" in message and "found 5120" in message


def test_data_that_is_there_is_planned_with_and_must_have_the_length_that_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "toy.toml"
    text = f'output = "{tmp_path}/run"\ndata = "{data}"\nmixture = "{data}/mixture.toml"\nsteps = 10\nbatch_rows = 12\n'
    path.write_text(text, encoding="utf-8")
    assert main([str(path), "--dry-run", "--kind", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "not there" not in output and "10 steps of 12 rows of 64" in output and "image" in output
    assert main([str(path), "--dry-run", "--set", "sequence_length=128"]) == 2
    assert "key 'sequence_length': expected" in capsys.readouterr().err
    assert main([str(path), "--set", "sequence_length=128"]) == 2
    assert "key 'sequence_length': expected 128, found 64" in capsys.readouterr().err


def test_the_recipes_carry_the_paper_s_numbers(nowhere: Path):
    """Table 8 and appendix A.2."""
    pretrain, quality, sft = (outline(nowhere, stage).config for stage in ("pretrain", "quality", "sft"))
    assert [(one.steps, one.batch_rows, one.sequence_length, one.optimizer.lr) for one in (pretrain, quality, sft)] == [
        (81_000, 480, 4500, 6e-5),
        (4_000, 480, 4500, 6e-5),
        (5_000, 64, 4500, 2e-5),
    ]
    for config in (pretrain, quality, sft):
        assert (config.schedule.warmup, config.optimizer.clip) == (0.03, 1.0)
    assert outline(nowhere, "sft").tokens == 1_440_000_000
    assert legal_counts(outline(nowhere, "sft")) == [1, 2, 4, 8, 16, 32, 64]
    assert isinstance(outline(nowhere, "sft").shape, Shape)


TINY = TrainConfig.model_validate(
    {"output": "runs/x", "data": "d", "mixture": "m.toml", "steps": 100, "batch_rows": 480}
)
