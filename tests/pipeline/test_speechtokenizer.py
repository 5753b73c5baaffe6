"""SpeechTokenizer: published files load strictly, and a clip's codes are the package's own in any batch."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechtokenizer import SpeechTokenizer

from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from pipeline.tokenizers.codecs import codec_names, open_detokenizer, open_tokenizer, read_codec_config
from pipeline.tokenizers.rvq import encode_residual
from pipeline.tokenizers.sound_codec import SoundCodec
from pipeline.tokenizers.speechtokenizer import (
    NetworkConfig,
    Options,
    empty_model,
    load,
    load_detokenizer,
    load_model,
    to_network,
    weight_files,
)
from pipeline.tokenizers.weights import check_keys
from shards.errors import ConfigError, TokenizerError
from shards.modality import Modality
from tests.fixtures.speechtokenizer_checkpoints import PUBLISHED, TINY, save_state, voice, write_checkpoint

ACTIVATIONS = ("ELU", "Snake")
ALPHAS = 26


def options_for(config: Path, checkpoint: Path, **changes: Any) -> Options:
    """On the CPU, whatever there is."""
    return Options(config=config, checkpoint=checkpoint, device="cpu", **changes)


@functools.cache
def files(activation: str) -> tuple[Path, Path, SpeechTokenizer]:
    """A tiny checkpoint, and the package's model of the same weights; once a session."""
    folder = Path(tempfile.mkdtemp(prefix="speechtokenizer-"))
    return write_checkpoint(folder, activation=activation)


def codec_of(model: Any, options: Options) -> SoundCodec:
    """A codec of a model that a test has changed."""
    return SoundCodec("speechtokenizer", Modality.SPEECH, to_network(model, options.precision), options, fingerprint="")


@functools.cache
def codec(activation: str = "ELU", precision: str = "fp32", compiled: bool = False) -> SoundCodec:
    """Ours, of the same files."""
    return load(options_for(*files(activation)[:2], precision=precision, compile=compiled, batch_s=3.0))


def theirs(model: SpeechTokenizer, wave: np.ndarray) -> np.ndarray:
    """The package's own codes of one clip: (frames, 8)."""
    with torch.inference_mode():
        return model.encode(torch.from_numpy(wave)[None, None])[:, 0].t().numpy()


# --- a clip and its neighbours


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.lists(st.integers(1, 16_000), min_size=1, max_size=5), st.integers(0, 10_000))
def test_codes_are_the_packages_own_in_any_batch_of_any_lengths(activation: str, lengths: list[int], seed: int):
    """From one sample on: no length is too short, and no neighbour is noticed."""
    waves = [voice(length, seed=seed + number) for number, length in enumerate(lengths)]
    found = codec(activation).encode(waves)
    for wave, codes in zip(waves, found, strict=True):
        assert codes.dtype == np.uint16 and codes.shape == (-(-len(wave) // 320), 8)
        assert np.array_equal(codes, theirs(files(activation)[2], wave))
        assert np.array_equal(codes, codec(activation).encode([wave])[0])


def test_the_made_up_checkpoints_use_many_codes_so_that_equality_means_something():
    """On every level."""
    codes = codec().encode([voice(48_000, seed=5)])[0]
    assert all(len(np.unique(codes[:, level])) > 30 for level in range(8))


def test_a_batch_that_is_only_padded_with_zeros_would_have_other_codes():
    """The package's own encoder on such a batch, so that the law above is known to see the mistake."""
    short, long = voice(4_000, seed=1), voice(8_000, seed=2)
    batch = torch.from_numpy(np.stack([np.pad(short, (0, 4_000)), long]))[:, None]
    with torch.inference_mode():
        careless = files("ELU")[2].encode(batch)[:, 0, :13].t().numpy()
    assert not np.array_equal(careless, codec().encode([short])[0])


def test_many_clips_come_back_in_order_from_several_batches():
    """More clips, and more seconds, than a batch holds."""
    waves = [voice(1_000 + 997 * (number * 7 % 11), seed=number) for number in range(11)]
    small = load(options_for(*files("ELU")[:2], batch_s=0.5, batch_items=3))
    for one, other in zip(small.encode(waves), codec().encode(waves), strict=True):
        assert np.array_equal(one, other)
    assert small.encode([]) == [] and small.decode([]) == []


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=5), st.integers(0, 1000))
def test_waves_are_the_packages_own_in_any_batch(shapes: list[tuple[int, int]], seed: int):
    """Of different lengths and different numbers of levels, together."""
    random = np.random.default_rng(seed)
    items = [random.integers(0, 1024, shape).astype(np.uint16) for shape in shapes]
    for codes, wave in zip(items, codec().decode(items), strict=True):
        with torch.inference_mode():
            expected = files("ELU")[2].decode(torch.from_numpy(codes.astype(np.int64)).t()[:, None])[0, 0]
        assert wave.dtype == np.float32 and wave.shape == (len(codes) * 320,)
        np.testing.assert_allclose(wave, expected.numpy(), rtol=0, atol=1e-5)


def test_upper_levels_alone_decode_as_the_packages_st():
    """``decode(codes[1:], st=1)``."""
    codes = np.random.default_rng(0).integers(0, 1024, (30, 7)).astype(np.uint16)
    with torch.inference_mode():
        expected = files("ELU")[2].decode(torch.from_numpy(codes.astype(np.int64)).t()[:, None], st=1)[0, 0]
    np.testing.assert_allclose(codec().decode_levels([codes], first_level=1)[0], expected.numpy(), atol=1e-5)


def test_folding_changes_no_code_and_leaves_no_norm():
    """The package's model keeps its weight norm, and has the same codes (the law above); ours has none left."""
    model, _ = load_model(*files("ELU")[:2])
    assert any(name.endswith("weight_g") for name, _ in model.named_parameters())
    codec_of(model, options_for(*files("ELU")[:2]))
    left = [name for name, _ in model.named_parameters() if name.endswith(("weight_g", "weight_v"))]
    assert left == []


# --- precision


def test_half_precision_of_the_encoder_moves_few_codes_and_is_another_fingerprint():
    """Rounding in the latents, none in the look-up: level 1 hardly moves."""
    wave = voice(32_000, seed=3)
    full, half = codec().encode([wave])[0], codec("ELU", "fp16").encode([wave])[0]
    assert np.abs(codec("ELU", "fp16").latents([wave])[0] - codec().latents([wave])[0]).max() < 0.1
    assert (full[:, 0] == half[:, 0]).mean() >= 0.97
    assert codec().fingerprint != codec("ELU", "fp16").fingerprint


def test_half_precision_keeps_the_factors_of_snake_in_float32():
    """Their reciprocals would overflow."""
    model, _ = load_model(*files("Snake")[:2])
    with torch.no_grad():
        next(value for name, value in model.encoder.named_parameters() if name.endswith("alpha")).fill_(1e-8)
    broken = codec_of(model, options_for(*files("Snake")[:2], precision="fp16"))
    assert np.isfinite(broken.latents([voice(4_000, seed=1)])[0]).all()


def test_tf32_is_float32_where_there_are_no_matrix_units():
    """On a CPU; the fingerprint tells them apart all the same, for the next machine may have them."""
    wave = voice(8_000, seed=4)
    assert np.array_equal(codec("ELU", "tf32").encode([wave])[0], codec().encode([wave])[0])
    assert codec("ELU", "tf32").fingerprint != codec().fingerprint


def test_latents_in_half_precision_are_refused_by_the_look_up():
    """The guard behind the rule."""
    codebooks = torch.zeros(8, 4, 3)
    with pytest.raises(ValueError, match="float32"):
        encode_residual(torch.zeros(2, 3, dtype=torch.float16), codebooks)


def test_an_encoder_that_overflows_is_an_error_and_no_code():
    """The largest of nothing that is a number is code 0."""
    model, _ = load_model(*files("ELU")[:2])
    with torch.no_grad():
        next(value for name, value in model.encoder.named_parameters() if name.endswith("weight_g")).fill_(1e6)
    broken = codec_of(model, options_for(*files("ELU")[:2], precision="fp16"))
    with pytest.raises(TokenizerError, match="use fp32"):
        broken.encode([voice(4_000, seed=1)])


def test_the_convolutions_are_one_graph_without_a_break_for_any_lengths():
    """So compiling pays; the LSTM stays outside."""
    model = codec()
    x, lengths = torch.zeros(2, 1, 3_200), torch.tensor([3_200, 2_100])
    explanation = torch._dynamo.explain(model._front)(x, lengths)
    assert explanation.graph_count == 1 and explanation.graph_break_count == 0


# --- files


@pytest.mark.parametrize(("activation", "keys"), [("ELU", 166), ("Snake", 166 + ALPHAS)])
def test_the_tiny_checkpoints_have_the_published_number_of_keys(activation: str, keys: int):
    """What the rest of this file loads is the published layout."""
    assert len(torch.load(files(activation)[1], weights_only=True)) == keys


def test_the_full_size_network_has_the_published_shapes():
    """On ``meta``: no value is made."""
    model = empty_model(NetworkConfig(**PUBLISHED))
    state = model.state_dict()
    assert sum(one.numel() for one in model.parameters()) == 103_675_586
    assert sum(one.numel() for one in state.values()) == 120_461_002
    assert len(state) == 166
    assert state["encoder.model.13.lstm.weight_ih_l1_reverse"].shape == (4096, 2048)
    assert state["quantizer.vq.layers.7._codebook.embed"].shape == (1024, 1024)
    snake = empty_model(NetworkConfig(**PUBLISHED | {"activation": "Snake"})).state_dict()
    added = {key: tuple(one.shape) for key, one in snake.items() if key not in state}
    assert len(added) == ALPHAS
    assert all(key.endswith(".alpha") and shape[::2] == (1, 1) for key, shape in added.items())


def test_nested_and_flat_files_are_the_same_codec(tmp_path: Path):
    """Down to the fingerprint, which is of the weights and not of the file."""
    config, flat, model = files("ELU")
    nested = load(options_for(config, save_state(tmp_path, dict(model.state_dict()), nested=True)))
    assert nested.fingerprint == codec().fingerprint == load(options_for(config, flat)).fingerprint
    wave = voice(5_000, seed=6)
    assert np.array_equal(nested.encode([wave])[0], codec().encode([wave])[0])


def test_another_weight_is_another_fingerprint_but_what_decides_no_code_is_not(tmp_path: Path):
    """The decoder and the training's averages are outside."""
    config, _, model = files("ELU")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["decoder.model.0.conv.conv.bias"] += 1
    state["quantizer.vq.layers.0._codebook.embed_avg"] += 1
    assert load(options_for(config, save_state(tmp_path, state))).fingerprint == codec().fingerprint
    state["quantizer.vq.layers.7._codebook.embed"] += 1
    (tmp_path / "other").mkdir()
    assert load(options_for(config, save_state(tmp_path / "other", state))).fingerprint != codec().fingerprint


@pytest.mark.parametrize("fault", ["missing", "not known", "of another shape"])
def test_one_wrong_key_is_named(tmp_path: Path, fault: str):
    """A module that keeps a random tensor answers without complaint."""
    config, _, model = files("ELU")
    state, key = dict(model.state_dict()), "encoder.model.13.lstm.weight_hh_l1_reverse"
    value = state.pop(key)
    if fault == "not known":
        state |= {key: value, "encoder.model.99.bias": value}
        key = "encoder.model.99.bias"
    if fault == "of another shape":
        state[key] = value[:-1]
    with pytest.raises(TokenizerError, match=f"1 {fault}: {key}"):
        load(options_for(config, save_state(tmp_path, state)))


def test_the_full_size_file_does_not_fit_the_tiny_network():
    """Sizes come from the config, and both must belong together."""
    state = empty_model(NetworkConfig(**PUBLISHED)).state_dict()
    expected = {key: tuple(one.shape) for key, one in empty_model(NetworkConfig(**TINY)).state_dict().items()}
    with pytest.raises(TokenizerError, match="of another shape"):
        check_keys(expected, state, where="a file")


@pytest.mark.parametrize("fault", ["inited", "zeros", "not finite"])
def test_codebooks_that_were_never_filled_are_an_error_and_no_zeros(tmp_path: Path, fault: str):
    """The package answers zeros for every sound."""
    config, _, model = files("ELU")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    prefix = "quantizer.vq.layers.2._codebook."
    if fault == "inited":
        state[prefix + "inited"].zero_()
    else:
        state[prefix + "embed"].fill_(0 if fault == "zeros" else torch.nan)
    with pytest.raises(TokenizerError, match="trained codebooks, found level 3"):
        load(options_for(config, save_state(tmp_path, state)))


@pytest.mark.parametrize(
    "changes",
    [{"sample_rate": 24_000}, {"strides": [8, 5, 4, 4]}, {"n_q": 4}, {"codebook_size": 2048}],
    ids=["rate", "hop", "levels", "codes"],
)
def test_a_network_that_breaks_table_1_is_refused(tmp_path: Path, changes: dict[str, Any]):
    """Its codes would be written as speech of another rate."""
    _write_config(tmp_path, TINY | changes)
    with pytest.raises(TokenizerError, match="Table 1"):
        load(options_for(tmp_path / "config.json", files("ELU")[1]))


def test_a_config_that_is_none_is_named_with_its_field(tmp_path: Path):
    """Missing, of another kind, and no JSON at all."""
    for content, named in (
        ({key: value for key, value in TINY.items() if key != "n_filters"}, "n_filters"),
        (TINY | {"activation": "Tanh"}, "activation"),
        ("no json", "JSON"),
    ):
        _write_config(tmp_path, content)
        with pytest.raises(TokenizerError, match=named):
            load(options_for(tmp_path / "config.json", files("ELU")[1]))


def test_files_that_are_not_there_are_named_with_their_option(tmp_path: Path):
    """And where people get them."""
    with pytest.raises(TokenizerError, match=r"options\.config = .*gone"):
        load(options_for(tmp_path / "gone", files("ELU")[1]))
    with pytest.raises(TokenizerError, match=r"options\.checkpoint = .*AnyGPT-speech-modules"):
        load(options_for(files("ELU")[0], tmp_path / "gone"))


def test_a_config_file_opens_the_codec_both_ways(tmp_path: Path, repository: Path):
    """The shipped one names published files; the same with the tiny ones opens."""
    assert "speechtokenizer" in codec_names()
    shipped = repository / "configs" / "tokenizers" / "speechtokenizer.toml"
    _, shipped_options = read_codec_config(shipped)
    assert [one.option for one in weight_files(shipped_options)] == ["config", "checkpoint"]
    config, checkpoint, _ = files("ELU")
    path = tmp_path / "speech.toml"
    path.write_text(
        f'codec = "speechtokenizer"\n[options]\nconfig = "{config}"\ncheckpoint = "{checkpoint}"\ndevice = "cpu"\n',
        encoding="utf-8",
    )
    tokenizer, detokenizer = (opener(path, Modality.SPEECH) for opener in (open_tokenizer, open_detokenizer))
    assert isinstance(tokenizer, MediaTokenizer) and isinstance(detokenizer, MediaDetokenizer)
    assert len(detokenizer.decode(tokenizer.encode([voice(700, seed=0)]))[0]) == 960
    assert isinstance(load_detokenizer(options_for(config, checkpoint)), SoundCodec)
    with pytest.raises(ConfigError, match="expected a codec for music"):
        open_tokenizer(path, Modality.MUSIC)


# --- what comes in


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(0, np.float32),
        np.full(4_000, np.nan, np.float32),
        np.zeros((2, 4_000), np.float32),
        np.zeros(4_000, np.float64),
    ],
    ids=["empty", "nan", "stereo", "float64"],
)
def test_what_is_no_wave_is_refused(wave: np.ndarray):
    """Also as one among good ones."""
    with pytest.raises(ValueError, match="speechtokenizer: expected"):
        codec().encode([voice(2_000, seed=0), wave])


@pytest.mark.parametrize(
    "codes",
    [np.zeros((0, 8), np.uint16), np.zeros((5, 9), np.uint16), np.full((5, 8), 1024, np.uint16)],
    ids=["empty", "too many levels", "out of range"],
)
def test_what_is_no_code_is_refused(codes: np.ndarray):
    """Code 1024 stands for none in our batches, and may not come from outside."""
    with pytest.raises(ValueError, match="speechtokenizer: expected codes"):
        codec().decode([codes])


@given(st.integers(1, 10**9))
def test_every_started_frame_counts(samples: int):
    """ceil(samples / 320)."""
    assert codec().frames_for(samples) == -(-samples // 320)


def _write_config(folder: Path, content: Any) -> None:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
