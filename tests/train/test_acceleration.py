"""Kernels, recomputation and compilation: other ways to the same numbers, and refusals where they cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from train import attention_kernels
from train.acceleration import accelerate, checkpointed_layers
from train.attention import attend, lay_out_documents, set_kernel
from train.attention_kernels import check_kernel, choose_kernel, varlen_kernel
from train.backbone import Backbone, build_backbone
from train.collate import MicroBatch
from train.config import EngineConfig, TrainConfig
from train.document_layout import DocumentLayout
from train.plan import make_plan

Make = Callable[..., TrainConfig]
CPU = torch.device("cpu")
PACKINGS = [37, 5, 1, 90, 60], [100, 93]


def build(config: TrainConfig) -> Backbone:
    return build_backbone(make_plan(config, where="test.toml"))


def layout_of(packings: Sequence[Sequence[int]]) -> DocumentLayout:
    """Documents of rows, one row after the other."""
    lengths = [length for row in packings for length in row]
    return lay_out_documents(np.cumsum([0, *lengths[:-1]]), sum(lengths), CPU)


def inputs(rows: int, length: int, heads: int = 2, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, heads, length, size, generator=generator) for _ in range(3)]


def micro_batch(ids: torch.Tensor, packings: Sequence[Sequence[int]]) -> MicroBatch:
    positions = torch.cat([torch.arange(length) for row in packings for length in row]).view(ids.shape)
    return MicroBatch(ids, ids, positions, torch.zeros(len(ids), dtype=torch.long), layout_of(packings))


@pytest.mark.parametrize("rows", [1, 2])
def test_kernels_for_flat_sequences_and_buckets_are_one_attention(rows: int, monkeypatch: pytest.MonkeyPatch):
    """Flex on a CPU (forward only there); and, through the seam of the flash kernels, a loop over documents."""
    query, key, value = inputs(rows, 193)
    documents, module = layout_of(PACKINGS[:rows]), torch.nn.Module()
    results = {}
    for kernel in ("buckets", "flex", "varlen"):
        module.document_kernel = kernel
        if kernel == "varlen":
            monkeypatch.setattr(attention_kernels, "_torch_varlen", attention_kernels._one_by_one)
        results[kernel], _ = attend(module, query, key, value, None, scaling=0.3, documents=documents)
    assert results["buckets"].shape == (rows, 193, 2, 16)
    torch.testing.assert_close(results["flex"], results["buckets"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["varlen"], results["buckets"], rtol=1e-5, atol=1e-5)
    apart, _ = attend(torch.nn.Module(), query, key, value, None, scaling=0.3)
    assert (apart - results["buckets"]).abs().max() > 0.1, "without documents a row is one"


def test_a_kernel_that_does_not_keep_documents_apart_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Looked at on the device before a run; here with flex, which is right, and with one that takes a row for a document."""

    def whole_row(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: DocumentLayout, scaling: float
    ) -> torch.Tensor:
        one = lay_out_documents(np.array([0]), int(documents.offsets[-1]), CPU)
        return attention_kernels._one_by_one(query, key, value, one, scaling)

    check_kernel("flex", device=CPU, dtype=torch.float32, head_size=16)
    monkeypatch.setattr(attention_kernels, "_torch_varlen", whole_row)
    with pytest.raises(ConfigError, match="expected 'varlen' to compute documents as if they were alone"):
        check_kernel("varlen", device=CPU, dtype=torch.float32, head_size=16)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_offsets_begin_and_end_every_document(lengths: list[int]):
    layout = layout_of([lengths])
    assert np.diff(layout.offsets.numpy()).tolist() == lengths and layout.offsets.dtype == torch.int32
    assert max(lengths) <= layout.longest < 2 * max(lengths) or layout.longest == 1


def test_a_whole_backbone_with_flex_gives_the_losses_of_buckets(make_config: Make):
    backbone = build(make_config())
    ids = torch.randint(3, 60, (2, 193), generator=torch.Generator().manual_seed(1))
    batch = micro_batch(ids, PACKINGS)
    with torch.no_grad():
        _, expected = backbone(batch)
        set_kernel(backbone, "flex")
        _, found = backbone(batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_a_gpu_documents_are_computed_in_buckets_and_other_wishes_are_told_why_not():
    assert choose_kernel("auto", device=CPU, dtype=torch.bfloat16) == "buckets"
    assert choose_kernel("buckets", device=CPU, dtype=torch.bfloat16) == "buckets"
    for kernel in ("flash3", "flash2", "varlen", "flex"):
        with pytest.raises(ConfigError, match=f"found '{kernel}', which needs a GPU; 'auto' takes 'buckets'"):
            choose_kernel(kernel, device=CPU, dtype=torch.bfloat16)


def test_on_a_gpu_the_first_kernel_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch):
    """The capability is what a GPU would say; which modules there are is the truth of this machine."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_kernel("auto", device=gpu, dtype=torch.bfloat16) == "varlen"
    assert choose_kernel("auto", device=gpu, dtype=torch.float32) == "flex", "flash kernels have 16 bits only"
    with pytest.raises(ConfigError, match="needs the module flash_attn_interface, which is not installed"):
        choose_kernel("flash3", device=gpu, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert choose_kernel("auto", device=gpu, dtype=torch.bfloat16) == "flex"


def test_the_signature_of_torch_s_kernel_is_the_one_we_call():
    """It cannot run here; that its arguments have these names and this order is known without a GPU."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(names)
    assert varlen_kernel("varlen") is attention_kernels._torch_varlen


@pytest.mark.parametrize("part", [True, 0.5, 0.3])
def test_recomputing_some_layers_changes_no_gradient(make_config: Make, part: bool | float):
    model = {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "intermediate_size": 48}
    plain = build(make_config(model=model))
    saving = build(
        make_config(model=model, engine={"kind": "torch", "dtype": "fp32", "activation_checkpointing": part})
    )
    chosen = [layer.gradient_checkpointing for layer in saving.causal.model.layers]
    assert sum(chosen) == {True: 4, 0.5: 2, 0.3: 1}[part]
    ids = torch.randint(3, 60, (2, 193), generator=torch.Generator().manual_seed(1))
    gradients = []
    for backbone in (plain, saving):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss, _ = backbone(micro_batch(ids, PACKINGS))
        gradients.append((torch.autograd.grad(loss, list(backbone.parameters())), sum(kept)))
    (one, all_kept), (other, some_kept) = gradients
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert some_kept < all_kept


@given(st.integers(1, 80), st.floats(0, 1))
def test_checkpointed_layers_are_the_part_asked_for_evenly_spread(num_layers: int, part: float):
    chosen = checkpointed_layers(num_layers, part)
    assert len(chosen) == num_layers and abs(sum(chosen) - part * num_layers) <= 1
    assert checkpointed_layers(num_layers, 1.0) == [True] * num_layers
    assert sum(checkpointed_layers(num_layers, 0.5)) == num_layers // 2


def test_compiled_layers_give_the_same_gradients_and_keep_their_names(make_config: Make):
    """With the backend that traces and does not compile: no C++ compiler is needed here. One of two layers recomputed."""
    plain, traced = build(make_config()), build(make_config())
    engine = EngineConfig(kind="torch", dtype="fp32", compile=True, activation_checkpointing=0.5)
    accelerate(traced.causal, engine, CPU, backend="aot_eager")
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in traced.named_parameters()]
    ids = torch.randint(3, 60, (2, 193), generator=torch.Generator().manual_seed(1))
    for batch in (micro_batch(ids, PACKINGS), MicroBatch(ids, ids, None, torch.zeros(2), None)):
        losses = [network(batch)[0] for network in (plain, traced)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
        pair = [
            torch.autograd.grad(loss, list(n.parameters())) for loss, n in zip(losses, (plain, traced), strict=True)
        ]
        for left, right in zip(*pair, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_liger_without_a_gpu_is_refused(make_config: Make):
    with pytest.raises(ConfigError, match=r"engine\.liger: expected a GPU"):
        build(make_config(engine={"kind": "torch", "dtype": "fp32", "liger": True}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "torch", "offload": "optimizer"}, "expected offload = 'none' with kind 'torch'"),
        ({"offload": "parameters"}, "expected zero = 3 with offload 'parameters', found 2"),
        ({"zero": 1, "gradients": "fp32"}, "expected zero = 2 or 3 with gradients 'fp32'"),
        ({"dtype": "fp32", "gradients": "bf16"}, "found 'bf16'"),
        ({"zero": 3, "compile": True}, "expected zero = 1 or 2 with compile"),
        ({"activation_checkpointing": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_had_together_is_refused_by_the_config(keys: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        EngineConfig.model_validate(keys)
