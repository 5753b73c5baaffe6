"""SEED-2's weight files: strict about what is needed, tolerant of the rest, either ViT source, published sizes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizers import seed2
from pipeline.tokenizers.seed2 import Options
from pipeline.tokenizers.seed2_keys import (
    QuantizerSizes,
    Unshaped,
    VisionSizes,
    decoder_keys,
    encoder_keys,
    published_state,
    quantizer_sizes,
    split_quantizer,
    vision_keys,
)
from pipeline.tokenizers.seed2_network import Seed2Decoder, Seed2Encoder, random_seed2
from pipeline.tokenizers.seed2_weights import read_unshaped, read_vision, read_weights
from shards.errors import TokenizerError
from tests.fixtures import seed2_checkpoints as made

UNSHAPED = Unshaped(vision_heads=4, qformer_heads=4, image_heads=4)
UNUSED_OF_THE_MODEL = {"pos_embed", "Qformer.bert.embeddings.position_ids"}


@functools.cache
def states() -> tuple[made.State, made.State]:
    return made.checkpoint()


@functools.cache
def needed() -> tuple[list[str], list[str]]:
    """Keys that must be there: of the quantizer's file and of the ViT's."""
    unused = set(made.unused_shapes(made.TINY)) | UNUSED_OF_THE_MODEL
    quantizer = [key for key in states()[0] if key not in unused and not key.startswith("blocks.")]
    return quantizer, [key for key in states()[1] if not key.startswith("blocks.2.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seed2")
    made.write_checkpoint(path, *states())
    return path


def read(folder: Path, quantizer: made.State | None = None, vit: made.State | None = None) -> Any:
    """Read the folder's files, or changed ones."""
    paths = {"quantizer": folder / "seed_quantizer.pt", "vit": folder / "eva_vit_g.pth"}
    for name, state in (("quantizer", quantizer), ("vit", vit)):
        if state is not None:
            paths[name] = folder / f"changed-{name}.pt"
            torch.save(state, paths[name])
    return read_weights(paths["quantizer"], paths["vit"], unshaped=UNSHAPED)


def test_every_key_that_is_not_used_is_listed(folder: Path) -> None:
    """The reconstruction branch, the text side and the ViT's last block; and nothing else."""
    ignored = read(folder).ignored_keys
    assert set(ignored) == (set(states()[0]) - set(needed()[0])) | (set(states()[1]) - set(needed()[1]))
    codec = seed2.load(Options(**made.write_checkpoint(folder, *states())))
    assert codec.ignored_keys == ignored


@settings(max_examples=25)
@given(st.data())
def test_a_missing_key_is_named(folder: Path, data: st.DataObject) -> None:
    """Any of them, in either file."""
    which = data.draw(st.sampled_from([0, 1]))
    key = data.draw(st.sampled_from(needed()[which]))
    changed = {name: tensor for name, tensor in states()[which].items() if name != key}
    with pytest.raises(TokenizerError) as error:
        read(folder, *((changed, None) if which == 0 else (None, changed)))
    assert key in str(error.value)


@settings(max_examples=25)
@given(st.data())
def test_a_misshaped_key_is_named(folder: Path, data: st.DataObject) -> None:
    """Any of them: sizes are told by several tensors, so the odd one out is the one that is named."""
    which = data.draw(st.sampled_from([0, 1]))
    key = data.draw(st.sampled_from(needed()[which]))
    tensor = states()[which][key]
    changed = states()[which] | {key: torch.cat([tensor, tensor[..., -1:]], dim=-1)}
    with pytest.raises(TokenizerError, match="of another shape") as error:
        read(folder, *((changed, None) if which == 0 else (None, changed)))
    assert key in str(error.value)


def test_a_misshaped_key_is_named_with_both_shapes(folder: Path) -> None:
    key = "encode_task_layer.2.weight"
    with pytest.raises(TokenizerError, match=rf"{key} \(31, 64\) instead of \(32, 64\)"):
        read(folder, states()[0] | {key: torch.zeros(31, 64)})


@pytest.mark.parametrize(
    "key",
    [
        "encode_task_layer.4.weight",
        "ln_vision.scale",
        "blocks_image.0.attn.q_bias",
        "Qformer.bert.encoder.layer.1.crossattention.self.query.weight",
        "image_down.6.weight",
    ],
)
def test_a_key_that_is_not_known_in_a_part_we_use_is_named(folder: Path, key: str) -> None:
    """It would mean another architecture."""
    with pytest.raises(TokenizerError) as error:
        read(folder, states()[0] | {key: torch.zeros(2)})
    assert "not known" in str(error.value) or "missing" in str(error.value)
    assert key.rsplit(".", 1)[0] in str(error.value)


@pytest.mark.parametrize("key", ["blocks.0.attn.qkv.bias", "patch_embed.norm.weight", "blocks.1.gamma_1"])
def test_a_key_that_is_not_known_in_the_vit_is_named(folder: Path, key: str) -> None:
    with pytest.raises(TokenizerError, match=f"not known: {key}"):
        read(folder, vit=states()[1] | {key: torch.zeros(64)})


def test_unused_keys_of_the_vit_are_no_fault(folder: Path) -> None:
    assert "head.weight" in read(folder, vit=states()[1] | {"head.weight": torch.zeros(2)}).ignored_keys


def test_the_files_in_each_others_place_are_refused(folder: Path) -> None:
    with pytest.raises(TokenizerError, match=r"expected a tensor ln_vision\.weight, found none .*right file"):
        read_weights(folder / "eva_vit_g.pth", folder / "eva_vit_g.pth", unshaped=UNSHAPED)
    with pytest.raises(TokenizerError, match=r"expected a tensor patch_embed\.proj\.weight"):
        read_weights(folder / "seed_quantizer.pt", folder / "seed_quantizer.pt", unshaped=UNSHAPED)


def test_a_vit_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    other = made.Model(vit_width=32)
    torch.save(made.random_state(made.vit_shapes(other), seed=1), tmp_path / "other.pth")
    with pytest.raises(TokenizerError, match=r"expected a ViT 64 wide, as seed_quantizer\.pt wants it, found 32"):
        read_weights(folder / "seed_quantizer.pt", tmp_path / "other.pth", unshaped=UNSHAPED)


def test_half_precision_in_a_file_is_widened(folder: Path) -> None:
    weights = read(folder)
    assert states()[1]["cls_token"].dtype == torch.float16
    assert {tensor.dtype for tensor in weights.encoder.state_dict().values()} == {torch.float32}
    bias = weights.encoder.vision.encoder.layers[1].self_attn.qkv.bias
    expected = [
        states()[1]["blocks.1.attn.q_bias"].float(),
        torch.zeros(64),
        states()[1]["blocks.1.attn.v_bias"].float(),
    ]
    assert torch.equal(bias, torch.cat(expected))


def test_epsilons_are_the_published_ones(folder: Path) -> None:
    """The library's own would give ``ln_vision`` that of the blocks."""
    encoder = read(folder).encoder
    assert encoder.vision.post_layernorm.eps == 1e-5
    assert encoder.vision.encoder.layers[0].layer_norm1.eps == 1e-6
    assert encoder.qformer.layernorm.eps == encoder.qformer.encoder.layer[3].output_query.LayerNorm.eps == 1e-12


# ---- the other source of a ViT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded", "vision"])
def test_a_blip2_folder_gives_the_same_codes_and_fingerprint(folder: Path, tmp_path: Path, layout: str) -> None:
    """``ln_vision`` is the quantizer's, not the folder's ``post_layernorm``."""
    options = made.write_checkpoint(folder, *states())
    pictures = list(made.random_pictures(3, seed=5).numpy())
    expected = seed2.load(Options(**options))
    hf_folder = made.write_hf_folder(tmp_path / layout, states()[1], layout=layout)
    found = seed2.load(Options(**options | {"vit": hf_folder}))
    assert found.fingerprint == expected.fingerprint
    for one, other in zip(found.encode(pictures), expected.encode(pictures), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(key.endswith("post_layernorm.weight") for key in found.ignored_keys)


def test_a_blip2_weight_file_is_a_source_too(folder: Path, tmp_path: Path) -> None:
    path = made.write_hf_folder(tmp_path, states()[1]) / "model.safetensors"
    state = read_vision(path, unshaped=UNSHAPED).state
    expected = read_vision(folder / "eva_vit_g.pth", unshaped=UNSHAPED).state
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3, "num_attention_heads": 4}, "missing: encoder.layers.2"),
        ({"num_hidden_layers": 1, "num_attention_heads": 4}, "not known: encoder.layers.1"),
        ({"num_hidden_layers": 2, "num_attention_heads": 8}, "expected 4 heads in the ViT, found 8"),
    ],
)
def test_a_blip2_folder_is_held_to_its_config(tmp_path: Path, config: dict[str, int], message: str) -> None:
    folder = made.write_hf_folder(tmp_path, states()[1])
    (folder / "config.json").write_text(json.dumps({"vision_config": config}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        read_vision(folder, unshaped=UNSHAPED)


def test_a_blip2_folder_with_a_hole_is_refused(tmp_path: Path) -> None:
    folder = made.write_hf_folder(tmp_path / "hole", states()[1], layout="sharded")
    (folder / "b.safetensors").unlink()
    with pytest.raises(TokenizerError, match=r"expected the shard b\.safetensors that its index names"):
        read_vision(folder, unshaped=UNSHAPED)
    (folder / "config.json").unlink()
    with pytest.raises(TokenizerError, match=r"expected a config\.json|expected the shard"):
        read_vision(folder, unshaped=UNSHAPED)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=r"expected model\.safetensors, pytorch_model\.bin or an index"):
        read_vision(tmp_path / "empty", unshaped=UNSHAPED)


def test_another_depth_than_the_config_says_is_refused(folder: Path, tmp_path: Path) -> None:
    """A ViT whose last block was dropped already would otherwise give the features of one block too early."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"vision": {"heads": 4, "depth": 3}}), encoding="utf-8")
    whole = {key: value for key, value in states()[1].items() if not key.startswith("blocks.2.")}
    torch.save(whole, tmp_path / "two.pth")
    with pytest.raises(TokenizerError, match=r"missing: blocks\.2\."):
        read_vision(tmp_path / "two.pth", unshaped=read_unshaped(config))


# ---- the published sizes ---------------------------------------------------------------------------------------------


def on_meta(shapes: made.Shapes) -> made.State:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def count(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())


def test_the_published_layout_maps_one_to_one_at_full_size() -> None:
    """511 keys of the ViT (sheet 1.1) and 370 others, of which 50 are of no use to codes; all shapes fit."""
    quantizer = on_meta(made.quantizer_shapes(made.PUBLISHED))
    vit = made.vit_shapes(made.PUBLISHED)
    assert len(quantizer) == 370
    sizes = quantizer_sizes(quantizer, where="published")
    assert sizes == QuantizerSizes()
    with torch.device("meta"):
        encoder = Seed2Encoder(VisionSizes(), sizes, Unshaped())
        decoder = Seed2Decoder(sizes, Unshaped())
    of_encoder, of_decoder, ignored = split_quantizer(quantizer, encoder, decoder, sizes, where="published")
    unused = {key for key in quantizer if key.startswith("blocks.")} | UNUSED_OF_THE_MODEL
    assert set(ignored) == unused
    assert len(unused) == 50
    own = vision_keys(39)
    assert len(own) == 511
    assert all(key in vit for key in own)
    assert len(vit) == 511 + 13
    loaded = set(of_encoder) | {f"vision.{key}" for key in own.values()}
    assert loaded == set(encoder.state_dict())
    assert set(of_decoder) == set(decoder.state_dict())


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """Tokenizers sheet 1.2, part by part."""
    sizes = QuantizerSizes()
    with torch.device("meta"):
        encoder, decoder = Seed2Encoder(VisionSizes(), sizes, Unshaped()), Seed2Decoder(sizes, Unshaped())
    ln_vision = count(encoder.vision.post_layernorm)
    assert ln_vision == 2_816
    key_biases = 39 * 1408  # zeros, which the library keeps beside q and v
    assert count(encoder.vision) - ln_vision - key_biases == 985_894_528
    assert count(encoder.qformer) == 105_137_664
    assert encoder.query_tokens.numel() == 24_576
    assert count(encoder.encode_task_layer) == 615_200
    assert count(encoder.codebook) == 262_144
    assert count(decoder.decode_task_layer) == 26_400
    assert count(decoder.blocks) == 28_351_488
    assert count(decoder.image_down) + count(decoder.projection) == 1_283_072


def test_random_weights_in_the_published_layout_come_back(tmp_path: Path) -> None:
    """What benchmarks write at full size; and random weights give every picture codes of its own."""
    vision = VisionSizes(width=32, depth=2, mlp=48)
    sizes = QuantizerSizes(32, 32, 24, 2, 2, 32, 512, 8, 1, 32, (16, 8, 4), 20)
    unshaped = Unshaped(vision_heads=2, qformer_heads=2, image_heads=2)
    encoder, decoder = random_seed2(vision, sizes, unshaped, seed=3)
    state = published_state(encoder, encoder_keys(sizes)) | published_state(decoder, decoder_keys(sizes))
    torch.save(state, tmp_path / "seed_quantizer.pt")
    vit = published_state(encoder, vision_keys(2), "vision.")
    # An unused last block, as the published file has it; without k biases, which it does not store.
    vit |= {key.replace("blocks.1.", "blocks.2."): value for key, value in vit.items() if key.startswith("blocks.1.")}
    torch.save(vit, tmp_path / "eva_vit_g.pth")
    weights = read_weights(tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth", unshaped=unshaped)
    assert weights.encoder is not None
    for module, expected in ((weights.encoder, encoder), (weights.decoder, decoder)):
        own = expected.state_dict()
        assert all(torch.equal(tensor, own[key]) for key, tensor in module.state_dict().items())
    codec = seed2.Seed2(weights, device=torch.device("cpu"))
    codes = np.stack(codec.encode(list(made.random_pictures(4, seed=1).numpy())))
    assert len(np.unique(codes)) > 64
    assert all((codes[n] != codes[n + 1]).mean() > 0.3 for n in range(3))
