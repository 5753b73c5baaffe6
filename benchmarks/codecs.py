"""How fast media become codes and codes media, and what a batch gains over the library's own call in a loop.

Two tables. Sound codecs of the published size, with random weights: ours, given all clips at once, against what a user
would write with the library that supplies the network, one clip after another; clips have the lengths of speech. Both
sides run in one process with the same threads, rounds interleaved, and both are checked to give the same codes.
``ratio_batched`` is the smaller of their ratios. Below, the compact family, one item at a time and all at once.

Pictures are not in the first table: on a CPU a 535 GFLOP picture gains nothing from its neighbours. On a GPU see
``gpu_codecs``.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import clips_like_speech, write_encodec, write_speechtokenizer
from pipeline.sample_corpora import music, pictures, speech
from pipeline.sample_corpora.sentences import all_sentences
from pipeline.tokenizers import encodec_32khz, speechtokenizer
from pipeline.tokenizers.base import MediaTokenizer, Medium
from pipeline.tokenizers.compact import MediaCodec
from pipeline.tokenizers.compact_image import CompactImage, fit_image
from pipeline.tokenizers.compact_music import CompactMusic, fit_music
from pipeline.tokenizers.compact_speech import CompactSpeech, fit_speech

NUM_CLIPS = 24
NUM_ITEMS = 64
NUM_DECODED = 8
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Contest:
    """A codec of ours, and the library's own way with the same weights."""

    codec: MediaTokenizer
    library: Callable[[Medium], np.ndarray[Any, Any]]
    """One clip to (frames, levels)."""
    clips: Sequence[Medium]


def main() -> None:
    """Print the tables, then the figures as one JSON object."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        contests = [_speech(Path(folder)), _music(Path(folder))]
    print(f"full size, {torch.get_num_threads()} threads, {NUM_CLIPS} clips of speech-like lengths")
    print(f"{'codec':<20}{'seconds':>9}{'library x rt':>14}{'ours x rt':>12}{'ratio':>8}{'codes differ':>14}")
    for contest in contests:
        figures |= _contest(contest)
    figures["ratio_batched"] = min(value for name, value in figures.items() if name.endswith("_ratio"))
    del contests
    figures |= _compact()
    print(json.dumps(figures))


def _contest(contest: Contest) -> dict[str, float]:
    codec, clips = contest.codec, contest.clips
    sound_s = sum(map(len, clips)) / codec.sample_rate_hz
    looped: list[np.ndarray[Any, Any]] = []
    ours: list[np.ndarray[Any, Any]] = []
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        looped = [contest.library(clip) for clip in clips]
        between = time.perf_counter()
        ours = list(codec.encode(clips))
        times.append((between - begun, time.perf_counter() - between))
    ratio = statistics.median(theirs / mine for theirs, mine in times)
    theirs, mine = (statistics.median(column) for column in zip(*times, strict=True))
    differ = sum(int((a != b).sum()) for a, b in zip(looped, ours, strict=True))
    total = sum(codes.size for codes in ours)
    print(f"{codec.name:<20}{sound_s:>9.1f}{sound_s / theirs:>14.1f}{sound_s / mine:>12.1f}{ratio:>8.2f}", end="")
    print(f"{f'{differ} of {total}':>18}", flush=True)
    name = str(codec.modality)
    return {f"{name}_ratio": round(ratio, 3), f"{name}_codes_differ": differ, f"{name}_x_rt": round(sound_s / mine, 2)}


def _speech(folder: Path) -> Contest:
    model = write_speechtokenizer(folder / "speech")
    files = {"config": folder / "speech" / "config.json", "checkpoint": folder / "speech" / "SpeechTokenizer.pt"}
    codec = speechtokenizer.load(speechtokenizer.Options(**files, device="cpu"))

    def library(clip: Medium) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(clip)[None, None])[:, 0].T.numpy()

    return Contest(codec, library, clips_like_speech(codec.sample_rate_hz, count=NUM_CLIPS))


def _music(folder: Path) -> Contest:
    model = write_encodec(folder / "encodec")
    codec = encodec_32khz.load(encodec_32khz.Options(weights=folder / "encodec", device="cpu"))

    def library(clip: Medium) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(clip)[None, None]).audio_codes[0, 0].T.numpy()

    return Contest(codec, library, clips_like_speech(codec.sample_rate_hz, count=NUM_CLIPS))


def _compact() -> dict[str, float]:
    """The compact family, on one core as a worker of stage A has it."""
    figures: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"\n{'codec':<20}{'single/s':>12}{'together/s':>12}{'decoded/s':>12}{'encode x rt':>14}{'decode x rt':>14}")
    for codec, media in _compact_codecs():
        single, together, decoded = _times(codec, media)
        sound_s = sum(len(one) for one in media) / codec.sample_rate_hz if codec.sample_rate_hz else 0.0
        rates = [len(media) / single, len(media) / together, NUM_DECODED / decoded]
        print(f"{codec.name:<20}" + "".join(f"{rate:>12.1f}" for rate in rates), end="")
        share_s = sound_s * NUM_DECODED / len(media)
        print(f"{sound_s / together:>14.0f}{share_s / decoded:>14.0f}" if sound_s else "", flush=True)
        figures[f"{codec.name}_encoded_per_s"] = round(rates[1], 1)
        figures[f"{codec.name}_decoded_per_s"] = round(rates[2], 1)
    torch.set_num_threads(threads)
    return figures


def _compact_codecs() -> list[tuple[MediaCodec, Sequence[Medium]]]:
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
    """Seconds for all items one by one, for all at once, and for decoding the first few; medians of rounds."""
    codes = codec.encode(media)[:NUM_DECODED]
    rounds = [
        (
            _seconds(lambda: [codec.encode([one]) for one in media]),
            _seconds(lambda: codec.encode(media)),
            _seconds(lambda: codec.decode(codes)),
        )
        for _ in range(ROUNDS)
    ]
    single, together, decoded = (statistics.median(column) for column in zip(*rounds, strict=True))
    return single, together, decoded


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
