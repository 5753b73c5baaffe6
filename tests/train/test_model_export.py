"""Exported models: what others load computes what was trained, from an engine's weights or from those on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from shards.vocabulary import Vocabulary
from train.backbone import Backbone, build_backbone, parameters_by_name
from train.checkpoint import publish_folder
from train.config import TrainConfig
from train.model_export import export_model
from train.plan import Plan, make_plan
from train.weight_files import WeightFiles, write_weights

Make = Callable[..., TrainConfig]
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}


def exported(backbone: Backbone, plan: Plan, folder: Path, *, max_shard_bytes: int = 1 << 30) -> LlamaForCausalLM:
    weights = {name: weight.detach().float().numpy() for name, weight in parameters_by_name(backbone).items()}
    publish_folder(folder, lambda inner: export_model(weights, plan, inner, max_shard_bytes=max_shard_bytes))
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


def logits_of(model: LlamaForCausalLM, dtype: torch.dtype) -> torch.Tensor:
    for parameter in model.parameters():  # not `.to(dtype)`, which would round the rotary frequencies as well
        parameter.data = parameter.data.to(dtype)
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(
    ("tied", "dtype", "shard_bytes"), [(False, "fp32", 1 << 30), (True, "fp32", 9000), (False, "bf16", 9000)]
)
def test_an_exported_model_loads_elsewhere_and_says_the_same(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, tied: bool, dtype: str, shard_bytes: int
):
    config = make_config(model=TINY | {"tie_embeddings": tied}, engine={"kind": "torch", "dtype": dtype})
    plan = make_plan(config, where="test.toml")
    backbone = build_backbone(plan)
    loaded = exported(backbone, plan, tmp_path / "final", max_shard_bytes=shard_bytes)
    assert loaded.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert loaded.config.use_cache and not backbone.causal.config.use_cache
    assert loaded.config.vocab_size == vocabulary.size
    special = loaded.generation_config
    assert (special.bos_token_id, special.eos_token_id, special.pad_token_id) == (1, 2, 0)
    torch.testing.assert_close(
        logits_of(loaded, loaded.dtype), logits_of(backbone.causal, loaded.dtype), rtol=0, atol=0
    )
    assert (tmp_path / "final" / "vocabulary.json").is_file()
    assert (tmp_path / "final" / "model.safetensors.index.json").is_file() == (shard_bytes == 9000)


@pytest.mark.parametrize("start", ["anew", "folder with rows of its own"])
def test_rows_that_pad_the_vocabulary_are_not_exported(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, start: str
):
    """No decoder can draw an id that means nothing."""
    init = {}
    if start != "anew":
        base = build_backbone(make_plan(make_config(), where="test.toml")).causal
        base.resize_token_embeddings(vocabulary.size + 7)
        base.save_pretrained(tmp_path / "base")
        init = {"from": tmp_path / "base"}
    plan = make_plan(make_config(init=init, model=TINY | {"pad_vocabulary_to": 100}), where="test.toml")
    backbone = build_backbone(plan)
    assert backbone.causal.lm_head.weight.shape[0] == 200
    loaded = exported(backbone, plan, tmp_path / "final")
    assert loaded.config.vocab_size == len(loaded.lm_head.weight) == vocabulary.size
    expected = logits_of(backbone.causal, torch.float32)[..., : vocabulary.size]
    torch.testing.assert_close(logits_of(loaded, torch.float32), expected, rtol=0, atol=1e-6)


def test_an_exported_model_is_the_start_of_another_run(make_config: Make, tmp_path: Path):
    """Pretraining, then instruction tuning: the folder's weights arrive as they were written."""
    plan = make_plan(make_config(), where="test.toml")
    backbone = build_backbone(plan)
    exported(backbone, plan, tmp_path / "final", max_shard_bytes=9000)
    again = build_backbone(make_plan(make_config(init={"from": tmp_path / "final"}, seed=5), where="test.toml"))
    for (name, one), (other_name, other) in zip(backbone.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name and (one == other).all()


@pytest.mark.parametrize("max_bytes", [1, 100, 170, 1 << 20])
def test_shards_hold_every_tensor_once_and_no_shard_too_many(tmp_path: Path, max_bytes: int):
    tensors = {f"t{n}": torch.full((n, 5), float(n)) for n in (1, 4, 2, 2, 3, 6)}
    paths = write_weights(iter(tensors.items()), tmp_path, max_bytes=max_bytes)
    assert sorted(paths) == sorted(tmp_path.glob("*.safetensors"))
    found = WeightFiles(tmp_path)
    assert dict(found).keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name] == tensor).all()
    if max_bytes == 1:
        assert len(paths) == len(tensors)
    index = tmp_path / "model.safetensors.index.json"
    if len(paths) > 1:
        data = json.loads(index.read_text(encoding="utf-8"))
        assert data["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        sizes = [sum(tensors[n].nbytes for n, f in data["weight_map"].items() if f == path.name) for path in paths]
        assert all(size <= max(max_bytes, *(t.nbytes for t in tensors.values())) for size in sizes)
    else:
        assert not index.exists()


def test_weights_are_taken_one_at_a_time(make_config: Make, tmp_path: Path):
    """A checkpoint's tensors stay on disk until they are written: `export_model` asks for each name once."""
    plan = make_plan(make_config(), where="test.toml")
    backbone = build_backbone(plan)
    asked: list[str] = []

    class OnDisk(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            asked.append(name)
            return super().__getitem__(name)

    weights = OnDisk({name: w.detach().numpy() for name, w in parameters_by_name(backbone).items()})
    tmp_path.joinpath("out").mkdir()
    export_model(weights, plan, tmp_path / "out")
    assert sorted(asked) == sorted(weights)
