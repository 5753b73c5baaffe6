"""The share of its time a GPU encodes while a whole tokenization runs: decoding on CPUs, codecs of the published sizes.

Pictures (JPEG, SEED-2) and speech (15 s of flac, SpeechTokenizer) from files on disk, through Ray, to committed shards.
``busy`` is encoding over encoding and waiting, of all units but each actor's first, in which the codec is loaded and
compiled; ``seen`` is what nvidia-smi says of the same time, looked at every half second. The bar is 0.9.

Without a GPU it says so and measures nothing. ``python -m benchmarks.gpu_tokenize --small`` runs every line of it with tiny
networks on a CPU, to prove the script before a machine is paid for. On a machine without Ray, install it first from wheels
that were carried along: ``pip install --no-index --find-links=wheels "ray[data]"``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import clips_like_speech, write_seed2, write_speechtokenizer
from benchmarks.tokenize import write_pictures, write_sounds
from shards.vocabulary import Modality
from tokenize_jobs.job import prepare_job, run_jobs
from tokenize_jobs.log import log_path
from tokenize_jobs.plan import ClusterConfig, TokenizeConfig
from tokenize_jobs.session import ray_session


def main(argv: Sequence[str] = ()) -> None:
    """Print a table, then the figures as one JSON object."""
    parser = argparse.ArgumentParser(description="How busy a tokenization keeps a GPU.")
    parser.add_argument("--small", action="store_true", help="tiny networks and corpora, any device: does it run")
    parser.add_argument("--precision", default="fp16", choices=("fp32", "tf32", "fp16"), help="of the encoders")
    args = parser.parse_args(list(argv))
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not args.small:
        print("no GPU here: nothing measured (python -m benchmarks.gpu_tokenize --small proves that the script runs)")
        print(json.dumps({"measured": False}))
        return
    cpus = os.cpu_count() or 1
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name() if has_gpu else "cpu", "cpus": cpus}
    cluster = ClusterConfig(encode_gpus=float(has_gpu), encode_cpus=0.5, encode_threads=2, encoders=1)
    print(f"{figures['device']}, {cpus} CPUs, {'small' if args.small else 'full size'}, {args.precision}")
    print(f"{'corpus':<10}{'samples/s':>11}{'busy':>8}{'seen':>8}{'wall s':>9}")
    with tempfile.TemporaryDirectory() as folder, ray_session(workers=cpus):
        for name, config in _configs(Path(folder), args.precision, small=args.small).items():
            with _Seen() as seen:
                run_jobs([prepare_job(config.model_copy(update={"cluster": cluster, "workers": cpus}))])
            figures |= {f"{name}_{key}": value for key, value in _figures(config).items()} | {
                f"{name}_seen": seen.share
            }
            line = f"{figures[f'{name}_samples_per_s']:>11.1f}{figures[f'{name}_busy']:>8.1%}"
            print(f"{name:<10}{line}{seen.share:>8.1%}{figures[f'{name}_wall_s']:>9.1f}", flush=True)
    print(json.dumps(figures))


def _configs(folder: Path, precision: str, *, small: bool) -> dict[str, TokenizeConfig]:
    write_seed2(folder / "seed2", small=small)
    write_speechtokenizer(folder / "speechtokenizer", small=small)
    write_pictures(folder / "pictures", count=40 if small else 2000, archives=2 if small else 10)
    clips = clips_like_speech(16_000, count=4 if small else 250, seconds=15.0)
    write_sounds(folder / "sounds", clips, copies=2 if small else 8)

    pictures: dict[str, Any] = {
        "quantizer": folder / "seed2" / "seed_quantizer.pt",
        "vit": folder / "seed2" / "eva_vit_g.pth",
        "config": folder / "seed2" / "config.json",
        "batch_items": 8 if small else 256,
    }
    speech: dict[str, Any] = {
        "config": folder / "speechtokenizer" / "config.json",
        "checkpoint": folder / "speechtokenizer" / "SpeechTokenizer.pt",
        "batch_s": 60.0 if small else 480.0,
    }
    shared = {"device": "auto", "precision": precision}
    return {
        "pictures": TokenizeConfig(
            corpus="laion2b",
            root=folder / "pictures",
            output=folder / "out" / "pictures",
            unit_items=10 if small else 500,
            tokenizers={Modality.IMAGE: _codec(folder / "seed2.toml", "seed2", pictures | shared)},
        ),
        "speech": TokenizeConfig(
            corpus="mls",
            root=folder / "sounds",
            output=folder / "out" / "sounds",
            unit_items=2 if small else 125,
            tokenizers={Modality.SPEECH: _codec(folder / "speechtokenizer.toml", "speechtokenizer", speech | shared)},
        ),
    }


def _codec(path: Path, name: str, options: dict[str, Any]) -> Path:
    lines = [
        f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in options.items()
    ]
    path.write_text("\n".join([f'codec = "{name}"', "[options]", *lines, ""]), encoding="utf-8")
    return path


def _figures(config: TokenizeConfig) -> dict[str, float]:
    """From the job's own log, without each actor's first unit."""
    lines = log_path(config.output).read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    done = [event for event in events if event["event"] == "unit_done"]
    workers: set[str] = set()
    later = [event for event in done if event["worker"] in workers or workers.add(event["worker"])]
    busy, wait = (sum(event[key] for event in later) for key in ("encode_s", "wait_s"))
    held = busy + wait
    report = json.loads((config.output / "report.json").read_text(encoding="utf-8"))
    return {
        "samples_per_s": round(sum(event["written"] for event in later) / held * len(workers), 1),
        "busy": round(busy / held, 4),
        "wall_s": report["seconds"],
    }


class _Seen:
    """The mean of what nvidia-smi reports from the first batch on; 0 without it."""

    def __init__(self) -> None:
        self.share = 0.0
        self._shares: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Seen:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        # Before the first batch and after the last one nothing can be busy.
        used = [share for share in self._shares if share > 0]
        self.share = round(statistics.fmean(self._shares[self._shares.index(used[0]) :]), 4) if used else 0.0

    def _look(self) -> None:
        tool = shutil.which("nvidia-smi")
        command = [str(tool), "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while tool and not self._ended.wait(0.5):
            found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
            if found and found[0].isdigit():
                self._shares.append(int(found[0]) / 100)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
