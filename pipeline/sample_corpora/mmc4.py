"""The MMC4-core-ff layout: ``docs_no_face_shard_<n>_v3.jsonl.gz`` and ``images/<12 hex digits>.jpg``.

A document has three to six sentences; two or three of them describe a picture, which is matched at their position. The
pictures of a document share a shape, a colour or a background, which the first sentence names.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipeline.sample_corpora.draws import pick, stable_hex
from pipeline.sample_corpora.encoders import gzip_bytes
from pipeline.sample_corpora.items import (
    ItemRecord,
    Task,
    as_sentence,
    picture_bytes,
    sentence_caption,
    themed_attributes,
)
from pipeline.sample_corpora.pictures import PictureAttributes

_DOCUMENTS_PER_SHARD = 50
_OPENINGS = (
    "This page is about the word {word}.",
    "Here are some pictures that share one thing: {word}.",
    "Today we collect pictures for the word {word}.",
)
_LINKS = ("The next one is a little different.", "Look at another one.", "There is more to see.")
_CLOSINGS = ("That is all for now.", "Come back for more pictures.", "Which one do you like best?")


def write(task: Task) -> list[ItemRecord]:
    """Write documents and pictures; the truth about every picture."""
    (task.folder / "images").mkdir(parents=True, exist_ok=True)
    records: list[ItemRecord] = []
    for shard, start in enumerate(range(0, task.count, _DOCUMENTS_PER_SHARD)):
        name = f"docs_no_face_shard_{shard}_v3.jsonl.gz"
        lines: list[str] = []
        for index in range(start, min(start + _DOCUMENTS_PER_SHARD, task.count)):
            document, own_records = _document(task, index)
            lines.append(json.dumps(document) + "\n")
            records += own_records
        (task.folder / name).write_bytes(gzip_bytes("".join(lines).encode()))
    return records


def _document(task: Task, index: int) -> tuple[dict[str, Any], list[ItemRecord]]:
    rng = task.rng("document", index)
    word, shown = themed_attributes(task, rng, count=int(rng.integers(2, 4)))
    sentences, positions = _sentences(rng, word, shown)
    similarities = _similarities(rng, positions, len(sentences))
    images: list[dict[str, Any]] = []
    records: list[ItemRecord] = []
    for nth, (attributes, position) in enumerate(zip(shown, positions, strict=True)):
        image_name = f"{stable_hex(task.config.seed, task.split, index, nth, digits=12)}.jpg"
        (task.folder / "images" / image_name).write_bytes(picture_bytes(task, attributes, index, nth))
        images.append(
            {
                "image_name": image_name,
                "raw_url": f"https://example.org/mmc4/{image_name}",
                "matched_text_index": position,
                "matched_sim": similarities[nth][position],
                "face_detections": None,
            }
        )
        records.append(
            ItemRecord(f"images/{image_name}", image_name, "image", sentences[position], attributes.as_dict())
        )
    document = {
        "text_list": sentences,
        "url": f"https://example.org/mmc4/page-{index}",
        "image_info": images,
        "similarity_matrix": similarities,
        "could_have_url_duplicate": 0,
    }
    return document, records


def _sentences(
    rng: np.random.Generator, word: str, shown: tuple[PictureAttributes, ...]
) -> tuple[list[str], list[int]]:
    """Three to six sentences, and at which of them each picture stands."""
    sentences = [pick(rng, _OPENINGS).format(word=word)]
    positions: list[int] = []
    for nth, attributes in enumerate(shown):
        if nth > 0 and len(shown) == 2 and rng.random() < 0.5:
            sentences.append(pick(rng, _LINKS))
        positions.append(len(sentences))
        sentences.append(as_sentence(sentence_caption(rng, attributes)))
    if rng.random() < 0.5:
        sentences.append(pick(rng, _CLOSINGS))
    return sentences, positions


def _similarities(rng: np.random.Generator, positions: list[int], num_sentences: int) -> list[list[float]]:
    """Placeholders, pictures x sentences, largest where a picture is matched."""
    matrix = rng.uniform(0.10, 0.22, (len(positions), num_sentences))
    for nth, position in enumerate(positions):
        matrix[nth, position] = rng.uniform(0.28, 0.36)
    return [[round(float(value), 6) for value in row] for row in matrix]
