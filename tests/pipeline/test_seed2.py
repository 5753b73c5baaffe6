"""SEED-2 from tiny checkpoints in the published layout: an oracle's codes, alone as in any batch, and every guard."""

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
from pydantic import ValidationError

from pipeline.tokenizers import seed2
from pipeline.tokenizers.base import MediaTokenizer
from pipeline.tokenizers.codecs import codec_names, read_codec_config
from pipeline.tokenizers.rvq import half_norms
from pipeline.tokenizers.seed2 import Options, Seed2
from pipeline.tokenizers.seed2_network import Seed2Encoder, look_up, normalise
from pipeline.tokenizers.seed2_weights import read_unshaped, read_weights
from shards.errors import ConfigError, TokenizerError
from tests.fixtures import seed2_checkpoints as made

NUM_PICTURES = 7


@functools.cache
def states() -> tuple[made.State, made.State]:
    """One tiny checkpoint, made once."""
    return made.checkpoint()


@functools.cache
def pictures() -> tuple[np.ndarray, ...]:
    return tuple(made.random_pictures(NUM_PICTURES, seed=99).numpy())


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its files, as options name them."""
    return made.write_checkpoint(tmp_path_factory.mktemp("seed2"), *states())


@pytest.fixture(scope="module")
def codec(paths: dict[str, Any]) -> Seed2:
    return seed2.load(Options(**paths))


@pytest.fixture(scope="module")
def encoder(paths: dict[str, Any]) -> Seed2Encoder:
    """The network by itself, float32 on the CPU."""
    weights = read_weights(paths["quantizer"], paths["vit"], unshaped=read_unshaped(paths["config"]))
    assert weights.encoder is not None
    return weights.encoder


def codes_of(codec: Seed2, batch: Any) -> np.ndarray:
    return np.stack(codec.encode(list(batch)))[:, :, 0]


def test_codes_are_those_of_a_plain_reading_of_the_published_keys(codec: Seed2) -> None:
    """The oracle knows neither our modules nor our rename tables: every epsilon, mask and bias must be right."""
    expected = made.codes_of(*states(), torch.from_numpy(np.stack(pictures()))).numpy()
    assert len(np.unique(expected)) > 4 * 32
    np.testing.assert_array_equal(codes_of(codec, pictures()), expected)


def test_embeddings_are_those_of_a_plain_reading_of_the_published_keys(codec: Seed2) -> None:
    codes = torch.randint(0, 8192, (5, 32), generator=torch.Generator().manual_seed(1))
    expected = made.embeddings_of(states()[0], codes).numpy()
    found = codec.embed([row.astype(np.uint16)[:, None] for row in codes.numpy()])
    assert found.shape == (5, made.TINY.embedding)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert codec.embed([]).shape == (0, made.TINY.embedding)


@settings(max_examples=12)
@given(st.lists(st.integers(0, NUM_PICTURES - 1), min_size=1, max_size=9), st.integers(1, 5))
def test_a_picture_has_the_same_codes_alone_and_in_any_batch(
    paths: dict[str, Any], chosen: list[int], size: int
) -> None:
    """Whatever stands beside it, and however the batches are cut."""
    codec = opened(paths["quantizer"].parent, size)
    alone = np.concatenate([codes_of(codec, [picture]) for picture in pictures()])
    np.testing.assert_array_equal(codes_of(codec, [pictures()[index] for index in chosen]), alone[chosen])


@functools.cache
def opened(folder: Path, batch_items: int) -> Seed2:
    """For hypothesis, which calls one test many times."""
    options = {"quantizer": "seed_quantizer.pt", "vit": "eva_vit_g.pth", "config": "config.json"}
    return seed2.load(Options(**{key: folder / name for key, name in options.items()}, batch_items=batch_items))


def test_it_is_a_media_tokenizer_of_table_one(codec: Seed2) -> None:
    assert isinstance(codec, MediaTokenizer)
    assert (codec.name, codec.codebook_size, codec.levels, codec.frames_for(123)) == ("seed2", 8192, 1, 32)
    [codes] = codec.encode([pictures()[0]])
    assert codes.shape == (32, 1)
    assert codes.dtype == np.uint16
    assert codec.encode([]) == []


def test_the_shipped_config_names_this_codec(repository: Path) -> None:
    assert "seed2" in codec_names()
    module, options = read_codec_config(repository / "configs" / "tokenizers" / "seed2.toml")
    assert module is seed2
    assert isinstance(options, Options)
    assert {file.option: file.required for file in seed2.weight_files(options)} == {
        "quantizer": True,
        "vit": True,
        "unclip": False,
    }


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((224, 224, 4), np.uint8),
        np.zeros((224, 224), np.uint8),
        np.zeros((224, 224, 3), np.float32),
        np.zeros((3, 224, 224), np.uint8),
    ],
    ids=["1x1", "four channels", "no channels", "floats", "channels first"],
)
def test_what_is_no_picture_is_refused(codec: Seed2, picture: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a picture \(224, 224, 3\) uint8, found"):
        codec.encode([pictures()[0], picture])


@pytest.mark.parametrize("count", [0, 31, 33, 64])
def test_a_picture_has_exactly_32_codes(codec: Seed2, count: int) -> None:
    with pytest.raises(ValueError, match=f"expected exactly 32 codes for a picture, found {count}"):
        codec.embed([np.zeros((count, 1), np.uint16)])


def test_a_code_outside_the_codebook_is_refused(codec: Seed2) -> None:
    with pytest.raises(ValueError, match=r"expected codes in \[0, 8192\), found 0 to 8192"):
        codec.embed([np.array([[8192]] + [[0]] * 31, np.uint16)])


# ---- the traps -------------------------------------------------------------------------------------------------------


def test_changing_a_later_query_leaves_the_codes_before_it(encoder: Seed2Encoder) -> None:
    """The Q-Former is causal over its queries."""
    shown = normalise(torch.from_numpy(np.stack(pictures()[:2])))
    with torch.inference_mode():
        features = encoder.features(shown)
        before = encoder.latents(encoder.query(features))
        kept = encoder.query_tokens.data.clone()
        for changed in (1, 17, 31):
            # Not by a constant: the LayerNorm on the queries would take it away.
            encoder.query_tokens.data[:, changed] = kept[:, changed].flip(-1)
            after = encoder.latents(encoder.query(features))
            encoder.query_tokens.data.copy_(kept)
            torch.testing.assert_close(after[:, :changed], before[:, :changed])
            assert float((after[:, changed:] - before[:, changed:]).abs().amax(-1).min()) > 1e-4


def test_the_mask_matters_and_a_bool_one_is_refused(encoder: Seed2Encoder) -> None:
    """Plain attention adds a bool mask as 0 and 1, which changed 96 % of the codes."""
    with torch.inference_mode():
        features = encoder.features(normalise(torch.from_numpy(pictures()[0][None])))
        free = encoder.query(features, torch.zeros(1, 1, 32, 32))
        assert float((free - encoder.query(features)).abs().max()) > 1e-2
        with pytest.raises(ValueError, match="bool mask is added as 0 and 1"):
            encoder.query(features, torch.ones(1, 1, 32, 32, dtype=torch.bool).tril())
        with pytest.raises(ValueError, match=r"found \(1, 1, 31, 31\)"):
            encoder.query(features, torch.zeros(1, 1, 31, 31))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_look_up_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    """It would change 37 to 91 % of the codes."""
    latents, codebook = torch.randn(2, 32, 32), torch.randn(64, 32)
    norms = half_norms(codebook)
    with pytest.raises(ValueError, match=f"expected latents in float32, found {dtype}"):
        look_up(latents.to(dtype), codebook, norms)
    with pytest.raises(ValueError, match=f"expected codebook in float32, found {dtype}"):
        look_up(latents, codebook.to(dtype), norms)


def test_half_precision_keeps_latents_float32_and_most_codes(paths: dict[str, Any], codec: Seed2) -> None:
    half = seed2.load(Options(**paths, precision="fp16"))
    assert half.fingerprint != codec.fingerprint
    changed = (codes_of(half, pictures()) != codes_of(codec, pictures())).mean()
    assert changed < 0.1, "the sheet measured 1.2 % on a tiny model"


def test_bfloat16_is_no_option(paths: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="precision"):
        Options(**paths, precision="bf16")


def test_a_callers_autocast_does_not_reach_in(codec: Seed2) -> None:
    expected = codes_of(codec, pictures()[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(codes_of(codec, pictures()[:2]), expected)


def test_compiling_is_one_graph_and_gives_the_same_codes_also_for_an_unfilled_batch(
    paths: dict[str, Any], codec: Seed2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as a user's run would, without a break; not turned into C++, which takes a minute here and changes nothing."""
    monkeypatch.setattr(torch, "compile", functools.partial(traced, torch.compile))
    compiled = seed2.load(Options(**paths, compile=True, batch_items=2))
    np.testing.assert_array_equal(codes_of(compiled, pictures()[:3]), codes_of(codec, pictures()[:3]))
    assert compiled.fingerprint == codec.fingerprint


def traced(compile_: Any, module: Any, *, mode: str, dynamic: bool) -> Any:
    """``torch.compile`` with the backend that runs the graph as it is."""
    assert mode == "default"
    return compile_(module, dynamic=dynamic, backend="eager", fullgraph=True)


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_says_weights_heads_and_precision(paths: dict[str, Any], codec: Seed2, tmp_path: Path) -> None:
    assert seed2.load(Options(**paths, batch_items=3)).fingerprint == codec.fingerprint
    quantizer, vit = states()
    other = quantizer | {"encode_task_layer.2.bias": quantizer["encode_task_layer.2.bias"] + 1e-3}
    assert seed2.load(Options(**made.write_checkpoint(tmp_path / "a", other, vit))).fingerprint != codec.fingerprint
    unused = quantizer | {"temp": torch.tensor(7.0), "distill_image_proj.bias": torch.zeros(made.TINY.embedding)}
    assert seed2.load(Options(**made.write_checkpoint(tmp_path / "b", unused, vit))).fingerprint == codec.fingerprint
    heads = json.loads(paths["config"].read_text(encoding="utf-8"))
    heads["qformer"]["heads"] = 2
    (tmp_path / "heads.json").write_text(json.dumps(heads), encoding="utf-8")
    changed = seed2.load(Options(**paths | {"config": tmp_path / "heads.json"}))
    assert changed.fingerprint != codec.fingerprint


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_it_refuses_to_run_without_a_vit(paths: dict[str, Any], tmp_path: Path) -> None:
    """The authors' loader runs with a random one and says nothing."""
    with pytest.raises(ConfigError, match=r"options\.vit: expected the path of SEED-2's ViT .*random one"):
        seed2.load(Options(**paths | {"vit": None}))
    with pytest.raises(TokenizerError, match=r"options\.vit = .*nothing there"):
        seed2.load(Options(**paths | {"vit": tmp_path / "no.pth"}))


def test_it_refuses_to_run_without_a_quantizer(paths: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"options\.quantizer: expected the path of seed_quantizer\.pt"):
        seed2.load(Options(**paths | {"quantizer": None}))


def test_painting_names_the_folder_it_misses(paths: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"options\.unclip: expected the path of the folder stable-diffusion-2-1-unclip"
    ):
        seed2.load_detokenizer(Options(**paths))
    with pytest.raises(TokenizerError, match=r"expected a diffusers folder with model_index\.json"):
        seed2.load_detokenizer(Options(**paths, unclip=tmp_path))


def test_published_heads_do_not_fit_a_tiny_file(paths: dict[str, Any]) -> None:
    """Without a config the published heads hold: 12 do not divide 64."""
    with pytest.raises(TokenizerError, match=r"options\.config must name its heads"):
        seed2.load(Options(**paths | {"config": None}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "expected a JSON"), ('{"vision": {"heads": 0}}', r"vision\.heads: expected a positive number, found 0")],
)
def test_a_config_that_says_nothing_useful_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_unshaped(tmp_path / "config.json")
