"""The published codecs on a GPU: pictures and seconds of sound a second, use of the matrix units, codes that change.

Full size, random weights (they cost what trained ones cost; which codes change under half precision is an upper range,
for random codebooks lie denser than trained ones). Each codec in each precision, eager and compiled, against its own
float32 codes on the same GPU. For SEED-2 the share of the GPU's dense half-precision peak: 535.3 GFLOP a picture
(ViT 520.7, Q-Former 12.8, embedding 1.8 left out; tokenizers sheet 1.2).

Without a GPU it says so and measures nothing. ``python -m benchmarks.gpu_codecs --small`` runs every line of it on tiny
networks on whatever device there is, to prove the script before a machine is paid for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import clips_like_speech, write_encodec, write_speechtokenizer
from pipeline.tokenizers import encodec_32khz, speechtokenizer
from pipeline.tokenizers.base import MediaTokenizer, Medium
from pipeline.tokenizers.seed2 import Seed2
from pipeline.tokenizers.seed2_keys import QuantizerSizes, Unshaped, VisionSizes
from pipeline.tokenizers.seed2_network import random_seed2
from pipeline.tokenizers.seed2_weights import Seed2Weights
from pipeline.tokenizers.weights import Precision

GFLOP_PER_PICTURE = 533.5
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0}
"""Dense float16 with float32 accumulation, from the makers' data sheets."""
ROUNDS = 5
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16")


def main(argv: Sequence[str] = ()) -> None:
    """Print a table, then the figures as one JSON object."""
    parser = argparse.ArgumentParser(description="The published codecs on a GPU.")
    parser.add_argument("--small", action="store_true", help="tiny networks, any device: does the script run")
    args = parser.parse_args(list(argv))
    if not torch.cuda.is_available() and not args.small:
        print("no GPU here: nothing measured (python -m benchmarks.gpu_codecs --small proves that the script runs)")
        print(json.dumps({"measured": False}))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    print(f"{figures['device']}, {'small' if args.small else 'full size'}")
    print(f"{'codec':<18}{'precision':<12}{'compiled':<10}{'per s':>10}{'of peak':>9}{'codes changed':>15}")
    figures |= _pictures(device, small=args.small)
    with tempfile.TemporaryDirectory() as folder:
        figures |= _sounds(Path(folder), device, small=args.small)
    print(json.dumps(figures))


def _pictures(device: str, *, small: bool) -> dict[str, float]:
    count = 8 if small else 1024
    batch = 4 if small else 256
    random = np.random.Generator(np.random.PCG64(0))
    # Smooth, as pictures are: noise of 14 x 14 blown up.
    coarse = random.integers(0, 256, (count, 14, 14, 3), dtype=np.uint8)
    pictures = list(coarse.repeat(16, axis=1).repeat(16, axis=2))

    def make(precision: Precision, compiled: bool) -> MediaTokenizer:
        sizes = _small_seed2() if small else (VisionSizes(), QuantizerSizes(), Unshaped())
        encoder, decoder = random_seed2(*sizes)
        weights = Seed2Weights(encoder, decoder, sizes[1], sizes[2], ())
        return Seed2(weights, device=torch.device(device), precision=precision, compiled=compiled, batch_items=batch)

    return _measure("seed2", make, pictures, units=float(count), gflop_per_unit=0.0 if small else GFLOP_PER_PICTURE)


def _small_seed2() -> tuple[VisionSizes, QuantizerSizes, Unshaped]:
    vision = VisionSizes(width=64, depth=2, mlp=128)
    sizes = QuantizerSizes(width=64, depth=2, mlp=128, vision_width=64)
    return vision, sizes, Unshaped(vision_heads=4, qformer_heads=4, image_heads=4)


def _sounds(folder: Path, device: str, *, small: bool) -> dict[str, float]:
    write_speechtokenizer(folder / "speech", small=small)
    write_encodec(folder / "encodec", small=small)
    count = 6 if small else 256

    def speech(precision: Precision, compiled: bool) -> MediaTokenizer:
        return speechtokenizer.load(
            speechtokenizer.Options(
                config=folder / "speech" / "config.json",
                checkpoint=folder / "speech" / "SpeechTokenizer.pt",
                device=device,
                precision=precision,
                compile=compiled,
                batch_s=480.0,
            )
        )

    def music(precision: Precision, compiled: bool) -> MediaTokenizer:
        return encodec_32khz.load(
            encodec_32khz.Options(
                weights=folder / "encodec", device=device, precision=precision, compile=compiled, batch_s=480.0
            )
        )

    figures: dict[str, float] = {}
    clips = clips_like_speech(16_000, count=count)
    figures |= _measure("speechtokenizer", speech, clips, units=sum(map(len, clips)) / 16_000)
    windows = clips_like_speech(32_000, count=count, seconds=5.0)
    figures |= _measure("encodec_32khz", music, windows, units=5.0 * count)
    return figures


def _measure(
    name: str,
    make: Callable[[Precision, bool], MediaTokenizer],
    media: Sequence[Medium],
    *,
    units: float,
    gflop_per_unit: float = 0.0,
) -> dict[str, float]:
    """Every precision, eager and compiled, against float32's codes; ``units`` are pictures or seconds."""
    reference: list[np.ndarray[Any, Any]] = []
    figures: dict[str, float] = {}
    for precision in PRECISIONS:
        for compiled in (False, True):
            torch.compiler.reset()  # or the graphs of many codecs in one process reach a limit
            codec = make(precision, compiled)
            codes = list(codec.encode(media))  # warms up, and compiles
            reference = reference or codes
            changed = _share_changed(codes, reference)
            rate = units / statistics.median(_seconds(codec, media) for _ in range(ROUNDS))
            share = rate * gflop_per_unit / 1000 / _peak_tflops()
            label = f"{name}_{precision}{'_compiled' if compiled else ''}"
            print(f"{name:<18}{precision:<12}{compiled!s:<10}{rate:>10.1f}{share:>9.1%}{changed:>15.3%}", flush=True)
            figures |= {f"{label}_per_s": round(rate, 2), f"{label}_changed": round(changed, 6)}
            if gflop_per_unit:
                figures[f"{label}_of_peak"] = round(share, 4)
            del codec
    return figures


def _share_changed(codes: Sequence[np.ndarray[Any, Any]], reference: Sequence[np.ndarray[Any, Any]]) -> float:
    differ = sum(int((a != b).sum()) for a, b in zip(codes, reference, strict=True))
    return differ / sum(one.size for one in reference)


def _seconds(codec: MediaTokenizer, media: Sequence[Medium]) -> float:
    begun = time.perf_counter()
    codec.encode(media)  # results come back to the host, so nothing is still running
    return time.perf_counter() - begun


def _peak_tflops() -> float:
    """Of this GPU; infinite where the table has no such one, so that the share shows as zero and not as a guess."""
    if not torch.cuda.is_available():
        return float("inf")
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), float("inf"))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
