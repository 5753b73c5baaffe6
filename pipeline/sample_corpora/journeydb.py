"""The JourneyDB layout: ``data/train/train_anno_realease_repath.jsonl`` (sic) and ``data/train/imgs/<sub>/<uuid>.jpg``.

The prompt is terse and ends with the parameters that prompts end with; the caption is a sentence.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from pipeline.sample_corpora.draws import pick, stable_int
from pipeline.sample_corpora.items import (
    ItemRecord,
    Task,
    alt_text,
    as_sentence,
    picture_attributes,
    picture_bytes,
    sentence_caption,
)
from pipeline.sample_corpora.pictures import SHAPES, PictureAttributes

_PICTURES_PER_FOLDER = 200
_PARAMETERS = ("--ar 1:1", "--v 4", "--tile", "--ar 1:1 --v 5")
_STYLES = ("flat illustration", "oil painting", "pixel art", "charcoal sketch")


def write(task: Task) -> list[ItemRecord]:
    """Write the annotations and the pictures; the truth about every picture."""
    root = task.folder / "data" / "train"
    records: list[ItemRecord] = []
    lines: list[str] = []
    for index in range(task.count):
        attributes = picture_attributes(task, index)
        name = (
            f"{index // _PICTURES_PER_FOLDER:03d}/{uuid.UUID(int=stable_int(task.config.seed, task.split, index))}.jpg"
        )
        path = root / "imgs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(task, attributes, index))
        annotation = _annotation(task, index, name, attributes)
        lines.append(json.dumps(annotation) + "\n")
        caption = annotation["Task2"]["Caption"]
        records.append(ItemRecord(f"data/train/imgs/{name}", f"./{name}", "image", caption, attributes.as_dict()))
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_anno_realease_repath.jsonl").write_text("".join(lines), encoding="utf-8")
    return records


def _annotation(task: Task, index: int, name: str, attributes: PictureAttributes) -> dict[str, Any]:
    rng = task.rng("annotation", index)
    return {
        "img_path": f"./{name}",
        "prompt": f"{alt_text(rng, attributes)} {pick(rng, _PARAMETERS)}",
        "Task1": {"Subject": [attributes.shape], "Style": [_STYLES[0]]},
        "Task2": {"Caption": as_sentence(sentence_caption(rng, attributes))},
        "Task3": {
            "Style": [_question("What is the style of the image?", _STYLES, _STYLES[0])],
            "Content": [_question("What is the main subject of the image?", SHAPES[:4], attributes.shape)],
        },
    }


def _question(question: str, options: tuple[str, ...], answer: str) -> dict[str, Any]:
    choices = options if answer in options else (*options[:3], answer)
    return {
        "Question": question,
        "Options": [f"{letter}: {choice}" for letter, choice in zip("ABCD", choices, strict=True)],
        "Answer": "ABCD"[choices.index(answer)],
    }
