"""How fast media become codes and codes media, and what a batch gains over one item at a time.

Codecs of the compact family, fitted on a few items of the sample corpora; one core. ``ratio_batched`` is the rate of
batches as stage A makes them over the rate of single items, all modalities together.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.sample_corpora import music, pictures, speech
from pipeline.sample_corpora.sentences import all_sentences
from pipeline.tokenizers.base import Medium
from pipeline.tokenizers.compact import MediaCodec
from pipeline.tokenizers.compact_image import CompactImage, fit_image
from pipeline.tokenizers.compact_music import CompactMusic, fit_music
from pipeline.tokenizers.compact_speech import CompactSpeech, fit_speech

_BATCH = 32
NUM_ITEMS = 2 * _BATCH
NUM_DECODED = 8
ROUNDS = 3


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    figures: dict[str, float] = {}
    singles = batches = 0.0
    print(f"{'codec':<16}{'single/s':>12}{'batched/s':>12}{'decoded/s':>12}{'encode x rt':>14}{'decode x rt':>14}")
    for codec, media in _codecs():
        single, batched, decoded = _times(codec, media)
        sound_s = sum(len(one) for one in media) / codec.sample_rate_hz if codec.sample_rate_hz else 0.0
        rates = [len(media) / single, len(media) / batched, NUM_DECODED / decoded]
        print(f"{codec.name:<16}" + "".join(f"{rate:>12.1f}" for rate in rates), end="")
        share_s = sound_s * NUM_DECODED / len(media)
        print(f"{sound_s / batched:>14.0f}{share_s / decoded:>14.0f}" if sound_s else "", flush=True)
        name = str(codec.modality)
        figures |= {f"{name}_encoded_per_s": round(rates[1], 1), f"{name}_decoded_per_s": round(rates[2], 1)}
        if sound_s:
            figures[f"{name}_encode_x_real_time"] = round(sound_s / batched, 1)
        singles, batches = singles + single, batches + batched
    print(json.dumps({"ratio_batched": round(singles / batches, 3), **figures}))


def _codecs() -> list[tuple[MediaCodec, Sequence[Medium]]]:
    shown = np.stack([np.asarray(pictures.render_picture(one)) for one in pictures.all_attributes()[:NUM_ITEMS]])
    said = [
        speech.synthesize(sentence.written, speech.VOICES[index % len(speech.VOICES)])
        for index, sentence in enumerate(all_sentences()[:NUM_ITEMS])
    ]
    played = [music.render_music(one) for one in music.all_attributes()[:NUM_ITEMS]]
    return [
        (CompactImage(fit_image(shown)), list(shown)),
        (CompactSpeech(fit_speech(said, seed=0)), said),
        (CompactMusic(fit_music(played, seed=0)), played),
    ]


def _times(codec: MediaCodec, media: Sequence[Medium]) -> tuple[float, float, float]:
    """Seconds for all items one by one, for all in batches, and for decoding the first few; medians of rounds."""
    codes = codec.encode(media)[:NUM_DECODED]
    rounds = [
        (
            _seconds(lambda: [codec.encode([one]) for one in media]),
            _seconds(lambda: _in_batches(codec, media)),
            _seconds(lambda: codec.decode(codes)),
        )
        for _ in range(ROUNDS)
    ]
    single, batched, decoded = (statistics.median(column) for column in zip(*rounds, strict=True))
    return single, batched, decoded


def _in_batches(codec: MediaCodec, media: Sequence[Medium]) -> None:
    for start in range(0, len(media), _BATCH):
        codec.encode(media[start : start + _BATCH])


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
