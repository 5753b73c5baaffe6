"""EnCodec 32 and 24 kHz: every published layout, the package's own codes, and the same codes in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from pipeline.tokenizers import encodec_24khz, encodec_32khz
from pipeline.tokenizers.encodec_network import fold_weight_norm, read_encodec, to_network, use_integer_padding
from pipeline.tokenizers.sound_codec import SoundCodec
from shards.errors import ConfigError, TokenizerError
from tests.fixtures.encodec_checkpoints import (
    CONFIG_32KHZ,
    hf_state,
    package_codes,
    package_model,
    package_wave,
    sounds,
    write_audiocraft,
    write_hf_folder,
)

LENGTHS = [5000, 32_001, 12_799, 2561, 640, 1]


@pytest.fixture(scope="module")
def music_model() -> Any:
    return package_model("32khz")


@pytest.fixture(scope="module")
def music(music_model: Any, tmp_path_factory: pytest.TempPathFactory) -> SoundCodec:
    folder = write_hf_folder(tmp_path_factory.mktemp("encodec"), music_model)
    return encodec_32khz.load(encodec_32khz.Options(weights=folder, device="cpu"))


@pytest.fixture(scope="module")
def audio_model() -> Any:
    return package_model("24khz")


@pytest.fixture(scope="module")
def audio(audio_model: Any, tmp_path_factory: pytest.TempPathFactory) -> SoundCodec:
    path = tmp_path_factory.mktemp("encodec") / "encodec_24khz-d7cc33bc.th"
    torch.save(audio_model.state_dict(), path)
    return encodec_24khz.load(encodec_24khz.Options(weights=path, device="cpu"))


@pytest.fixture(scope="module")
def exact(music_model: Any, audio_model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[SoundCodec]:
    """Both codecs with an encoder that computes in float64."""
    folder = write_hf_folder(tmp_path_factory.mktemp("exact"), music_model)
    path = folder / "encodec_24khz-d7cc33bc.th"
    torch.save(audio_model.state_dict(), path)
    codecs = []
    for module, weights in ((encodec_32khz, folder), (encodec_24khz, path)):
        rate = module.MODALITY.rate
        network = to_network(read_encodec(weights, published=module.PUBLISHED), rate, torch.float64)
        options = module.Options(weights=weights, device="cpu")
        codec = SoundCodec("exact", module.MODALITY, network, options, fingerprint="")
        codec._dtype = torch.float64
        codecs.append(codec)
    return codecs


def test_music_has_the_codes_of_the_encodec_package_on_the_same_weights(music: SoundCodec, music_model: Any):
    """Two libraries, one set of weights: not one code differs, alone or together."""
    waves = sounds(LENGTHS)
    ours = music.encode(waves)
    for wave, codes in zip(waves, ours, strict=True):
        assert np.array_equal(codes, package_codes(music_model, wave))
        assert codes.dtype == np.uint16
        assert codes.shape == (-(-len(wave) // 640), 4)
    assert len(np.unique(np.concatenate(ours))) > 100, "codes that do not vary prove nothing"


def test_audio_has_the_codes_of_the_encodec_package_at_3_kbit_s(audio: SoundCodec, audio_model: Any):
    waves = sounds([24_000, 5000, 1281, 300])
    ours = audio.encode(waves)
    for wave, codes in zip(waves, ours, strict=True):
        assert np.array_equal(codes, package_codes(audio_model, wave))
        assert codes.shape == (-(-len(wave) // 320), 4)
    assert len(np.unique(np.concatenate(ours))) > 100, "codes that do not vary prove nothing"


@pytest.mark.parametrize("kind", ["music", "audio"])
def test_decoding_together_gives_the_waves_of_the_package_alone(kind: str, request: pytest.FixtureRequest):
    codec: SoundCodec = request.getfixturevalue(kind)
    model = request.getfixturevalue(f"{kind}_model")
    codes = codec.encode(sounds([9000, 31_000, 2000]))
    for one, wave in zip(codes, codec.decode(codes), strict=True):
        assert wave.shape == (len(one) * codec.rate.samples_per_frame,)
        assert np.abs(wave - package_wave(model, one)).max() <= 1e-5


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 20_000), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_codes_do_not_depend_on_neighbours(exact: list[SoundCodec], lengths: list[int], seed: int):
    """Alone or in any batch, of any lengths, causal or not: the same codes.

    In float64, where no two codes are equally near: in float32 a matrix product of one row rounds otherwise than one of
    many, by a ten-millionth, and Hypothesis finds the clip where that decides.
    """
    waves = sounds(lengths, seed=seed)
    for codec in exact:
        together = codec.encode(waves)
        for wave, codes in zip(waves, together, strict=True):
            assert np.array_equal(codec.encode([wave])[0], codes)


@settings(max_examples=6)
@given(lengths=st.lists(st.integers(1, 20_000), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_latents_do_not_depend_on_neighbours_but_for_rounding(
    music: SoundCodec, audio: SoundCodec, lengths: list[int], seed: int
):
    waves = sounds(lengths, seed=seed)
    for codec in (music, audio):
        for wave, latents in zip(waves, codec.latents(waves), strict=True):
            assert np.abs(codec.latents([wave])[0] - latents).max() <= 1e-5 * np.abs(latents).max()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("names", ["old", "new"])
def test_every_layout_of_the_same_weights_is_the_same_codec(
    music: SoundCodec, music_model: Any, names: Any, file: str, tmp_path: Path
):
    """Older and newer weight-norm names, safetensors and pickle, audiocraft's export whose config says constant padding."""
    folder = write_hf_folder(tmp_path / "hf", music_model, names=names, file=file)
    exported = write_audiocraft(tmp_path / "compression_state_dict.bin", music_model)
    wave = sounds([7777])
    for path in (folder, exported):
        codec = encodec_32khz.load(encodec_32khz.Options(weights=path, device="cpu"))
        assert codec.fingerprint == music.fingerprint
        assert np.array_equal(codec.encode(wave)[0], music.encode(wave)[0])


def test_precision_is_part_of_the_fingerprint_and_the_device_is_not(music_model: Any, tmp_path: Path):
    folder = write_hf_folder(tmp_path, music_model)
    found = {
        (precision, device): encodec_32khz.load(
            encodec_32khz.Options(weights=folder, precision=precision, device=device)
        ).fingerprint
        for precision in ("fp32", "tf32")
        for device in ("cpu", "auto")
    }
    assert found["fp32", "cpu"] == found["fp32", "auto"] != found["tf32", "cpu"]


def test_the_published_size_has_the_published_parameters():
    config = {**CONFIG_32KHZ, "num_filters": 64, "hidden_size": 128, "codebook_dim": 128}
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**config))
    assert len(model.state_dict()) == 116
    assert sum(one.numel() for one in model.parameters()) == 56_884_674


def test_padding_is_whole_numbers_beyond_the_length_where_floats_fail(music_model: Any, tmp_path: Path):
    """At 2^24 + 1 samples float32 asks for a sample too few, at 2^24 + 3 for one too many; shapes alone decide it."""
    model = EncodecModel(EncodecConfig(**CONFIG_32KHZ)).eval()
    layer: Any = model.encoder.layers[0]
    lengths = (2**24 + 1, 2**24 + 3)
    assert [int(layer._get_extra_padding_for_conv1d(_of_length(length))) for length in lengths] != [0, 0]
    wave = torch.from_numpy(sounds([7777])[0])[None, None]
    with torch.no_grad():
        before = model.encoder(wave)
        use_integer_padding(model)
        assert torch.equal(model.encoder(wave), before)
    assert [layer._get_extra_padding_for_conv1d(_of_length(length)) for length in lengths] == [0, 0]
    assert not any(
        isinstance(getattr(one, name, 0), torch.Tensor) for one in model.modules() for name in ("stride", "kernel_size")
    ), "a tensor would be read back from the device at every layer"


def test_folding_the_weight_norm_changes_no_latent(music_model: Any):
    model = EncodecModel(EncodecConfig(**CONFIG_32KHZ)).eval()
    model.load_state_dict(hf_state(music_model, "new"))
    wave = torch.from_numpy(sounds([7777])[0])[None, None]
    with torch.no_grad():
        before = model.encoder(wave)
        fold_weight_norm(model)
        assert (model.encoder(wave) - before).abs().max() <= 1e-6
    assert not any("parametrizations" in key for key in model.state_dict())


def test_half_precision_of_the_encoder_keeps_the_first_level_and_is_deterministic(music_model: Any, tmp_path: Path):
    """Later levels quantise what rounding left over, so on a small random network many of them flip; the first does not."""
    folder = write_hf_folder(tmp_path, music_model)
    full, half = (
        encodec_32khz.load(encodec_32khz.Options(weights=folder, precision=precision, device="cpu"))
        for precision in ("fp32", "fp16")
    )
    wave = sounds([32_000])
    one, other = full.encode(wave)[0], half.encode(wave)[0]
    assert np.array_equal(other, half.encode(wave)[0])
    assert (one[:, 0] != other[:, 0]).mean() < 0.1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("encoder.layers.0.conv.bias"), "encoder.layers.0.conv.bias"),
        (lambda state: state.update({"encoder.layers.99.bias": torch.zeros(1)}), "encoder.layers.99.bias"),
        (lambda state: state.update({"encoder.layers.0.conv.bias": torch.zeros(5)}), "(5,) instead of (4,)"),
        (lambda state: state["quantizer.layers.2.codebook.embed"].zero_(), "level 3"),
        (lambda state: state["quantizer.layers.0.codebook.embed"].fill_(float("nan")), "level 1"),
    ],
)
def test_a_key_that_is_missing_extra_or_wrong_is_named(music_model: Any, change: Any, named: str, tmp_path: Path):
    folder = write_hf_folder(tmp_path, music_model, file="pytorch_model.bin")
    state = hf_state(music_model, "old")
    change(state)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(TokenizerError) as found:
        encodec_32khz.load(encodec_32khz.Options(weights=folder, device="cpu"))
    assert named in str(found.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling_rate": 24_000}, "quantizer.layers.4"),  # another rate of frames is another number of levels
        ({"sampling_rate": 33_000, "target_bandwidths": [2.3]}, "33000"),
        ({"codebook_size": 1024}, "of another shape"),
        ({"use_conv_shortcut": True}, "missing"),
        ({"model_type": "dac"}, "'dac'"),
        ({"normalize": True}, "48 kHz"),
    ],
)
def test_a_config_of_another_model_is_refused(music_model: Any, change: dict[str, Any], named: str, tmp_path: Path):
    folder = write_hf_folder(tmp_path, music_model)
    (folder / "config.json").write_text(json.dumps({**CONFIG_32KHZ, **change}), encoding="utf-8")
    with pytest.raises(TokenizerError) as found:
        encodec_32khz.load(encodec_32khz.Options(weights=folder, device="cpu"))
    assert named in str(found.value)


def test_a_file_of_the_other_sample_rate_is_refused(audio_model: Any, tmp_path: Path):
    path = tmp_path / "encodec_24khz.th"
    torch.save(audio_model.state_dict(), path)
    with pytest.raises(TokenizerError):
        encodec_32khz.load(encodec_32khz.Options(weights=path, device="cpu"))


def test_files_that_hold_no_weights_are_named(music_model: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"options\.weights"):
        encodec_32khz.load(encodec_32khz.Options(device="cpu"))
    with pytest.raises(TokenizerError, match="found nothing there"):
        encodec_32khz.load(encodec_32khz.Options(weights=tmp_path / "nowhere", device="cpu"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match="empty folder"):
        encodec_32khz.load(encodec_32khz.Options(weights=tmp_path / "empty", device="cpu"))
    torch.save({"best_state": None, "pretrained": "facebook/encodec_32khz"}, tmp_path / "named.bin")
    with pytest.raises(TokenizerError, match="pretrained"):
        encodec_32khz.load(encodec_32khz.Options(weights=tmp_path / "named.bin", device="cpu"))
    broken = write_audiocraft(tmp_path / "broken.bin", music_model, cfg="seanet: {}")
    with pytest.raises(TokenizerError, match=r"xp\.cfg"):
        encodec_32khz.load(encodec_32khz.Options(weights=broken, device="cpu"))
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "stranger.th")
    with pytest.raises(TokenizerError, match="state dict of EnCodec"):
        encodec_24khz.load(encodec_24khz.Options(weights=tmp_path / "stranger.th", device="cpu"))


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(0, np.float32),
        np.full(640, np.nan, np.float32),
        np.zeros((2, 640), np.float32),
        np.zeros(640, np.float64),
    ],
)
def test_a_wave_that_is_none_is_refused(music: SoundCodec, wave: Any):
    with pytest.raises(ValueError, match="encodec_32khz"):
        music.encode([wave])


def _of_length(length: int) -> torch.Tensor:
    """A tensor of that many samples that occupies one."""
    return torch.zeros(1, 1, 1).expand(1, 1, length)


def _parity_waves(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from pipeline.media import MediaConfig
    from pipeline.sounds import decode_sound

    config = MediaConfig().music.model_copy(update={"min_s": 0.0})
    return {path.stem: decode_sound(path.read_bytes(), config) for path in sorted((folder / "audio").glob("*.wav"))}


@pytest.mark.parametrize("file", ["hf", "compression_state_dict.bin"])
def test_parity_codes_latents_and_waves_are_the_authors(parity: Path, file: str):
    """From the wav files through our own front end: every code of every wave, alone and in one batch."""
    from safetensors.numpy import load_file

    folder = parity / "encodec32k"
    expected = load_file(folder / "expected.safetensors")
    codec = encodec_32khz.load(encodec_32khz.Options(weights=folder / file, device="cpu"))
    waves = _parity_waves(folder)
    together = dict(zip(waves, codec.encode(list(waves.values())), strict=True))
    for name, wave in waves.items():
        assert np.array_equal(together[name].T, expected[f"{name}.codes"]), name
        assert np.array_equal(codec.encode([wave])[0], together[name]), name
    latents = next(key for key in expected if key.startswith("latents."))
    name = latents.removeprefix("latents.")
    assert np.abs(codec.latents([waves[name]])[0].T - expected[latents]).max() <= 2e-4
    decoded = codec.decode([expected[f"{name}.codes"].T.astype(np.uint16)])[0]
    assert np.abs(decoded - np.load(folder / "decoded.npy").reshape(-1)).max() <= 1e-4
