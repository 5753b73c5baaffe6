"""Published SoundStorm files: both layouts, sizes from shapes and a config, and every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference.soundstorm_files import load_network
from shards.errors import TokenizerError
from tests.fixtures.soundstorm_checkpoints import TINY, tiny_state, write_checkpoint
from train.soundstorm import SoundStormConfig
from train.soundstorm_keys import Layout, from_published

SIZES = SoundStormConfig(dim=TINY.dim, depth=TINY.depth, heads=TINY.heads, head_dim=TINY.head_dim)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layout", list(Layout))
def test_both_layouts_load_flat_and_from_under_a_trainers_key(tmp_path: Path, layout: Layout, nested: bool) -> None:
    loaded = load_network(write_checkpoint(tmp_path, tiny_state(layout), nested=nested))
    expected = from_published(tiny_state(), SIZES, Layout.ANYGPT)
    assert loaded.config == SIZES
    assert not loaded.training
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


def test_half_precision_and_safetensors_load_too(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_state())
    save_file({key: tensor.half() for key, tensor in tiny_state().items()}, tmp_path / "soundstorm.safetensors")
    loaded = load_network(path.with_suffix(".safetensors"), tmp_path / "config.json")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", list(Layout))
def test_a_key_that_is_missing_left_over_or_misshaped_is_named(tmp_path: Path, layout: Layout) -> None:
    state = tiny_state(layout)
    for number, key in enumerate(sorted(state)):
        if number % 5 == 0 or "depthwise" in key:
            lacking = {name: tensor for name, tensor in state.items() if name != key}
            with pytest.raises(TokenizerError, match=f"1 missing: {key}"):
                load_network(write_checkpoint(tmp_path, lacking))
    with pytest.raises(TokenizerError, match=r"1 not known: net\.more"):
        load_network(write_checkpoint(tmp_path, state | {"net.more": torch.zeros(2)}))
    with pytest.raises(TokenizerError, match=r"1 of another shape: net\.heads\.0\.bias \(3,\) instead of \(448,\)"):
        load_network(write_checkpoint(tmp_path, state | {"net.heads.0.bias": torch.zeros(3)}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 32}, "'dim' = 32, the tensors have 64"),
        ({"depth": 3}, "'depth' = 3, the tensors have 2"),
        ({"conv_kernel": 15}, "'conv_kernel' = 15"),
        ({"num_quantizers": 8}, "'num_quantizers' = 8"),
        ({"heads": 5}, "'heads' and 'dim_head'"),
        ({"dim_head": 32}, "'dim_head' or 'head_dim' = 32, the tensors have 16"),
        ({"mask_id": 5}, "'mask_id' = 1024"),
        ({"depth": "two"}, "'depth'"),
    ],
)
def test_sizes_that_contradict_the_tensors_are_named(tmp_path: Path, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_network(write_checkpoint(tmp_path, tiny_state(), **sizes))


def test_without_a_config_heads_are_the_published_ones_or_asked_for(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, tiny_state())
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenizerError, match="heads of 128 dimensions, found 64"):
        load_network(path)
    (tmp_path / "sizes.json").write_text('{"heads": 4, "rotary_theta": 500}', encoding="utf-8")
    assert load_network(path, tmp_path / "sizes.json").config == SIZES.model_copy(update={"rotary_theta": 500.0})
    with pytest.raises(TokenizerError, match="expected sizes of SoundStorm"):
        load_network(path, tmp_path / "none.json")
    with pytest.raises(TokenizerError, match=r"soundstorm = .*none\.pt: expected speechtokenizer_soundstorm"):
        load_network(tmp_path / "none.pt")
    (tmp_path / "sizes.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(TokenizerError, match="JSON object"):
        load_network(path, tmp_path / "sizes.json")
