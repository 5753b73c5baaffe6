"""EnCodec at 32 kHz, MusicGen's: music at 50 frames a second, 4 levels of 2,048 codes.

Reads ``facebook/encodec_32khz`` as a folder, or audiocraft's ``compression_state_dict.bin``; see
:mod:`pipeline.tokenizers.encodec_network`. AnyGPT took 5 s windows, mono by the mean of the channels after resampling; that
is the front end's business (:mod:`pipeline.media`). Its own files-to-codes function begins at a random offset and ignores
the flag that forbids it; here a window begins where the config says.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.encodec_network import check_rate, read_encodec, to_network
from pipeline.tokenizers.precision import encoder_dtype
from pipeline.tokenizers.sound_codec import SoundCodec, SoundCodecOptions
from pipeline.tokenizers.weights import CodecOptions, require_file, state_fingerprint
from shards.modality import Modality

MODALITY = Modality.MUSIC
CODE_VERSION = 1
_NAME = "encodec_32khz"
_PURPOSE = (
    "the folder facebook/encodec_32khz (config.json, model.safetensors), or audiocraft's compression_state_dict.bin"
)

PUBLISHED = {
    "sampling_rate": 32_000,
    "target_bandwidths": [2.2],
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "codebook_size": 2048,
    "num_filters": 64,
    "pad_mode": "reflect",
}
"""Where it differs from transformers' defaults (tokenizers sheet 3.1)."""


class Options(SoundCodecOptions):
    """Files and batches of EnCodec 32 kHz."""

    weights: Path | None = None
    """A Hugging Face folder, or audiocraft's ``compression_state_dict.bin``."""


def weight_files(options: CodecOptions) -> list[WeightFile]:
    """One folder or file."""
    assert isinstance(options, Options)
    return [WeightFile("weights", options.weights, "encode and decode", _PURPOSE)]


def load(options: CodecOptions) -> SoundCodec:
    """The codec, both ways.

    Raises:
        ConfigError: no path is named, or no such device.
        TokenizerError: weights that are missing, cut, of another layout or of another model.
    """
    assert isinstance(options, Options)
    path = require_file(options.weights, option="options.weights", purpose=_PURPOSE)
    weights = read_encodec(path, published=PUBLISHED)
    rate = MODALITY.rate
    check_rate(weights, rate)
    facts = {"code_version": CODE_VERSION, "precision": options.precision, "network": weights.facts}
    fingerprint = state_fingerprint(_NAME, facts, weights.state(rate.levels_at_rest))
    network = to_network(weights, rate, encoder_dtype(options.precision))
    return SoundCodec(_NAME, MODALITY, network, options, fingerprint=fingerprint)


def load_detokenizer(options: CodecOptions) -> SoundCodec:
    """The same object as :func:`load`: a codec goes both ways."""
    return load(options)
