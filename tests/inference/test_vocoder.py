"""SoundStorm's sampler, and the vocoder that speaks with a speech codec."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from configs.load import load_config
from inference.soundstorm_files import load_network
from inference.soundstorm_sampling import (
    PUBLISHED_STEPS,
    SpeechItem,
    fill_levels,
    fill_levels_of_all,
    gumbel_noise,
    hidden_after,
    no_noise,
)
from inference.vocoder import (
    SoundStormVocoder,
    VocoderConfig,
    encode_prompt,
    load_vocoder,
    prompt_from_channels,
    read_prompt,
    weight_files,
)
from pipeline.tokenizers import compact
from pipeline.tokenizers.base import MediaDetokenizer
from shards.errors import ConfigError, TokenizerError
from shards.vocabulary import Codes, Modality
from tests.fixtures import soundstorm_checkpoints, speechtokenizer_checkpoints
from tests.fixtures.fitted_codecs import speech_codec, speech_tensors, spoken
from tests.fixtures.soundstorm_checkpoints import TINY, plain_compat_codes, tiny_state, write_checkpoint
from train.soundstorm import SoundStorm, SoundStormConfig
from train.soundstorm_keys import Layout, from_published

SIZES = SoundStormConfig(dim=TINY.dim, depth=TINY.depth, heads=TINY.heads, head_dim=TINY.head_dim)
ANYWHERE = VocoderConfig(soundstorm=Path("none.pt"), codec=Path("none.toml"), device="cpu")


@functools.cache
def network() -> SoundStorm:
    """The tiny one, sampling."""
    made = SoundStorm(SIZES)
    made.load_state_dict(from_published(tiny_state(), SIZES, Layout.ANYGPT))
    return made.eval().requires_grad_(False)


def item(frames: int, prompt_frames: int = 0, seed: int = 0) -> SpeechItem:
    """Random codes; no prompt if it would have no frame."""
    draws = np.random.Generator(np.random.PCG64(seed))
    semantic = draws.integers(TINY.codes, size=frames)
    prompt = draws.integers(TINY.codes, size=(prompt_frames, TINY.levels + 1)).astype(np.uint16)
    return SpeechItem(semantic, f"item {seed}", prompt if prompt_frames else None)


def equal(left: list[Codes], right: list[Codes]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


class WatchedNetwork(SoundStorm):
    """Remembers the codes of every pass."""

    def __init__(self) -> None:
        super().__init__(SIZES)
        self.seen: list[torch.Tensor] = []

    def hidden(
        self, semantic_BN: torch.Tensor, codes_BNQ: torch.Tensor, mask_BN: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.seen.append(codes_BNQ.clone())
        return super().hidden(semantic_BN, codes_BNQ, mask_BN)


def watched() -> WatchedNetwork:
    made = WatchedNetwork()
    made.load_state_dict(from_published(tiny_state(), SIZES, Layout.ANYGPT))
    return made


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), min_size=2, max_size=4),
    st.booleans(),
    st.integers(0, 99),
)
def test_items_of_any_lengths_get_in_one_batch_what_they_get_alone(
    lengths: list[tuple[int, int]], compat: bool, seed: int
) -> None:
    items = [item(frames, prompt, number) for number, (frames, prompt) in enumerate(lengths)]
    together = fill_levels_of_all(network(), items, seed=seed, compat=compat)
    alone = [fill_levels(network(), i.semantic, i.prompt, key=i.key, seed=seed, compat=compat) for i in items]
    assert equal(together, alone)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 15), st.integers(1, 5), st.booleans(), st.booleans())
def test_the_answer_keeps_the_first_level_and_fills_the_rest(
    frames: int, prompt: int, steps: int, compat: bool, greedy: bool
) -> None:
    one = item(frames, prompt)
    codes = fill_levels(network(), one.semantic, one.prompt, key="a", steps=steps, compat=compat, greedy=greedy)
    assert codes.shape == (frames, TINY.levels + 1)
    assert codes.dtype == np.uint16
    assert np.array_equal(codes[:, 0], one.semantic)
    assert codes.max() < TINY.codes, "a frame is still hidden"


@pytest.mark.parametrize("prompt", [0, 9])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_compat_is_upstreams_sampler_rule_by_rule(steps: int, prompt: int) -> None:
    one = item(14, prompt, seed=steps)
    known = np.zeros((0, TINY.levels + 1), np.int64) if one.prompt is None else one.prompt.astype(np.int64)

    def logits_of(semantic: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return network()(torch.from_numpy(semantic)[None], torch.from_numpy(codes)[None])[0].double().numpy()

    expected = plain_compat_codes(logits_of, one.semantic, known, steps=steps)
    found = fill_levels(network(), one.semantic, one.prompt, key="a", steps=steps, compat=True, noise=no_noise)
    assert np.array_equal(found, expected)
    here = fill_levels(network(), one.semantic, one.prompt, key="a", steps=steps, noise=no_noise)
    assert not np.array_equal(here, expected)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_there_are_steps_and_one_and_six_passes(steps: int, compat: bool) -> None:
    watcher = watched()
    fill_levels_of_all(watcher, [item(9, 4), item(5)], steps=steps, compat=compat)
    assert len(watcher.seen) == steps + 1 + 6


def test_the_prompt_stays_and_levels_not_decided_yet_stay_hidden() -> None:
    """As in training: when a level is predicted, those below are known and those above hidden."""
    watcher, one = watched(), item(12, 7)
    fill_levels_of_all(watcher, [one], steps=3)
    assert one.prompt is not None
    hidden = [seen[0, 7:] == SIZES.mask_id for seen in watcher.seen]
    for seen in watcher.seen:
        assert np.array_equal(seen[0, :7], one.prompt[:, 1:])
    for level, mask in enumerate(hidden[3:]):
        assert level == 0 or not mask[:, :level].any()
        assert mask[:, max(level, 1) :].all()
    assert [int(mask[:, 0].sum()) for mask in hidden[:4]] == [12, 12, 10, 6], "floor(12 cos(pi/2 i/3))"


def test_compat_lets_the_prompt_be_overwritten() -> None:
    watcher, one = watched(), item(12, 7)
    fill_levels_of_all(watcher, [one], steps=1, compat=True)
    assert one.prompt is not None
    assert np.array_equal(watcher.seen[1][0, :7], one.prompt[:, 1:])
    assert not np.array_equal(watcher.seen[-1][0, :7], one.prompt[:, 1:])


def test_the_voice_of_a_prompt_is_heard_in_the_codes() -> None:
    one = item(20)
    first, second = (fill_levels(network(), one.semantic, item(9, 9, seed).prompt, key="a") for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_the_seed_and_the_key_decide_and_nothing_else() -> None:
    one = item(20, 5)
    first, again, other_seed, other_key = (
        fill_levels(network(), one.semantic, one.prompt, key=key, seed=seed)
        for key, seed in (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    )
    torch.rand(3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_key)
    assert not torch.equal(gumbel_noise(0, "a", 1, (4,)), gumbel_noise(0, "a", 2, (4,)))


def test_gumbel_noise_makes_the_argmax_a_draw_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(0, "a", 0, (20_000, 3))).argmax(-1).bincount(minlength=3) / 20_000
    torch.testing.assert_close(draws, logits.softmax(0), atol=0.015, rtol=0)


def test_one_step_is_the_same_whatever_the_noise_with_upstreams_greed() -> None:
    """The only pass that hides anything has temperature 0, and the last takes the likeliest."""
    one = item(20, 5)
    for greedy in (True, False):
        first, second = (
            fill_levels(network(), one.semantic, one.prompt, key="a", steps=1, seed=seed, greedy=greedy)
            for seed in (1, 2)
        )
        assert np.array_equal(first, second) == greedy


def test_fewer_are_hidden_after_every_pass_and_none_after_the_last() -> None:
    counts = [int(hidden_after(number, 4, torch.tensor([650]))[0]) for number in range(5)]
    assert counts == [650, 600, 459, 248, 0]


@pytest.mark.parametrize(
    ("semantic", "prompt", "message"),
    [
        (np.zeros(0, np.int64), None, "at least one, found"),
        (np.array([1024]), None, r"codes in \[0, 1024\), found 1024"),
        (np.array([1]), np.zeros((3, 7), np.uint16), r"prompt \(frames, 8\), found \(3, 7\)"),
        (np.array([1]), np.full((3, 8), 1024, np.uint16), "prompt codes"),
    ],
)
def test_codes_the_network_does_not_know_are_refused(
    semantic: np.ndarray, prompt: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fill_levels(network(), semantic, prompt, key="a")
    with pytest.raises(ValueError, match="at least one step"):
        fill_levels(network(), np.array([1]), key="a", steps=0)


@pytest.mark.parametrize("result", ["steps1.prompted.codes", "steps1.unprompted.codes", "steps3.", "steps4."])
def test_parity_compat_samples_are_upstreams(parity: Path, result: str) -> None:
    folder = parity / "soundstorm"
    expected = load_file(folder / "expected.safetensors")
    name = next(key for key in expected if key.startswith(result))
    prompt = expected["prompt_tokens"][0].numpy() if ".prompted" in name else None
    for file in folder.glob("*.pt"):
        found = fill_levels(
            load_network(file, folder / "config.json"),
            expected["semantic_tokens"][0].numpy(),
            prompt,
            key="any",
            steps=int(name.removeprefix("steps").split(".")[0]),
            compat=True,
            noise=no_noise if name.endswith("zero_noise") else gumbel_noise,
        )
        assert np.array_equal(found, expected[name][0].numpy()), file.name


@functools.cache
def voice() -> np.ndarray:
    """The codes of a prompt, from the compact codec."""
    return encode_prompt(speech_codec(), spoken(3)[2][:24_000])


def vocoder(**keys: object) -> SoundStormVocoder:
    return SoundStormVocoder(network(), speech_codec(), ANYWHERE.model_copy(update=keys), prompt=voice())


def test_first_level_codes_become_sound_of_their_length() -> None:
    codes = [speech_codec().encode([wave])[0][:, :1] for wave in spoken(2)]
    made = vocoder()
    assert isinstance(made, MediaDetokenizer)
    waves = made.decode(codes)
    for one, wave, filled in zip(codes, waves, made.fill(codes), strict=True):
        assert wave.shape == (len(one) * 320,)
        assert wave.dtype == np.float32
        assert np.array_equal(wave, speech_codec().decode([filled])[0])
        assert np.array_equal(filled[:, :1], one)


def test_codes_of_all_levels_go_to_the_codec_as_they_are() -> None:
    full = speech_codec().encode([spoken(1)[0]])[0]
    mixed = vocoder().fill([full[:5, :1], full, full[3:9, :1]])
    assert np.array_equal(mixed[1], full)
    assert [one.shape for one in mixed] == [(5, 8), full.shape, (6, 8)]
    assert vocoder().decode([]) == []
    with pytest.raises(ValueError, match="1 or all 8 levels"):
        vocoder().fill([full[:, :3]])
    with pytest.raises(ValueError, match=r"codes in \[0, 1024\)"):
        vocoder().fill([np.array([[1024]], np.uint16)])


def test_batches_of_any_size_say_the_same() -> None:
    codes = [item(frames, seed=frames).semantic[:, None].astype(np.uint16) for frames in (3, 30, 17, 30, 8)]
    whole = vocoder(batch_items=16).fill(codes)
    assert equal(whole, vocoder(batch_items=1).fill(codes))
    assert equal(whole, vocoder(batch_frames=120).fill(codes))
    assert not equal(whole, vocoder(seed=1).fill(codes))
    assert not equal(whole, vocoder(compat=True).fill(codes))


def test_a_config_makes_a_vocoder_with_the_voice_of_a_file(tmp_path: Path) -> None:
    """All of it from files: SoundStorm, the codec, and a stereo prompt of another rate, longer than is used."""
    config = write_config(tmp_path, prompt=tmp_path / "voice.wav", prompt_s=0.5, steps=2)
    stereo = np.stack([spoken(1)[0], spoken(1)[0][::-1]], axis=1)
    soundfile.write(tmp_path / "voice.wav", stereo, 22_050, subtype="FLOAT")
    made = load_vocoder(config)
    mean = prompt_from_channels(stereo, 22_050, 16_000, prompt_s="whole")
    expected = speech_codec().encode([mean[:8_000]])[0]
    assert made.prompt is not None
    assert made.prompt.shape == (25, 8)
    assert np.array_equal(made.prompt, expected)
    one = item(10)
    codes = one.semantic[:, None].astype(np.uint16)
    in_a_voice = made.decode([codes])[0]
    assert in_a_voice.shape == (3_200,)
    assert not np.array_equal(in_a_voice, load_vocoder(config, ["seed=7"]).decode([codes])[0])
    assert not np.array_equal(in_a_voice, vocoder(steps=2).decode([codes])[0])
    whole = load_vocoder(config, ['prompt_s="whole"'])
    assert whole.prompt is not None
    assert len(whole.prompt) == -(-len(mean) // 320)


def test_published_files_of_both_models_speak_together(tmp_path: Path) -> None:
    """SoundStorm and SpeechTokenizer from files in the published layouts, end to end."""
    sizes, checkpoint, _ = speechtokenizer_checkpoints.write_checkpoint(tmp_path / "speechtokenizer")
    codec = tmp_path / "speechtokenizer.toml"
    codec.write_text(
        f'codec = "speechtokenizer"\n[options]\nconfig = "{sizes}"\ncheckpoint = "{checkpoint}"\ndevice = "cpu"\n',
        encoding="utf-8",
    )
    soundfile.write(tmp_path / "voice.wav", speechtokenizer_checkpoints.voice(70_000, seed=1), 16_000)
    config = write_config(tmp_path, codec=codec, prompt=tmp_path / "voice.wav")
    made = load_vocoder(config)
    assert made.prompt is not None
    assert made.prompt.shape == (150, 8), "three seconds of a longer file"
    waves = made.decode([item(frames, seed=frames).semantic[:, None].astype(np.uint16) for frames in (6, 11)])
    assert [wave.shape for wave in waves] == [(1_920,), (3_520,)]
    assert all(np.isfinite(wave).all() and wave.std() > 0 for wave in waves)
    files = weight_files(load_config(config, VocoderConfig))
    assert [file.option for file in files] == ["soundstorm", "config", "prompt", "config", "checkpoint"]
    assert all(file.path is not None and file.path.exists() for file in files)


def test_a_mono_prompt_is_only_resampled_and_cut() -> None:
    wave = spoken(1)[0]
    assert np.array_equal(prompt_from_channels(wave, 16_000, 16_000, prompt_s="whole"), wave)
    assert len(prompt_from_channels(wave, 16_000, 16_000, prompt_s=0.25)) == 4_000
    for bad in (np.zeros(0), np.zeros((2, 2, 2)), np.array([np.nan])):
        with pytest.raises(ValueError, match="finite samples"):
            prompt_from_channels(bad, 16_000, 16_000)


def test_a_prompt_or_a_codec_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"prompt = .*none\.wav: expected a sound file, found none"):
        read_prompt(tmp_path / "none.wav", 16_000)
    (tmp_path / "text.wav").write_text("no sound", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"prompt = .*text\.wav: expected a voice; sound_unreadable"):
        read_prompt(tmp_path / "text.wav", 16_000)
    with pytest.raises(ConfigError, match="prompt_s"):
        load_vocoder(write_config(tmp_path, prompt_s=0))
    with pytest.raises(ConfigError, match="expected a codec for speech, found nothing"):
        load_vocoder(write_config(tmp_path, codec=tmp_path / "none.toml"))
    fewer = dataclasses.replace(TINY, levels=3)
    state = soundstorm_checkpoints.tiny_state(sizes=fewer)
    with pytest.raises(TokenizerError, match=r"expected 4 levels of 1024 codes .* found 8 of 1024"):
        load_vocoder(write_config(tmp_path, state=state))


def test_the_shipped_config_is_the_published_vocoder(repository: Path) -> None:
    path = repository / "configs" / "vocoders" / "soundstorm.toml"
    config = load_config(path, VocoderConfig)
    assert config.steps == PUBLISHED_STEPS
    assert config.prompt_s == 3.0
    assert not config.compat
    assert (repository / config.codec).is_file()
    with pytest.raises(TokenizerError, match="expected speechtokenizer_soundstorm_mls"):
        load_vocoder(config.model_copy(update={"soundstorm": Path("nowhere.pt")}))


def test_parity_prompts_are_averaged_and_spoken_with(parity: Path, tmp_path: Path) -> None:
    folder = parity / "speechtokenizer"
    for model in ("elu", "snake"):
        expected = load_file(folder / model / "expected.safetensors")
        key = next(one for one in expected if one.endswith(".prompt_mean.codes"))
        checkpoint = next(one for one in (folder / model).iterdir() if one.suffix in (".pt", ".dev"))
        codec = tmp_path / f"{model}.toml"
        codec.write_text(
            f'codec = "speechtokenizer"\n[options]\nconfig = "{folder / model / "config.json"}"\n'
            f'checkpoint = "{checkpoint}"\ndevice = "cpu"\n',
            encoding="utf-8",
        )
        wave = folder / "audio" / f"{key.removesuffix('.prompt_mean.codes')}.wav"
        for soundstorm in (parity / "soundstorm").glob("*.pt"):
            config = VocoderConfig(soundstorm=soundstorm, codec=codec, prompt=wave, device="cpu", steps=1)
            made = load_vocoder(config)
            assert made.prompt is not None
            assert np.array_equal(made.prompt.T, expected[key].numpy()[:, : len(made.prompt)])
            assert made.decode([np.arange(7, dtype=np.uint16)[:, None]])[0].shape == (7 * 320,)


def write_config(folder: Path, *, state: dict[str, torch.Tensor] | None = None, **keys: object) -> Path:
    """A vocoder config, its SoundStorm, and the compact codec unless another is named."""
    if "codec" not in keys:
        keys["codec"] = folder / "compact.safetensors"
        compact.save_family(folder / "compact.safetensors", {Modality.SPEECH: speech_tensors()})
    soundstorm = write_checkpoint(folder / "soundstorm", tiny_state() if state is None else state)
    lines = [f"soundstorm = {str(soundstorm)!r}", "device = 'cpu'"]
    lines += [
        f"{key} = {str(value) if isinstance(value, int | float) else repr(str(value))}" for key, value in keys.items()
    ]
    path = folder / "vocoder.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
