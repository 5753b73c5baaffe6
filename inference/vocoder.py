"""Speech from the language model's codes: SoundStorm fills the other seven levels, a speech codec makes the sound.

:class:`SoundStormVocoder` is a ``MediaDetokenizer``, so whatever decodes speech can be given one. Codes of one level, as the
language model writes them, go through SoundStorm; codes of all levels need none of it and go to the codec as they are.

The voice is that of a prompt: a few seconds of anybody speaking, whose codes stand before what is to be said. A prompt's
channels are averaged after resampling, where a corpus takes the first (tokenizers sheet 2.4). Upstream uses the whole file
and publishes files of three seconds; here longer ones are cut to ``prompt_s`` unless that is ``whole``. Without a prompt
the voice is whatever the noise makes it. The sampler is :mod:`inference.soundstorm_sampling`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from configs.load import Config, load_config
from inference.soundstorm_files import CONFIG_NAME, PUBLISHED_AS, load_network
from inference.soundstorm_sampling import PUBLISHED_STEPS, SpeechItem, fill_levels, fill_levels_of_all
from pipeline.sounds import SoundConfig, decode_sound, to_mono
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer, Medium, Wave
from pipeline.tokenizers.batching import plan_batches
from pipeline.tokenizers.codecs import WeightFile, codec_weight_files, open_detokenizer, open_tokenizer
from pipeline.tokenizers.precision import arithmetic, encoder_dtype
from pipeline.tokenizers.sounds import checked_codes
from pipeline.tokenizers.weights import Precision, choose_device
from shards.errors import SampleError, TokenizerError
from shards.vocabulary import Codes, Modality
from train.soundstorm import SoundStorm

__all__ = [
    "SoundStormVocoder",
    "SpeechCodec",
    "VocoderConfig",
    "encode_prompt",
    "fill_levels",
    "fill_levels_of_all",
    "load_vocoder",
    "prompt_from_channels",
    "read_prompt",
    "weight_files",
]

_NAME = "soundstorm"
_LONGEST_PROMPT_S = 600.0


class VocoderConfig(Config):
    """A file in ``configs/vocoders``."""

    soundstorm: Path
    """The checkpoint."""
    config: Path | None = None
    """JSON of its sizes; None: ``config.json`` beside it, or the published sizes."""
    codec: Path
    """Speech codec of all levels: a config in ``configs/tokenizers``, or a compact file."""
    prompt: Path | None = None
    """A sound file whose voice is taken."""
    prompt_s: PositiveFloat | Literal["whole"] = 3.0
    """How much of it; upstream takes the whole file."""
    steps: PositiveInt = PUBLISHED_STEPS
    compat: bool = False
    """Upstream's own sampling rules; see :mod:`inference.soundstorm_sampling`."""
    greedy: bool = True
    seed: NonNegativeInt = 0
    device: str = "auto"
    precision: Precision = "fp32"
    batch_items: int = Field(default=16, ge=1)
    batch_frames: int = Field(default=4096, ge=1)
    """At most so many frames in one pass, prompts and padding included."""


class SpeechCodec(MediaTokenizer, MediaDetokenizer, Protocol):
    """A speech codec, both ways."""


class SoundStormVocoder:
    """Speech codes of one level, or of all, to sound; implements ``MediaDetokenizer``."""

    name = _NAME
    modality = Modality.SPEECH

    def __init__(
        self, network: SoundStorm, codec: MediaDetokenizer, config: VocoderConfig, *, prompt: Codes | None = None
    ) -> None:
        """Take over a loaded network, which is moved to the device.

        Args:
            codec: decodes codes of all levels.
            config: how to sample; its paths are not read.
            prompt: (frames, levels) codes of a voice; see :func:`encode_prompt`.
        """
        self.sample_rate_hz = codec.sample_rate_hz
        self.prompt = prompt
        self._codec = codec
        self._config = config
        self._network = network.to(choose_device(config.device), encoder_dtype(config.precision)).eval()

    def decode(self, batch: Sequence[Codes]) -> list[Medium]:
        """(samples,) float32 per item.

        The noise of an item depends on the seed and its codes, so it sounds the same alone, in a batch, and again.

        Args:
            batch: (frames, 1) first-level codes, or (frames, levels) codes of all levels.

        Raises:
            ValueError: another shape, or a code out of range.
        """
        return self._codec.decode(self.fill(batch))

    def fill(self, batch: Sequence[Codes]) -> list[Codes]:
        """(frames, levels) codes per item; see :meth:`decode`."""
        sizes = self._network.config
        levels, codes = sizes.num_quantizers + 1, max(sizes.codebook_size, sizes.num_semantic)
        filled = [checked_codes(item, levels=levels, codebook_size=codes, name=_NAME) for item in batch]
        if partial := [item.shape for item in filled if 1 < item.shape[1] < levels]:
            raise ValueError(f"{_NAME}: expected codes of 1 or all {levels} levels, found {partial[0]}")
        unfilled = [index for index, item in enumerate(filled) if item.shape[1] == 1]
        items = [SpeechItem(filled[index][:, 0], _key(filled[index]), self.prompt) for index in unfilled]
        before = 0 if self.prompt is None else len(self.prompt)
        lengths = [before + len(item.semantic) for item in items]
        config = self._config
        for indices in plan_batches(lengths, max_items=config.batch_items, max_total=config.batch_frames):
            for index, result in zip(indices, self._sample([items[index] for index in indices]), strict=True):
                filled[unfilled[index]] = result
        return filled

    def _sample(self, items: Sequence[SpeechItem]) -> list[Codes]:
        config = self._config
        with arithmetic(config.precision):
            return fill_levels_of_all(
                self._network, items, steps=config.steps, seed=config.seed, compat=config.compat, greedy=config.greedy
            )


def load_vocoder(source: Path | VocoderConfig, overrides: Sequence[str] = ()) -> SoundStormVocoder:
    """The vocoder of a config, with its codec and its voice.

    Args:
        source: a file in ``configs/vocoders``, or what is in one.
        overrides: ``key=value`` on top of the file.

    Raises:
        ConfigError: a key that is wrong, no such device, no such codec.
        TokenizerError: weights that are missing, cut or of another layout, a codec of other levels, or a prompt that is no
            sound; names the key.
    """
    config = source if isinstance(source, VocoderConfig) else load_config(source, VocoderConfig, overrides)
    network = load_network(config.soundstorm, config.config)
    codec = open_tokenizer(config.codec, Modality.SPEECH)
    _check_codec(codec, network, config)
    decoder = codec if isinstance(codec, MediaDetokenizer) else open_detokenizer(config.codec, Modality.SPEECH)
    prompt = None
    if config.prompt is not None:
        prompt = encode_prompt(codec, read_prompt(config.prompt, codec.sample_rate_hz, prompt_s=config.prompt_s))
    return SoundStormVocoder(network, decoder, config, prompt=prompt)


def weight_files(config: VocoderConfig) -> list[WeightFile]:
    """What must be on disk for a vocoder: SoundStorm's files, the prompt, and the codec's own."""
    sizes = config.config if config.config is not None else config.soundstorm.with_name(CONFIG_NAME)
    files = [
        WeightFile("soundstorm", config.soundstorm, "decode", PUBLISHED_AS),
        WeightFile("config", sizes, "decode", "sizes that are not the published ones", config.config is not None),
    ]
    if config.prompt is not None:
        files.append(WeightFile("prompt", config.prompt, "decode", "three seconds of a voice, as a sound file"))
    return files + codec_weight_files(config.codec)


def read_prompt(path: Path, sample_rate_hz: int, *, prompt_s: float | Literal["whole"] = 3.0) -> Wave:
    """The first seconds of a sound file as a codec wants them: resampled, then its channels averaged.

    Raises:
        TokenizerError: no such file, or no sound in it.
    """
    config = SoundConfig(sample_rate_hz=sample_rate_hz, channel="mean", max_s=_LONGEST_PROMPT_S)
    try:
        data = path.read_bytes()
        return decode_sound(data, config, keep_s=None if prompt_s == "whole" else prompt_s)
    except OSError as error:
        raise TokenizerError(f"prompt = {path}: expected a sound file, found none: {error.strerror}") from error
    except SampleError as error:
        raise TokenizerError(f"prompt = {path}: expected a voice; {error}") from error


def prompt_from_channels(
    samples: np.ndarray, rate_hz: int, sample_rate_hz: int, *, prompt_s: float | Literal["whole"] = 3.0
) -> Wave:
    """As :func:`read_prompt`, from samples at hand.

    Args:
        samples: (samples,) or (samples, channels) float at ``rate_hz``.
        sample_rate_hz: of the codec.

    Raises:
        ValueError: another shape, nothing, or not finite.
        SampleError: a rate that cannot be resampled.
    """
    channels = np.asarray(samples, np.float32)
    if channels.ndim not in (1, 2) or not channels.size or not np.isfinite(channels).all():
        raise ValueError(f"prompt: expected finite samples (samples,) or (samples, channels), found {channels.shape}")
    channels = channels[:, None] if channels.ndim == 1 else channels
    wave = to_mono(channels, rate_hz, SoundConfig(sample_rate_hz=sample_rate_hz, channel="mean"))
    return wave if prompt_s == "whole" else wave[: round(prompt_s * sample_rate_hz)]


def encode_prompt(codec: MediaTokenizer, wave: Wave) -> Codes:
    """(frames, levels) codes of a voice; three seconds are 150 frames.

    Args:
        wave: (samples,) float32 at the codec's rate.
    """
    return codec.encode([wave])[0]


def _check_codec(codec: MediaTokenizer, network: SoundStorm, config: VocoderConfig) -> None:
    sizes = network.config
    expected = (sizes.num_quantizers + 1, sizes.codebook_size, sizes.num_semantic)
    found = (codec.levels, codec.codebook_size, codec.codebook_size)
    if found != expected:
        raise TokenizerError(
            f"codec = {config.codec}: expected {expected[0]} levels of {expected[1]} codes (the first of {expected[2]}) as "
            f"{config.soundstorm} fills them, found {found[0]} of {found[1]}; name the codec it was trained with"
        )


def _key(codes: Codes) -> str:
    return hashlib.blake2b(np.ascontiguousarray(codes, dtype="<u2").tobytes(), digest_size=8).hexdigest()
