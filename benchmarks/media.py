"""How fast the host reads media, beside the bare libraries: pictures a second and seconds of sound a second, of one core.

A GPU codec waits for its host when this is slow. Bare: Pillow decodes and squashes; soundfile reads, torchaudio's kept
filter resamples. Ours adds what a corpus needs, checks, channel policy, SHA-256, and should cost next to nothing.

Media are made here: photograph-like JPEG of 1024 x 768 at quality 90, clips of 30 s at 44.1 kHz in stereo, as mp3, flac
and wav, read as speech (mono, 16 kHz). Rounds take turns; figures are medians of CPU seconds, for the machines are noisy.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import soundfile
import torch
import torchaudio.transforms
from PIL import Image

from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.samples import RawMedia
from shards.modality import Modality

ROUNDS = 9
NUM_PICTURES = 12
PICTURE_SIZE = (1024, 768)
CLIP_S = 30.0
CLIP_RATE_HZ = 44_100
SOUND_FORMS = ("mp3", "flac", "wav")

Work = Callable[[], object]


def main() -> None:
    """Measure pictures, then every sound format, and print both."""
    torch.set_num_threads(1)
    pictures, clips = make_pictures(), {form: make_clip(form) for form in SOUND_FORMS}
    picture_s = _medians(_picture_work(pictures))
    sound_s = {form: _medians(_sound_work(data)) for form, data in clips.items()}
    figures = _picture_figures(picture_s, pictures)
    for form, seconds in sound_s.items():
        figures |= _sound_figures(form, seconds)
    print(json.dumps(figures))


def make_pictures() -> list[bytes]:
    """Shapes of all sizes and some grain, as a photograph has them; about 200 KB each."""
    random = np.random.Generator(np.random.PCG64(0))
    return [_make_picture(random) for _ in range(NUM_PICTURES)]


def make_clip(form: str) -> bytes:
    """Voiced, breathing, two channels that differ; about 30 s."""
    random = np.random.Generator(np.random.PCG64(1))
    time_s = np.arange(round(CLIP_S * CLIP_RATE_HZ)) / CLIP_RATE_HZ
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch) / CLIP_RATE_HZ
    voice = sum(np.sin(k * phase) / k for k in range(1, 13)) * (0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time_s))
    breath = random.normal(0, 1, (len(time_s), 2))
    channels = 0.15 * np.stack([voice, np.roll(voice, 400)], axis=1) + 0.004 * breath
    file = io.BytesIO()
    soundfile.write(file, channels.astype(np.float32), CLIP_RATE_HZ, format=form.upper())
    return file.getvalue()


def _make_picture(random: np.random.Generator) -> bytes:
    width, height = PICTURE_SIZE
    pixels = np.zeros((height, width, 3))
    for step in (8, 32, 128):
        grid = random.integers(0, 256, (height // step, width // step, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(grid).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)) * (step / 168)
    pixels += random.normal(0, 4, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _picture_work(pictures: list[bytes]) -> dict[str, Work]:
    decode = make_decoder(MediaConfig(), WindowConfig())
    raw = [RawMedia("image", Modality.IMAGE, data) for data in pictures]
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    return {
        "ours": lambda: [decode(one) for one in raw],
        "bare": lambda: [np.asarray(_squashed(Image.open(io.BytesIO(data)).convert("RGB"))) for data in pictures],
        "decode": lambda: [Image.open(io.BytesIO(data)).load() for data in pictures],
        "resize": lambda: [_squashed(image) for image in opened],
        "sha256": lambda: [hashlib.sha256(data).hexdigest() for data in pictures],
    }


def _squashed(image: Image.Image) -> Image.Image:
    return image.resize((224, 224), Image.Resampling.BICUBIC)


def _sound_work(data: bytes) -> dict[str, Work]:
    decode = make_decoder(MediaConfig(), WindowConfig())
    raw = RawMedia("speech", Modality.SPEECH, data)
    resample = torchaudio.transforms.Resample(CLIP_RATE_HZ, Modality.SPEECH.rate.sample_rate_hz, dtype=torch.float32)

    def read() -> torch.Tensor:
        return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0][:, 0].copy())

    wave = read()
    return {
        "ours": lambda: decode(raw),
        "bare": lambda: resample(read()),
        "decode": read,
        "resample": lambda: resample(wave),
        "sha256": lambda: hashlib.sha256(data).hexdigest(),
    }


def _medians(work: Mapping[str, Work]) -> dict[str, float]:
    """CPU seconds of each, the median over rounds in which they take turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, one in work.items():
            begun = time.process_time()
            one()
            if number:
                seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _picture_figures(seconds: Mapping[str, float], pictures: list[bytes]) -> dict[str, float]:
    ours, kilobytes = seconds["ours"], sum(len(data) for data in pictures) / len(pictures) / 1e3
    print(f"JPEG {PICTURE_SIZE[0]} x {PICTURE_SIZE[1]} q90, {kilobytes:.0f} KB -> 224 x 224, one core")
    for name, one in seconds.items():
        print(
            f"  {name:<10}{1e3 * one / len(pictures):>8.2f} ms{len(pictures) / one:>10.0f} /s{one / ours:>8.0%} of ours"
        )
    return {
        "pictures_per_s": round(len(pictures) / ours, 1),
        "pictures_ratio": round(seconds["bare"] / ours, 3),
        "picture_decode_share": round(seconds["decode"] / ours, 3),
        "picture_resize_share": round(seconds["resize"] / ours, 3),
    }


def _sound_figures(form: str, seconds: Mapping[str, float]) -> dict[str, float]:
    ours = seconds["ours"]
    print(f"{form} {CLIP_S:.0f} s, {CLIP_RATE_HZ} Hz stereo -> mono 16 kHz, one core")
    for name, one in seconds.items():
        print(f"  {name:<10}{1e3 * one:>8.2f} ms{CLIP_S / one:>10.0f} x real time{one / ours:>8.0%} of ours")
    return {
        f"{form}_x_real_time": round(CLIP_S / ours, 1),
        f"{form}_ratio": round(seconds["bare"] / ours, 3),
        f"{form}_decode_share": round(seconds["decode"] / ours, 3),
        f"{form}_resample_share": round(seconds["resample"] / ours, 3),
    }


if __name__ == "__main__":
    main()
