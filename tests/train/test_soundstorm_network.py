"""SoundStorm's network: the published layouts, the numbers, and independence of padding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from configs.load import validate
from shards.errors import ConfigError
from tests.fixtures.soundstorm_checkpoints import PUBLISHED, TINY, plain_logits, published_shapes, tiny_state
from train.soundstorm import SoundStorm, SoundStormConfig
from train.soundstorm_keys import Layout, config_from_shapes, from_published, layout_of, published_keys, to_published

CONFIG = SoundStormConfig(dim=TINY.dim, depth=TINY.depth, heads=TINY.heads, head_dim=TINY.head_dim)


def tiny_network(layout: Layout = Layout.ANYGPT) -> SoundStorm:
    network = SoundStorm(CONFIG)
    network.load_state_dict(from_published(tiny_state(layout), CONFIG, layout), strict=True)
    return network.eval().requires_grad_(False)


NETWORK = tiny_network()


def random_input(length: int, seed: int = 0, *, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes with about half of them hidden."""
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(CONFIG.num_semantic, (batch, length), generator=generator)
    codes = torch.randint(CONFIG.codebook_size, (batch, length, CONFIG.num_quantizers), generator=generator)
    return semantic, codes.masked_fill(torch.rand(codes.shape, generator=generator) < 0.5, CONFIG.mask_id)


@pytest.mark.parametrize("layout", list(Layout))
def test_the_published_size_has_356_keys_and_351_378_432_parameters(layout: Layout) -> None:
    with torch.device("meta"):
        network = SoundStorm(SoundStormConfig())
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    entries = published_keys(SoundStormConfig(), layout)
    assert {key: entry.published_shape for key, entry in entries.items()} == published_shapes(layout, PUBLISHED)
    assert {entry.key: entry.shape for entry in entries.values()} == shapes
    assert len(entries) == len(shapes) == 356
    assert sum(parameter.numel() for parameter in network.parameters()) == 351_378_432


@pytest.mark.parametrize("layout", list(Layout))
def test_a_file_read_and_written_again_is_the_same_file(layout: Layout) -> None:
    state = tiny_state(layout)
    again = to_published(tiny_network(layout).state_dict(), CONFIG, layout)
    assert layout_of(state) is layout
    assert set(again) == set(state)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_both_layouts_are_the_same_network() -> None:
    other = tiny_network(Layout.STANDALONE).state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in NETWORK.state_dict().items())


def test_shapes_tell_all_sizes_but_the_heads() -> None:
    shapes = published_shapes("standalone")
    told = config_from_shapes(shapes, Layout.STANDALONE, {"heads": TINY.heads})
    assert SoundStormConfig.model_validate(told) == CONFIG
    assert config_from_shapes(shapes, Layout.STANDALONE, {"head_dim": 32})["heads"] == 2
    with pytest.raises(ValueError, match="heads of 128 dimensions, found 64"):
        config_from_shapes(shapes, Layout.STANDALONE, {})


def test_logits_are_those_of_the_plain_form() -> None:
    semantic, codes = random_input(40)
    expected = plain_logits(tiny_state(), semantic[0], codes[0])
    assert expected.std() > 0.5
    torch.testing.assert_close(NETWORK(semantic, codes)[0].double(), expected, atol=2e-5, rtol=0)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(0, 1000))
def test_an_item_in_a_padded_batch_has_the_logits_it_has_alone(lengths: list[int], seed: int) -> None:
    semantic, codes = random_input(max(lengths), seed, batch=len(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    together = NETWORK(semantic, codes, mask)
    assert torch.isfinite(together).all()
    for row, length in enumerate(lengths):
        alone = NETWORK(semantic[row : row + 1, :length], codes[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)


def test_every_frame_sees_every_other_one() -> None:
    """Nothing is causal: the first frame hears of the last, far beyond the convolution, and the other way round."""
    semantic, codes = random_input(80)
    before = NETWORK(semantic, codes)
    for changed, watched in ((0, 79), (79, 0)):
        other = semantic.clone()
        other[0, changed] = (other[0, changed] + 1) % CONFIG.num_semantic
        assert (NETWORK(other, codes) - before)[0, watched].abs().max() > 1e-4


def test_some_levels_are_those_of_all_levels() -> None:
    hidden = NETWORK.hidden(*random_input(9, batch=3))
    everything = NETWORK.logits_from(hidden, 0)
    torch.testing.assert_close(NETWORK.logits_from(hidden, 2, 5), everything[:, :, 2:5], atol=1e-5, rtol=0)
    levels = torch.tensor([6, 0, 3])
    one_each = torch.stack([everything[row, :, level] for row, level in enumerate(levels)])
    torch.testing.assert_close(NETWORK.level_logits(hidden, levels), one_each, atol=1e-5, rtol=0)


def test_a_new_network_says_nothing_yet_and_learns() -> None:
    """The first loss is that of an even guess; a few steps on one batch halve it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SoundStorm(SoundStormConfig(dim=32, depth=2, heads=2, head_dim=16, codebook_size=16, num_semantic=16))
    semantic, levels = torch.arange(48).view(3, 16) % 16, torch.tensor([0, 3, 6])
    targets = (semantic * 7 + levels[:, None]) % 16
    hidden_codes = torch.full((3, 16, 7), network.config.mask_id)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        logits = network.level_logits(network.hidden(semantic, hidden_codes), levels)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(losses[0] - torch.tensor(16.0).log()) < 0.2
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(("key", "value"), [("head_dim", 15), ("conv_kernel", 30), ("depth", 0), ("dimension", 8)])
def test_sizes_that_make_no_network_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=key):
        validate({key: value}, SoundStormConfig, where="test")


@pytest.mark.parametrize("file", ["anygpt_layout", "standalone_layout"])
def test_parity_logits_are_upstreams(parity: Path, file: str) -> None:
    folder = parity / "soundstorm"
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = load_file(folder / "expected.safetensors")
    state = torch.load(folder / said["files"][file], weights_only=True)
    layout = layout_of(state)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    config = SoundStormConfig.model_validate(config_from_shapes(shapes, layout, {"heads": said["heads"]}))
    network = SoundStorm(config)
    network.load_state_dict(from_published(state, config, layout), strict=True)
    semantic, codes = expected["forward_semantic"], expected["forward_codes"]
    with torch.inference_mode():
        logits = network(semantic, codes, expected["forward_mask"].bool())
        torch.testing.assert_close(logits, expected["forward_logits"], atol=2e-4, rtol=0)
        mask = expected["forward_mask_padded"].bool()
        padded, valid = network(semantic, codes, mask)[1], mask[1]
    torch.testing.assert_close(padded[valid], expected["forward_logits_padded_row1"][valid], atol=2e-4, rtol=0)
