"""SoundStorm as an objective of anygpt-train: what is hidden, what is learnt, killed and continued, exported and loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.soundstorm_files import load_network
from shards.errors import ConfigError, FingerprintMismatch
from shards.manifest import Manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, write_packed_shard
from shards.vocabulary import Vocabulary, lay_out
from train.checkpoint import newest_checkpoint, read_optimizer_state
from train.cli import is_finished, main
from train.collate import IGNORED, micro_batches
from train.config import SoundStormConfig, TrainConfig
from train.masking import Masking
from train.metrics import read_metrics
from train.objectives import open_objective
from train.plan import describe, make_plan
from train.soundstorm import SoundStorm
from train.stream import RowStream
from train.trainer import train

LEVELS, CODES, LENGTH, ROWS = 4, 12, 200, 24
SIZES = {
    "dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "conv_kernel": 3,
    "num_quantizers": LEVELS - 1, "codebook_size": CODES, "num_semantic": CODES,
}  # fmt: skip
TIMES = {"tokens_per_s", "data_wait", "seconds", "memory_gib"}
Make = Callable[..., TrainConfig]


def speech_vocabulary() -> Vocabulary:
    medium = {"name": "speech", "prefix": "s", "start": "<sosp>", "end": "<eosp>"}
    return lay_out("levels", text_size=3, markers=[], media=[{**medium, "codebook_size": CODES, "levels": LEVELS}])


BLOCK = speech_vocabulary().block("speech")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of speech whose higher levels follow from the first, so that there is something to learn."""
    folder, vocabulary = tmp_path_factory.mktemp("levels"), speech_vocabulary()
    rows = [toy_row(np.random.default_rng(number), vocabulary) for number in range(ROWS)]
    entry = write_packed_shard(
        folder / "speech" / "shard-00000.arrow", rows, vocabulary=vocabulary, sequence_length=LENGTH
    )
    extra = {"sequence_length": LENGTH}
    manifest = Manifest("packed", "speech", "f" * 16, (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    write_manifest(folder / "speech", manifest)
    (folder / "mixture.toml").write_text("[shares]\nspeech = 1.0\n", encoding="utf-8")
    return folder


def toy_row(rng: np.random.Generator, vocabulary: Vocabulary) -> PackedRow:
    ids: list[int] = []
    starts: list[int] = []
    while True:
        first = rng.integers(0, CODES, int(rng.integers(1, 14)))
        codes = np.stack([(first * (level + 1) + level) % CODES for level in range(LEVELS)], axis=1).astype(np.uint16)
        piece = vocabulary.media_token_ids("speech", codes).tolist()
        if len(ids) + len(piece) > LENGTH:
            break
        starts.append(len(ids))
        ids += piece
    padded = np.full(LENGTH, vocabulary.pad_id)
    padded[: len(ids)] = ids
    return PackedRow(padded, len(ids), tuple(starts), ((0, len(ids)),))


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Make:
    def make_config(**changes: Any) -> TrainConfig:
        plain = {
            "output": tmp_path / "run",
            "data": data,
            "mixture": data / "mixture.toml",
            "objective": "soundstorm",
            "soundstorm": SIZES,
            "steps": 6,
            "batch_rows": 4,
            "optimizer": {"lr": 1e-2},
            "engine": {"kind": "torch", "dtype": "fp32"},
            "checkpoint": {"every": 3},
            "log": {"every": 1, "tensorboard": False},
        }
        return TrainConfig.model_validate(plain | changes)

    return make_config


def run(config: TrainConfig, limit: int | None = None) -> int:
    return train(make_plan(config, where="test.toml"), limit=limit)


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every figure of every line that is not a time."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


# --- what is hidden


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), position=st.integers(0, 10**12))
def test_one_level_is_asked_for_and_nothing_above_it_is_shown(seed: int, position: int):
    """Level 1 and the prompt are given, levels below the asked one too; the asked one in part, those above not at all."""
    row = toy_row(np.random.default_rng(seed), speech_vocabulary()).token_ids
    masking = Masking(BLOCK, seed)
    is_target, is_hidden = masking.mark(row, position)
    assert not (is_target & ~is_hidden).any(), "a target that is shown is no question"
    spans = masking.spans(row[None], is_target[None])
    assert len(spans) == int((row == BLOCK.start_id).sum())
    covered = np.zeros(LENGTH, np.bool_)
    for span in spans:
        piece = slice(span.start, span.start + span.num_frames * LEVELS)
        target, hidden = is_target[piece].reshape(-1, LEVELS), is_hidden[piece].reshape(-1, LEVELS)
        covered[piece] = True
        assert 1 <= span.level < LEVELS
        assert target.sum() == target[:, span.level].sum() >= 1
        assert not hidden[:, : span.level].any()
        after = int(np.argmax(hidden.any(axis=1)))
        if span.level < LEVELS - 1:
            assert hidden[after:, span.level + 1 :].all(), "levels above are hidden everywhere after the prompt"
        assert not hidden[:after].any()
        assert (hidden[:, span.level] == target[:, span.level]).all()
    assert not is_hidden[~covered].any(), "markers and padding are nobody's question"


def test_masks_depend_on_seed_and_position_alone():
    row = toy_row(np.random.default_rng(0), speech_vocabulary()).token_ids
    one = Masking(BLOCK, 0).mark(row, 5)
    assert all(np.array_equal(a, b) for a, b in zip(one, Masking(BLOCK, 0).mark(row, 5), strict=True))
    assert not np.array_equal(one[1], Masking(BLOCK, 0).mark(row, 6)[1])
    assert not np.array_equal(one[1], Masking(BLOCK, 1).mark(row, 5)[1])


def test_every_level_comes_up_as_often_as_the_others():
    row = toy_row(np.random.default_rng(0), speech_vocabulary()).token_ids
    masking = Masking(BLOCK, 0)
    spans = [span for position in range(200) for span in masking.spans(row[None], masking.mark(row, position)[0][None])]
    counts = np.bincount([span.level for span in spans], minlength=LEVELS)
    assert counts[0] == 0 and counts[1:].min() > 0.8 * counts[1:].mean()


def test_prompts_are_of_every_length_and_shares_follow_the_cosine():
    """Quartiles of a uniform prompt, and of cos(u * pi / 2): a prompt of none or a share of all would learn less."""
    frames, masking = 400, Masking(BLOCK, 0)
    row = speech_vocabulary().media_token_ids("speech", np.zeros((frames, LEVELS), np.uint16))
    prompts, shares = [], []
    for position in range(600):
        is_target, is_hidden = (flags[1:-1].reshape(frames, LEVELS) for flags in masking.mark(row, position))
        if is_target[:, -1].any():
            continue  # only a level above the asked one shows exactly where the prompt ends
        prompt = int(np.argmax(is_hidden[:, -1]))
        prompts.append(prompt / frames)
        shares.append(is_target.sum() / (frames - prompt))
    quarters = np.array([0.25, 0.5, 0.75])
    assert np.quantile(prompts, quarters) == pytest.approx(quarters, abs=0.06)
    assert np.quantile(shares, quarters) == pytest.approx(np.cos((1 - quarters) * np.pi / 2), abs=0.06)


def test_ranks_together_read_what_one_rank_reads(make: Make):
    plan = make_plan(make(), where="test.toml")
    masking = open_objective(plan).masking

    def read(world_size: int) -> list[list[bytes]]:
        """The marks of every row of a step, whichever rank reads it."""
        steps: list[list[bytes]] = [[] for _ in range(3)]
        for rank in range(world_size):
            with RowStream(
                plan.mixture, plan.datasets, batch_rows=4, attention="row", masking=masking, rank=rank,
                world_size=world_size,
            ) as stream:  # fmt: skip
                for step in steps:
                    batch = stream.next()
                    assert batch.is_hidden is not None
                    marks = zip(batch.token_ids, batch.is_target, batch.is_hidden, strict=True)
                    step += [ids.tobytes() + targets.tobytes() + hidden.tobytes() for ids, targets, hidden in marks]
        return [sorted(step) for step in steps]

    assert read(1) == read(2) == read(4)
    assert len({row for step in read(1) for row in step}) > 1


# --- what is computed


def first_batch(config: TrainConfig) -> tuple[Any, Any, Any]:
    plan = make_plan(config, where="test.toml")
    objective = open_objective(plan)
    with RowStream(
        plan.mixture, plan.datasets, batch_rows=config.batch_rows, attention="row", masking=objective.masking
    ) as stream:
        return plan, objective, stream.next()


def test_the_loss_is_that_of_each_piece_alone(make: Make):
    """Groups, padding and flat rows change nothing: piece by piece through the network gives the same losses."""
    plan, objective, batch = first_batch(make())
    model = objective.build().eval()
    (micro,) = micro_batches(batch, 4, torch.device("cpu"), masking=objective.masking)
    with torch.no_grad():
        total, losses = model(micro)
    expected: list[float] = []
    for span in objective.masking.spans(batch.token_ids, batch.is_target):
        piece = slice(span.start, span.start + span.num_frames * LEVELS)
        ids = torch.from_numpy(batch.token_ids.reshape(-1)[piece].astype(np.int64)).reshape(-1, LEVELS)
        codes = ids - BLOCK.first_id - CODES * torch.arange(LEVELS)
        hidden = torch.from_numpy(batch.is_hidden.reshape(-1)[piece].copy()).reshape(-1, LEVELS)
        shown = codes.masked_fill(hidden, plan.config.soundstorm.mask_id)
        with torch.no_grad():
            logits = model.network(codes[None, :, 0], shown[None, :, 1:])[0, :, span.level - 1]
        asked = hidden[:, span.level]
        expected += torch.nn.functional.cross_entropy(
            logits[asked], codes[asked, span.level], reduction="none"
        ).tolist()
    assert len(losses) == batch.num_targets == int((micro.labels != IGNORED).sum())
    assert np.allclose(losses.numpy(), expected, atol=1e-4)
    assert float(total) == pytest.approx(sum(expected), rel=1e-4)


def test_it_learns_what_follows_from_the_first_level(make: Make):
    """Levels 2 to 4 are functions of level 1: the loss falls far below chance."""
    config = make(steps=80, log={"every": 5, "tensorboard": False}, checkpoint={"every": 80})
    run(config)
    lines = read_metrics(config.output / "metrics.jsonl")
    assert lines[0]["loss"] > 0.6 * np.log(CODES)
    assert lines[-1]["loss"] < 0.25 * np.log(CODES)
    assert set(lines[-1]["loss_by_modality"]) == {"level2", "level3", "level4"}


def test_a_run_that_is_stopped_and_continued_has_the_losses_of_one_that_is_not(make: Make, tmp_path: Path):
    run(make(output=tmp_path / "whole"))
    run(make(output=tmp_path / "parts"), limit=3)
    run(make(output=tmp_path / "parts"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_micro_batches_change_the_losses_by_rounding_only(make: Make, tmp_path: Path):
    run(make(output=tmp_path / "whole"))
    run(make(output=tmp_path / "small", engine={"kind": "torch", "dtype": "fp32", "micro_batch_rows": 1}))
    for one, other in zip(curve(tmp_path / "whole"), curve(tmp_path / "small"), strict=True):
        assert one["targets"] == other["targets"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_deepspeed_and_torch_have_the_same_losses(make: Make, tmp_path: Path):
    run(make(output=tmp_path / "torch"))
    run(make(output=tmp_path / "deepspeed", engine={"kind": "deepspeed", "zero": 1, "dtype": "fp32"}))
    for one, other in zip(curve(tmp_path / "torch"), curve(tmp_path / "deepspeed"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_export_is_a_published_checkpoint_with_the_trained_weights(make: Make):
    config = make()
    run(config)
    plan = make_plan(config, where="test.toml")
    assert is_finished(plan)
    network = load_network(plan.final / "soundstorm.safetensors")
    assert network.config.model_dump() == SoundStormConfig(**SIZES).model_dump()
    checkpoint = newest_checkpoint(plan.checkpoints)
    assert checkpoint is not None
    trained = {name.removeprefix("network."): array for name, array in read_optimizer_state(checkpoint).master.items()}
    same = SoundStorm(SoundStormConfig(**SIZES)).eval()
    same.load_state_dict({name: torch.from_numpy(array) for name, array in trained.items()})
    semantic = torch.arange(5)[None] % CODES
    codes = torch.full((1, 5, LEVELS - 1), CODES)
    with torch.no_grad():
        assert torch.allclose(network(semantic, codes), same(semantic, codes), atol=1e-6)


# --- what is refused


def test_data_of_a_language_model_is_refused_by_name(make: Make):
    with pytest.raises(ConfigError, match="expected data of one medium with 8 levels"):
        make_plan(make(soundstorm={**SIZES, "num_quantizers": 7}), where="test.toml")


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"kind": "deepspeed", "zero": 3}},
        {"engine": {"kind": "torch", "activation_checkpointing": True}},
        {"init": {"from": "somewhere"}},
    ],
)
def test_what_the_objective_cannot_do_is_refused(make: Make, changes: dict[str, Any]):
    with pytest.raises(ValueError, match="objective 'soundstorm'"):
        make(**changes)


def test_another_seed_is_another_run(make: Make):
    run(make(), limit=3)
    with pytest.raises(FingerprintMismatch):
        run(make(seed=1))


def test_the_plan_is_told_and_the_command_trains(make: Make, data: Path, tmp_path: Path, capsys):
    assert SoundStormConfig().num_parameters == 351_378_432
    config = make()
    plan = make_plan(config, where="test.toml")
    model = SoundStorm(config.soundstorm)
    assert config.soundstorm.num_parameters == sum(one.numel() for one in model.parameters())
    assert f"{config.soundstorm.num_parameters:,}" in describe(plan)
    sizes = "\n".join(f"{key} = {value}" for key, value in SIZES.items())
    path = tmp_path / "soundstorm.toml"
    path.write_text(
        f'output = "{tmp_path / "cli"}"\ndata = "{data}"\nmixture = "{data / "mixture.toml"}"\n'
        f'objective = "soundstorm"\nsteps = 2\nbatch_rows = 2\n[soundstorm]\n{sizes}\n'
        '[engine]\nkind = "torch"\ndtype = "fp32"\n[log]\ntensorboard = false\n',
        encoding="utf-8",
    )
    assert main([str(path), "--dry-run"]) == 0
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "cli" / "checkpoints" / "final" / "config.json").read_text())["dim"] == 32


def test_the_shipped_configs_fit_each_other(repository: Path):
    """Vocabulary, packing and training of both sizes agree on levels and codes, and every row holds whole frames."""
    from configs.load import load_config
    from pipeline.vocabularies import load_vocabulary
    from tokenize_jobs.packing_config import PackingConfig, load_language

    vocabulary = load_vocabulary(repository / "configs" / "vocabulary" / "soundstorm.toml")
    block = vocabulary.block("speech")
    for name in ("tiny", "mls"):
        config = load_config(repository / "configs" / "train" / f"soundstorm-{name}.toml", TrainConfig)
        assert (block.levels, block.codebook_size) == (
            config.soundstorm.num_quantizers + 1,
            config.soundstorm.codebook_size,
        )
        packing = load_config(repository / "configs" / "packing" / f"soundstorm-{name}.toml", PackingConfig)
        packing = packing.model_copy(update={"vocabulary": repository / packing.vocabulary})
        assert load_language(packing).vocabulary.fingerprint == vocabulary.fingerprint
        assert packing.long_documents == "reject"


def test_speech_kept_apart_is_measured_by_level_and_what_fills_a_pass_does_not_count(
    make: Make, data: Path, tmp_path: Path
):
    """Five rows in passes of four, and in passes of one."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    shutil.copytree(data / "speech", root / "speech-validation")
    found = []
    for rows in (4, 1):
        engine = {"kind": "torch", "dtype": "fp32", "micro_batch_rows": rows}
        config = make(
            data=root, steps=2, output=tmp_path / str(rows), engine=engine, validation={"every": 1, "rows": 5}
        )
        run(config)
        found.append(read_metrics(config.output / "metrics.jsonl", kind="validation"))
    for padded, exact in zip(*found, strict=True):
        assert padded["targets"] == exact["targets"] and len(exact["targets"]) > 1
        assert padded["loss_by_modality"] == pytest.approx(exact["loss_by_modality"], abs=1e-4)
