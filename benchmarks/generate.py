"""Do the accuracies of the report hold through ``anygpt-generate``?

What no training item shows, says or plays goes through the real command, a process of its own with JSON lines: captions
and sentences as text, pictures and sounds as the files of the corpus, under names that say nothing. Its pictures and sounds
are read back from disk and judged as the report judges (:mod:`evaluation.judges`). Beside each figure is the one of the
run's ``report.json``. Tasks carry the ids of the samples, so instructions, draws and ids are the report's own. What differs
is that sounds are 16-bit files here: the report judges music as the codec gives it, and hands codes of speech over to be
heard. A judge that looks 60 dB down hears the difference where the music is like none of its prototypes.

Run after ``make pretrain``: ``make bench NAME=generate``, or ``python -m benchmarks.generate DIRECTION...`` for some.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from configs.load import load_config
from evaluation.judges import MusicJudge, PictureJudge, share_right, words_right
from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.sample_corpora import music, pictures
from pipeline.samples import RawMedia, RawSample, RawText
from tokenize_jobs.plan import TokenizeConfig

CONFIG = Path("configs/inference/tiny.toml")
REPORT = Path("runs/pretrain-tiny/report.json")
HELD_OUT = {
    "image": ("configs/corpora/heldout/laion_coco.toml", 96),
    "speech": ("configs/corpora/heldout/mls.toml", 40),
    "music": ("configs/corpora/heldout/youtube_music.toml", 24),
}
_COMMAND = "import sys; from inference.generate_cli import main; sys.exit(main())"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One held-out sample: its id, its text, and its medium as a file."""

    sample_id: str
    text: str
    path: Path


def held_out(modality: str, folder: Path) -> list[Item]:
    """The samples of a held-out corpus, their media written into ``folder`` without a suffix."""
    path, limit = HELD_OUT[modality]
    config = load_config(Path(path), TokenizeConfig)
    items: list[Item] = []
    for number, sample in enumerate(_samples(config)):
        if number == limit:
            break
        raw = next(one for one in sample.segments if isinstance(one, RawMedia))
        text = next(one.text for one in sample.segments if isinstance(one, RawText) and one.text)
        file = folder / f"{modality}-{number}"
        file.write_bytes(raw.data if raw.path is None else raw.path.read_bytes())
        items.append(Item(sample.sample_id, text, file))
    return items


def ask(direction: str, asked: Sequence[tuple[str, str]], folder: Path) -> list[Row]:
    """Send (id, input) pairs through the command; the results in their order.

    Raises:
        RuntimeError: the command failed.
    """
    source, _, target = direction.partition("_to_")
    output, tasks = folder / direction, folder / f"{direction}.jsonl"
    lines = [json.dumps({"source": source, "target": target, "input": text, "id": key}) for key, text in asked]
    tasks.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", _COMMAND, str(CONFIG), "--tasks", str(tasks), "--set", f"output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{direction}: exit {done.returncode}: {done.stderr.strip()}")
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    by_key = {row["key"]: row | {"path": output / row["file"]} for row in rows}
    return [by_key[key] for key, _ in asked]


def draw(folder: Path) -> dict[str, float]:
    """Caption to picture."""
    items = held_out("image", folder)
    rows = ask("text_to_image", [(item.sample_id, item.text) for item in items], folder)
    found = PictureJudge().judge([np.asarray(Image.open(row["path"])) for row in rows])
    return _shares("text_to_image", found, [pictures.parse_caption(item.text) for item in items])


def play(folder: Path) -> dict[str, float]:
    """Text to music."""
    items = held_out("music", folder)
    rows = ask("text_to_music", [(item.sample_id, item.text) for item in items], folder)
    longest_s = min(max(soundfile.info(item.path).duration for item in items), 5.0)
    found = MusicJudge(longest_s).judge([soundfile.read(row["path"], dtype="float32")[0] for row in rows])
    return _shares("text_to_music", found, [music.parse_caption(item.text) for item in items])


def describe(modality: str, parse: Callable[[str], dict[str, str]], folder: Path) -> dict[str, float]:
    """Picture or music to caption."""
    items, name = held_out(modality, folder), f"{modality}_to_text"
    rows = ask(name, [(item.sample_id, str(item.path)) for item in items], folder)
    figures = _shares(name, [parse(row["text"]) for row in rows], [parse(item.text) for item in items])
    return figures | {f"{name}_words": float(np.mean(list(figures.values())))}


def listen(folder: Path) -> dict[str, float]:
    """Speech to text."""
    items = held_out("speech", folder)
    rows = ask("speech_to_text", [(item.sample_id, str(item.path)) for item in items], folder)
    return {"speech_to_text_words": _words(items, rows)}


def speak_and_listen(folder: Path) -> dict[str, float]:
    """Text to speech, and what the model hears in its own recording."""
    items = held_out("speech", folder)
    spoken = ask("text_to_speech", [(item.sample_id, item.text) for item in items], folder)
    again = folder / "again"
    again.mkdir()
    asked = [(item.sample_id, str(row["path"])) for item, row in zip(items, spoken, strict=True)]
    heard = ask("speech_to_text", asked, again)
    return {"text_to_speech_to_text_words": _words(items, heard)}


DIRECTIONS: dict[str, Callable[[Path], dict[str, float]]] = {
    "text_to_image": draw,
    "image_to_text": lambda folder: describe("image", pictures.parse_caption, folder),
    "speech_to_text": listen,
    "text_to_speech": speak_and_listen,
    "text_to_music": play,
    "music_to_text": lambda folder: describe("music", music.parse_caption, folder),
}


def main(directions: Sequence[str] = tuple(DIRECTIONS)) -> int:
    """Ask, judge, print a table and its figures as one JSON object."""
    if not REPORT.is_file():
        print(f"nothing to ask: no {REPORT}; run make pretrain first")
        return 0
    reported = json.loads(REPORT.read_text(encoding="utf-8"))["heldout"]
    figures: dict[str, float] = {}
    print(f"{'figure':40}{'generate':>10}{'report':>10}{'difference':>12}")
    for direction in directions:
        with tempfile.TemporaryDirectory() as folder:
            measured = DIRECTIONS[direction](Path(folder))
        for name, value in sorted(measured.items()):
            figures[name] = round(value, 4)
            there = reported.get(name, float("nan"))
            print(f"{name:40}{value:>10.4f}{there:>10.4f}{value - there:>+12.4f}", flush=True)
    print(json.dumps(figures))
    return 0


def _samples(config: CorpusConfig) -> Iterator[RawSample]:
    reader = load_corpus(config)
    for source in reader.sources():
        yield from (outcome for outcome in reader.read(source) if isinstance(outcome, RawSample))


def _shares(name: str, found: Sequence[dict[str, str]], wanted: Sequence[dict[str, str]]) -> dict[str, float]:
    attributes = sorted({attribute for one in wanted for attribute in one})
    return {f"{name}_{attribute}": share_right(found, wanted, attribute) for attribute in attributes}


def _words(items: Sequence[Item], rows: Sequence[Row]) -> float:
    return float(np.mean([words_right(row["text"], item.text) for item, row in zip(items, rows, strict=True)]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or tuple(DIRECTIONS)))
