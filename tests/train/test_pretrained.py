"""Weights from a folder: every layout that is published, little memory, rows for new ids, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from shards.errors import CheckpointError, DatasetError, FingerprintMismatch
from shards.tokenizer_files import added_tokens
from shards.vocabulary import Vocabulary
from train.backbone import Backbone, build_backbone
from train.collate import MicroBatch
from train.config import TrainConfig
from train.embedding_growth import MEAN_SPREAD, grow_rows, pad_rows
from train.plan import make_plan
from train.weight_files import WeightFiles

Make = Callable[..., TrainConfig]
LAYOUTS = ["safetensors", "sharded safetensors", "bin", "sharded bin", "bin from before torch 1.6"]


def build(config: TrainConfig) -> Backbone:
    return build_backbone(make_plan(config, where="test.toml"))


def small_llama(rows: int, *, hidden: int = 32, seed: int = 3) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        return LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=8, **sizes))


def write_folder(model: LlamaForCausalLM, folder: Path, layout: str = "safetensors") -> Path:
    """A model in one of the layouts of the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    if "safetensors" in layout:
        model.save_pretrained(folder, max_shard_size="20KB" if "sharded" in layout else "1GB")
        return folder
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if layout != "sharded bin":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization="before" not in layout)
        return folder
    names = list(state)
    parts = {f"pytorch_model-0000{k + 1}-of-00003.bin": names[k::3] for k in range(3)}
    for file, own in parts.items():
        torch.save({name: state[name] for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_hub_gives_the_weights_transformers_reads(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, layout: str
):
    source = small_llama(vocabulary.size)
    folder = write_folder(source, tmp_path / "model", layout)
    if "sharded" in layout:
        assert len([path for path in folder.iterdir() if "-of-" in path.name]) > 2
    backbone = build(make_config(init={"from": folder}))
    expected = dict(LlamaForCausalLM.from_pretrained(folder, local_files_only=True).named_parameters())
    found = dict(backbone.causal.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float32 and (weight == expected[name]).all(), name
    assert (backbone.causal.model.rotary_emb.inv_freq == source.model.rotary_emb.inv_freq).all()
    assert backbone.causal.config.max_position_embeddings == 64, "the rows to come are longer than what the folder knew"


def test_a_folder_s_model_computes_what_it_computed(make_config: Make, tmp_path: Path, vocabulary: Vocabulary):
    source = small_llama(vocabulary.size)
    backbone = build(make_config(init={"from": write_folder(source, tmp_path / "model")}))
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    loss, _ = backbone(MicroBatch(ids, ids, None, torch.zeros(2), None))
    assert loss.item() == pytest.approx(source(input_ids=ids, labels=ids).loss.item() * 58, rel=1e-5)


@contextmanager
def peak_of_own_memory() -> Iterator[Callable[[], int]]:
    """Bytes of anonymous memory at most, beyond those at the start; pages of mapped files are not ours."""

    def own() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    gc.collect()
    # What was freed before and kept by the allocator would be taken again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    start, done, seen = own(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(own() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        watcher.join()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to watch memory")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_loading_takes_the_bytes_of_the_weights_and_those_of_one_tensor(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, layout: str
):
    """96 MB of float32 on disk, loaded as bfloat16: 48 MB and no copy of the whole besides."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 1280}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary.size, **sizes))
    total = sum(weight.numel() * 2 for weight in source.parameters())
    largest = max(weight.numel() * 4 for weight in source.parameters())
    folder = write_folder(source, tmp_path / "model", layout)
    del source
    plan = make_plan(make_config(init={"from": folder}, engine={"kind": "torch", "dtype": "bf16"}), where="test.toml")
    with peak_of_own_memory() as peak:
        backbone = build_backbone(plan)
        assert {weight.dtype for weight in backbone.parameters()} == {torch.bfloat16}
    assert total < 1.1 * peak() and peak() < total + 3 * largest, f"{peak():,} bytes for {total:,} of weights"


@pytest.mark.parametrize("how", ["random", "mean"])
def test_a_smaller_vocabulary_grows_and_keeps_its_rows(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, how: str
):
    """What happens to LLaMA-2's 32,000 rows; the new ones begin as in the paper, or near the mean."""
    source = small_llama(vocabulary.text_size)
    init = {"from": write_folder(source, tmp_path / "text-only"), "new_embeddings": how}
    grown, again, other = (build(make_config(init=init, seed=seed)).causal for seed in (0, 0, 1))
    assert grown.model.embed_tokens.weight.shape[0] == grown.lm_head.weight.shape[0] == vocabulary.size
    for name in ("model.embed_tokens", "lm_head"):
        old, new, same, drawn = (m.get_submodule(name).weight for m in (source, grown, again, other))
        assert (new[: vocabulary.text_size] == old).all()
        assert (new == same).all(), "equal seeds give equal rows"
        assert (new[vocabulary.text_size :] != drawn[vocabulary.text_size :]).any()
        spread = new[vocabulary.text_size :].std().item()
        assert 0.015 < spread < 0.025 if how == "random" else spread < 0.015
    fresh = grown.model.embed_tokens.weight[vocabulary.text_size :] - grown.lm_head.weight[vocabulary.text_size :]
    assert fresh.abs().max() > 1e-4, "embedding and head begin apart"


@given(
    rows=st.integers(2, 40),
    more=st.integers(0, 30),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_growing_keeps_old_rows_bit_for_bit_in_their_dtype(rows: int, more: int, width: int, dtype: str):
    old = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(getattr(torch, dtype))
    for how in ("random", "mean"):
        grown = grow_rows(old, rows + more, key="k", seed=0, how=how, std=0.02)
        assert grown.shape == (rows + more, width) and grown.dtype == old.dtype
        assert (grown[:rows] == old).all() and grown.isfinite().all()
    padded = pad_rows(old, rows + more)
    assert (padded[:rows] == old).all() and not padded[rows:].any()


def test_rows_around_the_mean_have_the_mean_and_the_directions_of_the_old_ones():
    """The moments transformers takes from a covariance matrix, without making one."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(4000, 4, generator=generator) @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])) + 5
    new = grow_rows(old, 24_000, key="k", seed=0, how="mean", std=0.0)[4000:]
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(new.T.cov(), old.T.cov() * MEAN_SPREAD**2, rtol=0.05, atol=2e-5)


def test_rows_around_the_mean_disturb_the_text_less_than_random_ones(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary
):
    """A model that is sure of its next id loses probability to rows it never saw; measured by the text loss."""
    source = small_llama(vocabulary.text_size)
    with torch.no_grad():
        source.lm_head.weight.mul_(40).add_(-0.4)
    folder = write_folder(source, tmp_path / "text-only")
    ids = torch.randint(3, 40, (8, 64), generator=torch.Generator().manual_seed(0))
    batch = MicroBatch(ids, ids, None, torch.zeros(8), None)
    losses = [
        build(make_config(init={"from": folder, "new_embeddings": how}))(batch)[0].item() for how in ("mean", "random")
    ]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("start", ["anew", "from a text-only folder"])
@pytest.mark.parametrize("tied", [False, True])
def test_padding_rows_change_no_loss_no_other_weight_and_get_no_gradient(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary, start: str, tied: bool
):
    init = {} if start == "anew" else {"from": write_folder(small_llama(vocabulary.text_size), tmp_path / "text")}
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "tie_embeddings": tied}
    shape = shape if start == "anew" else {}
    bare, padded = (
        build(make_config(init=init, model=shape | {"pad_vocabulary_to": multiple})) for multiple in (1, 48)
    )
    assert vocabulary.size % 48 and padded.causal.config.vocab_size % 48 == 0
    assert padded.causal.lm_head.weight.shape[0] == padded.causal.config.vocab_size
    ids = torch.randint(0, vocabulary.size, (2, 30), generator=torch.Generator().manual_seed(0))
    losses = [backbone(MicroBatch(ids, ids, None, torch.zeros(2), None))[0] for backbone in (bare, padded)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    for name, weight in bare.causal.named_parameters():
        other = padded.causal.get_parameter(name)
        assert (other[: len(weight)] == weight).all() and not other[len(weight) :].any()
        assert other.grad is not None and not other.grad[len(weight) :].any()
        torch.testing.assert_close(other.grad[: len(weight)], weight.grad)


def test_a_folder_that_is_not_whole_is_refused(make_config: Make, tmp_path: Path, vocabulary: Vocabulary):
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            build(make_config(init={"from": folder}))

    folder = write_folder(small_llama(vocabulary.size), tmp_path / "shards", "sharded safetensors")
    shard = next(iter(sorted(folder.glob("model-*"))))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    refused(folder, "expected weights, found a file that does not open")
    shard.unlink()
    refused(folder, f"found {shard.name} missing")
    single = write_folder(small_llama(vocabulary.size), tmp_path / "single")
    state = dict(WeightFiles(single))
    head = state.pop("lm_head.weight")
    save_file(state, single / "model.safetensors")
    refused(single, "expected the tensor 'lm_head.weight'")
    save_file(state | {"lm_head.weight": head[:, :16].contiguous()}, single / "model.safetensors")
    refused(single, "expected lm_head.weight of shape")
    (single / "model.safetensors").unlink()
    refused(single, "expected weights .* found none")
    torch.save({"lm_head.weight": head}, single / "pytorch_model.bin")
    cut = (single / "pytorch_model.bin").read_bytes()[:-200]
    (single / "pytorch_model.bin").write_bytes(cut)
    refused(single, "expected weights, found a file that does not open")


def test_a_folder_whose_tokenizer_numbers_otherwise_is_refused(
    make_config: Make, tmp_path: Path, vocabulary: Vocabulary
):
    """A published checkpoint's ids are its own; data packed with a layout that was guessed must not train it."""
    folder = write_folder(small_llama(vocabulary.size), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    tokens = added_tokens(vocabulary)
    (folder / "added_tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    build(make_config(init={"from": folder}))
    tokens["<soim>"], tokens["<eoim>"] = tokens["<eoim>"], tokens["<soim>"]
    (folder / "added_tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    with pytest.raises(DatasetError, match="expected '<soim>' as id 74, found '<eoim>' as id 74"):
        build(make_config(init={"from": folder}))
    (folder / "added_tokens.json").unlink()
    with pytest.raises(FingerprintMismatch, match="expected the text tokenizer t that the data was packed with"):
        build(make_config(init={"from": folder}))


def test_a_later_stage_adds_markers_behind_everything(
    make_config: Make, write_dataset: Callable[..., Path], tmp_path: Path, vocabulary: Vocabulary
):
    """Stage 2 on a model of stage 1: `<-Res->` and `<-Ins->` get rows of their own, no other row moves."""
    marks = {"<-Res->": vocabulary.size, "<-Ins->": vocabulary.size + 1}
    later = replace(vocabulary, name="later", markers={**vocabulary.markers, **marks})
    write_dataset(tmp_path / "data", "image", later)
    (tmp_path / "data" / "mixture.toml").write_text("[shares]\nimage = 1.0\n", encoding="utf-8")
    data = {"data": tmp_path / "data", "mixture": tmp_path / "data" / "mixture.toml"}
    source = small_llama(vocabulary.size)
    ours, theirs = write_folder(source, tmp_path / "ours"), write_folder(source, tmp_path / "theirs")
    (ours / "vocabulary.json").write_text(json.dumps(vocabulary.to_json()), encoding="utf-8")
    (theirs / "tokenizer.json").write_text("{}", encoding="utf-8")
    (theirs / "added_tokens.json").write_text(json.dumps(added_tokens(vocabulary)), encoding="utf-8")
    for folder in (ours, theirs):
        backbone = build(make_config(init={"from": folder}, **data))
        for name in ("model.embed_tokens", "lm_head"):
            new, old = backbone.causal.get_submodule(name).weight, source.get_submodule(name).weight
            assert (new[:-2] == old).all() and len(new) == later.size
            assert new[-2:].abs().max() > 0
    (ours / "vocabulary.json").write_text(json.dumps(later.to_json()), encoding="utf-8")
    with pytest.raises(FingerprintMismatch, match="the weights speak vocabulary later"):
        build(make_config(init={"from": ours}))
