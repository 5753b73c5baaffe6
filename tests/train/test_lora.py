"""Adapters: only they are trained and saved, and what is exported computes what was trained.

The library peft is an extra; all but the first test need it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from shards.errors import CheckpointError, ConfigError
from shards.vocabulary import Vocabulary
from train.backbone import build_backbone, parameters_by_name
from train.collate import MicroBatch
from train.config import LoraConfig, TrainConfig
from train.engine import Engine, Processes, make_engine
from train.engine_state import whole_state
from train.lora import AdaptedBackbone
from train.model_export import export_model
from train.plan import Plan, make_plan

Make = Callable[..., TrainConfig]
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: pip install 'anygpt-data[lora]'")


@pytest.fixture
def base(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    return write_base(tmp_path / "base", vocabulary.size)


def write_base(folder: Path, rows: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        LlamaForCausalLM(LlamaConfig(vocab_size=rows, initializer_range=0.2, **sizes)).save_pretrained(folder)
    return folder


def plan_of(make_config: Make, base: Path, **changes: Any) -> Plan:
    lora = LORA | changes.pop("lora", {})
    return make_plan(make_config(init={"from": base}, lora=lora, **changes), where="test.toml")


def a_batch() -> MicroBatch:
    ids = torch.randint(3, 120, (4, 40), generator=torch.Generator().manual_seed(0))
    return MicroBatch(ids, ids, None, torch.zeros(4), None)


def train_steps(plan: Plan, steps: int) -> tuple[AdaptedBackbone, Engine, list[float]]:
    """A few updates on one batch; the model, its engine and the losses."""
    backbone = build_backbone(plan)
    assert isinstance(backbone, AdaptedBackbone)
    engine = make_engine(backbone, plan.config, Processes(0, 1, 0, 1, torch.device("cpu")), micro_batch_rows=4)
    losses: list[float] = []
    for _ in range(steps):
        loss, _each = engine.forward(a_batch())
        engine.backward(loss / 156, last=True)
        engine.step(1e-2)
        losses.append(loss.item())
    return backbone, engine, losses


def trained_weights(backbone: AdaptedBackbone) -> dict[str, Any]:
    return {name: weight.detach().float().numpy() for name, weight in parameters_by_name(backbone).items()}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=a_batch().input_ids, use_cache=False).logits


def test_without_peft_the_message_says_how_to_get_it(make_config: Make, base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"expected the library peft.*pip install 'anygpt-data\[lora\]'"):
        build_backbone(plan_of(make_config, base))


def test_adapters_without_a_model_below_are_refused(make_config: Make):
    with pytest.raises(ValidationError, match=r"expected init\.from, a language model, with \[lora\]"):
        make_config(lora={})


@pytest.mark.parametrize("embeddings", [False, True])
def test_only_adapters_are_trained_and_saved(peft: Any, make_config: Make, base: Path, embeddings: bool):
    plan = plan_of(make_config, base, lora={"train_embeddings": embeddings})
    backbone, engine, losses = train_steps(plan, 6)
    assert losses[-1] < losses[0] - 1
    state = whole_state(engine.export_state())
    whole = {"causal.model.embed_tokens.weight", "causal.lm_head.weight"}
    assert {name for name in state.master if "lora" not in name} == (whole if embeddings else set())
    assert len(state.master) == 2 * 2 * 3 + 2 * embeddings
    assert state.master.keys() == state.exp_avg.keys() == parameters_by_name(backbone).keys()
    before = LlamaForCausalLM.from_pretrained(base).state_dict()
    for name, weight in backbone.causal.named_parameters():
        if "lora" not in name and not (embeddings and f"causal.{name}" in whole):
            assert (weight == before[name.replace(".base_layer", "")]).all(), f"{name} moved"


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_merged_export_computes_what_was_trained(
    peft: Any, make_config: Make, base: Path, tmp_path: Path, embeddings: bool
):
    """From the adapter's weights and the folder alone, as from a checkpoint on disk."""
    plan = plan_of(make_config, base, lora={"train_embeddings": embeddings})
    backbone, _, _ = train_steps(plan, 4)
    (tmp_path / "out").mkdir()
    export_model(trained_weights(backbone), plan, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    expected = logits_of(backbone.causal)
    torch.testing.assert_close(logits_of(loaded), expected, rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    assert (logits_of(plain) - expected).abs().max() > 0.1, "training should have changed something"


@pytest.mark.parametrize("embeddings", [False, True])
def test_an_exported_adapter_is_one_peft_loads(
    peft: Any, make_config: Make, base: Path, tmp_path: Path, embeddings: bool
):
    plan = plan_of(make_config, base, lora={"train_embeddings": embeddings, "export": "adapter"})
    backbone, _, _ = train_steps(plan, 4)
    (tmp_path / "out").mkdir()
    export_model(trained_weights(backbone), plan, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    below = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    loaded = peft.PeftModel.from_pretrained(below, str(tmp_path / "out"))
    torch.testing.assert_close(logits_of(loaded), logits_of(backbone.causal), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, str(base))


def test_adapters_begin_as_nothing_and_by_the_seed(peft: Any, make_config: Make, base: Path):
    state = torch.random.get_rng_state()
    one, same, other = (build_backbone(plan_of(make_config, base, seed=seed)) for seed in (0, 0, 1))
    assert (torch.random.get_rng_state() == state).all()
    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    assert (logits_of(one.causal) == logits_of(plain)).all()
    weights = [torch.cat([p.flatten() for p in parameters_by_name(m).values()]) for m in (one, same, other)]
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()


def test_a_state_is_taken_up_again_and_a_whole_model_s_is_not(peft: Any, make_config: Make, base: Path):
    """Four steps, and two plus two, are the same; a run of all weights does not take an adapter's checkpoint."""
    plan = plan_of(make_config, base, lora={"dropout": 0.3})
    straight, _, losses = train_steps(plan, 4)
    _, engine, first = train_steps(plan, 2)
    state = whole_state(engine.export_state())
    resumed, again, _ = train_steps(plan, 0)
    again.import_state(state)
    torch.manual_seed(99)  # what was drawn before must not matter
    for _ in range(2):
        loss, _each = again.forward(a_batch())
        again.backward(loss / 156, last=True)
        again.step(1e-2)
        first.append(loss.item())
    assert first == losses
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert (one == other).all()
    full = make_plan(make_config(init={"from": base}), where="test.toml")
    whole = make_engine(
        build_backbone(full), full.config, Processes(0, 1, 0, 1, torch.device("cpu")), micro_batch_rows=4
    )
    with pytest.raises(CheckpointError):
        whole.import_state(state)


def test_dropout_depends_on_the_rows_and_ends_with_training(peft: Any, make_config: Make, base: Path):
    backbone = build_backbone(plan_of(make_config, base, lora={"dropout": 0.5}))
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    losses = [backbone(a_batch())[0].item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert backbone.eval()(a_batch())[0].item() != losses[0]


def test_computing_activations_again_draws_the_same_dropout(peft: Any, make_config: Make, base: Path):
    """Frozen weights below and a second forward pass: neither loses a gradient nor draws anew."""
    curves = []
    for again in (False, True):
        engine = {"kind": "torch", "dtype": "fp32", "head_chunk": 50, "activation_checkpointing": again}
        curves.append(train_steps(plan_of(make_config, base, engine=engine, lora={"dropout": 0.3}), 4)[2])
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
    assert curves[0][-1] < curves[0][0]


def test_new_rows_that_would_stay_random_are_refused(
    peft: Any, make_config: Make, tmp_path: Path, vocabulary: Vocabulary
):
    text_only = write_base(tmp_path / "text", vocabulary.text_size)
    with pytest.raises(ConfigError, match=r"key 'lora\.train_embeddings': expected true"):
        build_backbone(plan_of(make_config, text_only))
    grown = build_backbone(plan_of(make_config, text_only, lora={"train_embeddings": True}))
    assert grown.causal.lm_head.weight.requires_grad


def test_a_target_that_names_no_layer_is_refused(peft: Any, make_config: Make, base: Path):
    with pytest.raises(ConfigError, match=r"key 'lora\.targets': expected some of .*found 'query'"):
        build_backbone(plan_of(make_config, base, lora={"targets": ["q_proj", "query"]}))


def test_the_defaults_put_an_adapter_on_every_layer(peft: Any, make_config: Make, base: Path):
    """As in the paper's follow-ups: all linear layers, and none on the head."""
    backbone = build_backbone(make_plan(make_config(init={"from": base}, lora={}), where="test.toml"))
    assert len(parameters_by_name(backbone)) == 2 * len(LoraConfig().targets) * 2


@pytest.mark.parametrize("zero", [2, 3])
def test_deepspeed_trains_adapters_alone(peft: Any, make_config: Make, base: Path, zero: int):
    """The same losses as the plain engine."""
    plain = train_steps(plan_of(make_config, base), 3)[2]
    engine = {"kind": "deepspeed", "zero": zero, "dtype": "fp32", "head_chunk": 50}
    changes: dict[str, Any] = {"engine": engine, "batch_rows": 4}
    backbone, deepspeed, losses = train_steps(plan_of(make_config, base, **changes), 3)
    assert losses == pytest.approx(plain, rel=1e-5)
    state = whole_state(deepspeed.export_state())
    assert state.master.keys() == parameters_by_name(backbone).keys()
