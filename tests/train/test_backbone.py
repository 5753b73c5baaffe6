"""The backbone: documents of a row apart, weights by the seed, vocabularies that grow, folders others can load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from shards.vocabulary import Vocabulary
from train.backbone import Backbone, build_backbone, export, parameters_by_name
from train.checkpoint import publish_folder
from train.collate import IGNORED, document_positions
from train.config import TrainConfig
from train.loss import full_cross_entropy
from train.plan import make_plan

Make = Callable[..., TrainConfig]
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
LENGTHS = (11, 1, 25, 8, 19)


def build(config: TrainConfig) -> Backbone:
    return build_backbone(make_plan(config, where="test.toml"))


def hidden_states(backbone: Backbone, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """What the backbone's own forward pass hands to the head."""
    seen: list[torch.Tensor] = []
    hook = backbone.head_loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    labels = ids.masked_fill(torch.arange(ids.shape[1]) == 0, IGNORED)
    backbone(ids, labels, positions)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_documents_packed_into_a_row_are_computed_as_if_they_were_alone(make_config: Make, checkpointing: bool):
    """Positions that start again keep documents apart: with and without the activation checkpointing that, in
    transformers, decides whether the cache is used and with it whether the positions are looked at."""
    backbone = build(make_config(engine={"activation_checkpointing": checkpointing}))
    with torch.no_grad():  # weights of a fresh model are so small that attention hardly matters
        for name, weight in backbone.causal.named_parameters():
            if "norm" not in name:
                weight.mul_(10)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (2, sum(LENGTHS)), generator=generator)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    positions = torch.from_numpy(document_positions(starts.astype(np.int32), sum(LENGTHS))).long().expand(2, -1)
    packed = hidden_states(backbone, ids, positions)
    alone = torch.cat(
        [hidden_states(backbone, ids[:, a : a + n], None) for a, n in zip(starts, LENGTHS, strict=True)], dim=1
    )
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    together = hidden_states(backbone, ids, None)
    assert (together - alone).abs().max() > 0.1, "attention = row should let documents see each other"


def test_the_silent_traps_are_refused(make_config: Make):
    """A cache, or attention code that ignores positions, would let documents see each other without a word."""
    causal = build(make_config()).causal
    causal.config.use_cache = True
    with pytest.raises(ValueError, match="expected use_cache=False and sdpa"):
        Backbone(causal, num_ids=10, head_chunk=1)


def test_equal_plans_give_equal_weights_and_leave_the_global_generator_alone(make_config: Make):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, second, other = (build(make_config(seed=seed)) for seed in (0, 0, 1))
    assert (torch.random.get_rng_state() == before).all()
    one, two, three = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other))
    assert (one == two).all() and (one != three).any()


@pytest.mark.parametrize("tied", [False, True])
def test_the_plan_counts_the_parameters_there_are(make_config: Make, tied: bool):
    plan = make_plan(make_config(model=TINY | {"tie_embeddings": tied, "num_key_value_heads": 1}), where="test.toml")
    backbone = build_backbone(plan)
    assert sum(p.numel() for p in backbone.parameters()) == plan.shape.num_parameters
    shared = backbone.causal.lm_head.weight is backbone.causal.model.embed_tokens.weight
    assert shared == tied and backbone.head_loss.weight is backbone.causal.lm_head.weight


def test_the_loss_is_that_of_the_model_s_own_logits(make_config: Make):
    backbone = build(make_config())
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(ids % 3 == 0, IGNORED)
    loss, losses = backbone(ids, labels, None)
    logits = backbone.causal(input_ids=ids, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(losses) == (labels[:, 1:] != IGNORED).sum()
    hidden = backbone.causal.model(input_ids=ids, use_cache=False).last_hidden_state
    assert full_cross_entropy(hidden, backbone.causal.lm_head.weight, labels).item() == pytest.approx(loss.item())


@pytest.mark.parametrize(("tied", "dtype"), [(False, "fp32"), (True, "fp32"), (False, "bf16")])
def test_an_exported_model_loads_elsewhere_and_says_the_same(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, tied: bool, dtype: str
):
    config = make_config(model=TINY | {"tie_embeddings": tied}, engine={"kind": "torch", "dtype": dtype})
    plan = make_plan(config, where="test.toml")
    backbone = build_backbone(plan)
    weights = {name: p.detach().numpy() for name, p in parameters_by_name(backbone).items()}
    publish_folder(tmp_path / "final", lambda folder: export(backbone, weights, plan, folder))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final", local_files_only=True)
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert loaded.config.use_cache and not backbone.causal.config.use_cache
    assert loaded.generation_config.eos_token_id == vocabulary.eos_id
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    for parameter in backbone.parameters():  # not `.to(dtype)`, which would round the rotary frequencies as well
        parameter.data = parameter.data.to(loaded.dtype)
    ours = backbone.causal(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, ours, rtol=0, atol=0)
    assert (tmp_path / "final" / "vocabulary.json").is_file()


@pytest.mark.parametrize("mode", ["random", "mean"])
def test_a_smaller_vocabulary_grows_and_keeps_its_rows(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, mode: str
):
    """What happens to LLaMA-2's 32,000 rows; the new ones begin as in the paper, or near the mean."""
    base = build(make_config()).causal
    base.resize_token_embeddings(vocabulary.text_size)
    base.save_pretrained(tmp_path / "text-only")
    grown = build(make_config(init={"from": tmp_path / "text-only", "new_embeddings": mode})).causal
    for old, new in ((base.model.embed_tokens, grown.model.embed_tokens), (base.lm_head, grown.lm_head)):
        assert new.weight.shape[0] == vocabulary.size
        assert (new.weight[: vocabulary.text_size] == old.weight).all()
        spread = new.weight[vocabulary.text_size :].std().item()
        assert 0.015 < spread < 0.025 if mode == "random" else spread < 0.015
