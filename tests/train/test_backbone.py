"""The backbone: documents of a row apart, weights by the seed, vocabularies that grow, folders others can load."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.attention import lay_out_documents
from train.backbone import Backbone, build_backbone
from train.collate import IGNORED, HostBatch, MicroBatch, document_positions, micro_batches
from train.config import TrainConfig
from train.loss import full_cross_entropy
from train.plan import make_plan

Make = Callable[..., TrainConfig]
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
PACKINGS = ((11, 1, 25, 8, 19), (40, 2, 22))


def build(config: TrainConfig) -> Backbone:
    return build_backbone(make_plan(config, where="test.toml"))


def batch_of(ids: torch.Tensor, positions: np.ndarray | None = None) -> MicroBatch:
    """A micro-batch that predicts every id it can, made as the trainer makes it."""
    is_target = np.ones(ids.shape, np.bool_)
    is_target[:, 0] = False
    host = HostBatch(ids.numpy(), is_target, positions, np.zeros(len(ids), np.int64))
    return next(micro_batches(host, len(ids), ids.device))


def hidden_states(backbone: Backbone, batch: MicroBatch) -> torch.Tensor:
    """What the backbone's own forward pass hands to the head."""
    seen: list[torch.Tensor] = []
    hook = backbone.head_loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(batch)
    hook.remove()
    return seen[0]


def positions_of(packings: Sequence[Sequence[int]]) -> np.ndarray:
    """(rows, length) position ids of rows that hold documents of these lengths."""
    starts = [np.cumsum([0, *lengths[:-1]]).astype(np.int32) for lengths in packings]
    return np.stack([document_positions(s, sum(n)) for s, n in zip(starts, packings, strict=True)])


def strengthen(backbone: Backbone) -> Backbone:
    """Weights of a fresh model are so small that attention hardly matters; make it matter."""
    with torch.no_grad():
        for name, weight in backbone.causal.named_parameters():
            if "norm" not in name:
                weight.mul_(10)
    return backbone


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("key_value_heads", [2, 1])
def test_documents_packed_into_a_row_are_computed_as_if_they_were_alone(
    make_config: Make, checkpointing: bool, key_value_heads: int
):
    """Two rows with different packings, one document of a single id; values and gradients."""
    engine = {"activation_checkpointing": checkpointing}
    backbone = strengthen(build(make_config(engine=engine, model=TINY | {"num_key_value_heads": key_value_heads})))
    ids = torch.randint(3, 60, (2, 64), generator=torch.Generator().manual_seed(1))
    packed = hidden_states(backbone, batch_of(ids, positions_of(PACKINGS)))
    alone = torch.cat([_alone(backbone, row, lengths) for row, lengths in zip(ids, PACKINGS, strict=True)])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    weights = [weight for name, weight in backbone.named_parameters() if "head" not in name]
    probe = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2))
    left, right = (torch.autograd.grad((h * probe).sum(), weights) for h in (packed, alone))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    together = hidden_states(backbone, batch_of(ids))
    assert (together - alone).abs().max() > 0.1, "attention = row should let documents see each other"


def _alone(backbone: Backbone, row: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    documents = torch.split(row, list(lengths))
    return torch.cat([hidden_states(backbone, batch_of(ids[None])) for ids in documents], dim=1)


def test_document_attention_is_that_of_a_block_diagonal_mask(make_config: Make):
    """The same numbers as transformers' own code, where that notices that rows are packed."""
    backbone = strengthen(build(make_config()))
    ids = torch.randint(3, 60, (2, 64), generator=torch.Generator().manual_seed(1))
    positions = positions_of(PACKINGS)
    ours = hidden_states(backbone, batch_of(ids, positions))
    backbone.causal.config._attn_implementation = "sdpa"
    theirs = backbone.causal.model(input_ids=ids, position_ids=torch.from_numpy(positions).long(), use_cache=False)
    torch.testing.assert_close(ours, theirs.last_hidden_state, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_every_id_has_a_slot_and_few_slots_are_padding(lengths: list[int]):
    starts, total = np.cumsum([0, *lengths[:-1]]), sum(lengths)
    layout = lay_out_documents(starts, total, torch.device("cpu"))
    assert (layout.id_of_slot[layout.slot_of_id] == torch.arange(total)).all()
    assert sum(count * padded for count, padded in layout.buckets) == len(layout.id_of_slot)
    assert (layout.id_of_slot < total).sum() == total
    assert len(layout.id_of_slot) <= sum(max(n + 7, n * 9 / 8 + 1) for n in lengths)


def test_the_silent_traps_are_refused(make_config: Make):
    """A cache, a mask, or attention code of its own would let documents see each other without a word."""
    backbone = build(make_config())
    with pytest.raises(ValueError, match="expected no attention mask"):
        backbone.causal.model(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 1, 4, 4))
    backbone.causal.config.use_cache = True
    with pytest.raises(ValueError, match="expected use_cache=False and anygpt_documents attention, found True"):
        Backbone(backbone.causal, num_ids=10, head_chunk=1)


def test_equal_plans_give_equal_weights_and_leave_the_global_generator_alone(make_config: Make):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, second, other = (build(make_config(seed=seed)) for seed in (0, 0, 1))
    assert (torch.random.get_rng_state() == before).all()
    one, two, three = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other))
    assert (one == two).all() and (one != three).any()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [1, 50])
def test_the_plan_counts_the_parameters_there_are(make_config: Make, tied: bool, multiple: int):
    model = TINY | {"tie_embeddings": tied, "num_key_value_heads": 1, "pad_vocabulary_to": multiple}
    plan = make_plan(make_config(model=model), where="test.toml")
    backbone = build_backbone(plan)
    assert sum(p.numel() for p in backbone.parameters()) == plan.shape.num_parameters
    shared = backbone.causal.lm_head.weight is backbone.causal.model.embed_tokens.weight
    assert shared == tied and backbone.head_loss.weight is backbone.causal.lm_head.weight


def test_the_loss_is_that_of_the_model_s_own_logits(make_config: Make):
    backbone = build(make_config())
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(ids % 3 == 0, IGNORED)
    loss, losses = backbone(MicroBatch(ids, labels, None, torch.zeros(2), None))
    logits = backbone.causal(input_ids=ids, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(losses) == (labels[:, 1:] != IGNORED).sum()
    hidden = backbone.causal.model(input_ids=ids, use_cache=False).last_hidden_state
    assert full_cross_entropy(hidden, backbone.causal.lm_head.weight, labels).item() == pytest.approx(loss.item())
