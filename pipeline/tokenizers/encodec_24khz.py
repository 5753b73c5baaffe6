"""EnCodec at 24 kHz and 3 kbit/s: any sound at 75 frames a second, 4 levels of 1,024 codes.

The paper has no such medium; the released vocabulary has an unused block of just this size, so this is the example of a
fourth medium. Reads ``encodec_24khz-d7cc33bc.th``, the file of the ``encodec`` package, or the folder
``facebook/encodec_24khz``. The published model has 32 levels; the first 4 are taken, as its own 3 kbit/s does.

The 48 kHz model of the same package is not read: stereo, 150 frames a second, in normalised pieces of a second, it fits no
block of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.encodec_network import check_rate, read_encodec, to_network
from pipeline.tokenizers.precision import encoder_dtype
from pipeline.tokenizers.sound_codec import SoundCodec, SoundCodecOptions
from pipeline.tokenizers.weights import CodecOptions, require_file, state_fingerprint
from shards.modality import Modality

MODALITY = Modality.AUDIO
CODE_VERSION = 1
_NAME = "encodec_24khz"
_PURPOSE = "encodec_24khz-d7cc33bc.th of EnCodec, or the folder facebook/encodec_24khz"

PUBLISHED = {
    "sampling_rate": 24_000,
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "upsampling_ratios": [8, 5, 4, 2],
    "use_causal_conv": True,
    "use_conv_shortcut": True,
    "codebook_size": 1024,
    "num_filters": 32,
    "pad_mode": "reflect",
}
"""What the package's own ``encodec_model_24khz`` is built with."""


class Options(SoundCodecOptions):
    """Files and batches of EnCodec 24 kHz."""

    weights: Path | None = None
    """``encodec_24khz-d7cc33bc.th``, or a Hugging Face folder."""


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
