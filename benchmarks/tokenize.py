"""What Ray, transactions and checksums cost: samples/s of the job with one worker, as a share of a bare loop.

The bare loop reads, decodes and encodes the same files with the same codec in one process and keeps nothing. The job's
rate is taken between its first and its last committed unit; what it takes to start is printed beside it. Two corpora:
small files (JPEGs of 256 x 256 in WebDataset shards; codebooks are noise, which costs as much as any) and long sounds (flac
of 15 s, as Multilingual LibriSpeech has them). ``ratio`` is the smaller of the two. Last, each corpus once more as one unit
of the usual size, a thousand pictures or an hour of sound: ``peak_mib`` is the largest resident size of any worker until
then, of which the interpreter, torch and the codec are the most (``idle_mib``).
"""

from __future__ import annotations

import io
import json
import multiprocessing
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import soundfile
import torch
from PIL import Image

from pipeline.sample_corpora.sentences import all_sentences
from pipeline.sample_corpora.speech import VOICES, synthesize
from pipeline.tokenization import encode_samples
from pipeline.tokenizers.codecs import open_tokenizers
from pipeline.tokenizers.compact import save_family
from pipeline.tokenizers.compact_image import MASK
from pipeline.tokenizers.compact_speech import fit_speech
from shards.vocabulary import Modality
from tokenize_jobs.job import prepare_job, run_jobs
from tokenize_jobs.log import log_path
from tokenize_jobs.plan import TokenizeConfig, plan_units
from tokenize_jobs.session import ray_session
from tokenize_jobs.stages import Task, decode_unit

NUM_PICTURES, UNIT_ITEMS = 1000, 50
NUM_SOUNDS, SOUND_S, RATE_HZ, UNIT_SOUNDS = 240, 15, 16_000, 12
ROUNDS = 3


def main() -> None:
    """Print the table, then the figures as one JSON object."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        configs = {"pictures": _pictures(Path(folder)), "sounds": _sounds(Path(folder))}
        begun = time.monotonic()
        with ray_session(workers=1):
            figures["session_s"] = round(time.monotonic() - begun, 2)
            for name, config in configs.items():
                rounds = [(_bare_rate(config), *_job_rate(config, number)) for number in range(ROUNDS)]
                bare, job, first_unit_s = (statistics.median(column) for column in zip(*rounds, strict=True))
                figures |= {
                    f"{name}_ratio": round(statistics.median(job / bare for bare, job, _ in rounds), 3),
                    f"{name}_bare_samples_per_s": round(bare, 1),
                    f"{name}_job_samples_per_s": round(job, 1),
                    f"{name}_first_unit_s": round(first_unit_s, 2),
                }
            figures["idle_mib"] = round(_idle_mib(configs["sounds"]))
            with _Watch() as watch:
                for name, config in configs.items():
                    _job_rate(config.model_copy(update={"unit_items": 1000}), ROUNDS)
                    figures[f"{name}_peak_mib"] = round(watch.peak_mib)
    figures["ratio"] = min(figures["pictures_ratio"], figures["sounds_ratio"])
    for name, figure in figures.items():
        print(f"{name:<28}{figure:>10}")
    print(json.dumps(figures))


def _bare_rate(config: TokenizeConfig) -> float:
    begun = time.monotonic()
    count = 0
    codecs = open_tokenizers(config.tokenizers)
    units = plan_units(config)
    task = Task(config, "", units)
    for unit in units:
        count += len(list(encode_samples(decode_unit(task, unit).items, codecs)))
    return count / (time.monotonic() - begun)


def _job_rate(config: TokenizeConfig, number: int) -> tuple[float, float]:
    """Samples/s after the first unit, and the seconds until that one was committed."""
    config = config.model_copy(update={"output": config.output.with_name(f"{config.output.name}-{number}")})
    run_jobs([prepare_job(config)])
    events = [json.loads(line) for line in log_path(config.output).read_text(encoding="utf-8").splitlines()]
    times = [
        datetime.fromisoformat(event["timestamp"]).timestamp() for event in events if event["event"] == "unit_done"
    ]
    begun = datetime.fromisoformat(events[0]["timestamp"]).timestamp()
    seconds = times[-1] - times[0] if len(times) > 1 else float("inf")
    return config.unit_items * (len(times) - 1) / seconds, times[0] - begun


class _Watch:
    """The largest resident size of any Ray worker below this process, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.name().startswith("ray::"):
                        self.peak_mib = max(self.peak_mib, process.memory_info().rss / (1 << 20))


def _idle_mib(config: TokenizeConfig) -> float:
    """The resident size of a process that has imported what a worker does, opened the codecs, and done nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_opened_mib, (config,))


def _opened_mib(config: TokenizeConfig) -> float:
    open_tokenizers(config.tokenizers)
    return psutil.Process().memory_info().rss / (1 << 20)


def _pictures(folder: Path) -> TokenizeConfig:
    root, codec = folder / "pictures", folder / "pictures.safetensors"
    write_pictures(root, count=NUM_PICTURES)
    noise = np.random.Generator(np.random.PCG64(0))
    palettes = noise.uniform(0, 255, size=(2048, 6)).astype(np.float32)
    patterns = noise.uniform(0, 1, size=(6144, MASK**2)).astype(np.float32)
    save_family(codec, {Modality.IMAGE: {"palettes": palettes, "patterns": patterns}})
    return TokenizeConfig(
        corpus="laion2b",
        root=root,
        output=folder / "pictures-job",
        unit_items=UNIT_ITEMS,
        workers=1,
        tokenizers={Modality.IMAGE: codec},
    )


def _sounds(folder: Path) -> TokenizeConfig:
    root, codec = folder / "sounds", folder / "sounds.safetensors"
    said = [synthesize(sentence.written, VOICES[n % len(VOICES)]) for n, sentence in enumerate(all_sentences()[:32])]
    save_family(codec, {Modality.SPEECH: fit_speech(said, seed=0)})
    long = np.concatenate(said)
    long = np.tile(long, -(-NUM_SOUNDS * SOUND_S * RATE_HZ // len(long)))
    write_sounds(root, long[: NUM_SOUNDS * SOUND_S * RATE_HZ].reshape(NUM_SOUNDS, -1))
    return TokenizeConfig(
        corpus="mls",
        root=root,
        output=folder / "sounds-job",
        unit_items=UNIT_SOUNDS,
        workers=1,
        tokenizers={Modality.SPEECH: codec},
    )


def write_pictures(root: Path, *, count: int, archives: int = 1, seed: int = 0) -> None:
    """An img2dataset folder of captioned JPEGs, 256 x 256; every archive has the same ones."""
    root.mkdir()
    noise = np.random.Generator(np.random.PCG64(seed))
    pictures = [_jpeg(noise) for _ in range(count)]
    for shard in range(archives):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as archive:
            for number, picture in enumerate(pictures):
                _add(archive, f"{shard:05d}{number:05d}.jpg", picture)
                _add(archive, f"{shard:05d}{number:05d}.txt", b"a picture of nothing in particular")


def write_sounds(root: Path, waves: Iterable[npt.NDArray[np.float32]], *, copies: int = 1) -> None:
    """A folder in the layout of Multilingual LibriSpeech, 16 kHz flac; every chapter has the same clips."""
    split = root / "mls_english" / "train"
    lines: list[str] = []
    for number, wave in enumerate(waves):
        for chapter in range(copies):
            name = f"1_{chapter}_{number:06d}"
            clips = split / "audio" / "1" / str(chapter)
            clips.mkdir(parents=True, exist_ok=True)
            soundfile.write(clips / f"{name}.flac", wave, RATE_HZ)
            lines.append(f"{name}\tsome words\n")
    (split / "transcripts.txt").write_text("".join(lines), encoding="utf-8")


def _jpeg(noise: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    blocks = Image.fromarray(noise.integers(256, size=(16, 16, 3), dtype=np.uint8))
    blocks.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
