"""The LAION layouts: what img2dataset writes with ``--output_format webdataset``.

``NNNNN.tar`` (per sample ``.jpg``, ``.txt``, ``.json``), ``NNNNN.parquet`` (all rows, also those that failed to
download) and ``NNNNN_stats.json``. LAION-2B has the alt text only, LAION-COCO adds a descriptive ``top_caption`` with
its rivals, LAION-Aesthetics a predicted score. Similarities, probabilities and scores are placeholders in the usual
ranges.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sample_corpora.draws import stable_hex, stable_int
from pipeline.sample_corpora.encoders import MTIME_S, tar_bytes
from pipeline.sample_corpora.items import (
    ItemRecord,
    Task,
    alt_text,
    picture_attributes,
    picture_bytes,
    sentence_caption,
)
from pipeline.sample_corpora.pictures import SIZE_PX, PictureAttributes

_NOT_FOUND = "HTTP Error 404: Not Found"
_FIRST = [("similarity", pa.float64()), ("hash", pa.int64()), ("punsafe", pa.float32()), ("pwatermark", pa.float32())]
_OWN: dict[str, list[tuple[str, pa.DataType]]] = {
    "laion2b": [],
    "laion_coco": [
        ("top_caption", pa.string()),
        ("all_captions", pa.list_(pa.string())),
        ("all_similarities", pa.list_(pa.float64())),
    ],
    "laion_aesthetics": [("aesthetic", pa.float32())],
}
_LAST = [
    *((name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")),
    *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
    *((name, pa.string()) for name in ("exif", "sha256")),
]


def write(task: Task) -> list[ItemRecord]:
    """Write the shards of one LAION corpus; the truth about every picture."""
    records: list[ItemRecord] = []
    per_shard = task.config.pictures.samples_per_shard
    for shard, start in enumerate(range(0, task.count, per_shard)):
        records += _write_shard(task, shard, range(start, min(start + per_shard, task.count)))
    return records


def _write_shard(task: Task, shard: int, indices: range) -> list[ItemRecord]:
    rows: list[dict[str, Any]] = []
    members: list[tuple[str, bytes]] = []
    records: list[ItemRecord] = []
    for index in indices:
        if task.rng("failed", index).random() < task.config.pictures.failed_share:
            rows.append(_failed_row(task, f"{shard:05d}{len(rows):04d}", index))
        key = f"{shard:05d}{len(rows):04d}"
        attributes = picture_attributes(task, index)
        jpeg = picture_bytes(task, attributes, index)
        row = _row(task, key, index, attributes, jpeg)
        rows.append(row)
        members += [
            (f"{key}.jpg", jpeg),
            (f"{key}.txt", str(row["caption"]).encode()),
            (f"{key}.json", json.dumps(row, indent=4).encode()),
        ]
        text = str(row.get("top_caption", row["caption"]))
        records.append(ItemRecord(f"{shard:05d}.tar", key, "image", text, attributes.as_dict()))
    (task.folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    (task.folder / f"{shard:05d}.parquet").write_bytes(_parquet(task.corpus, rows))
    (task.folder / f"{shard:05d}_stats.json").write_text(_stats(rows), encoding="utf-8")
    return records


def _row(task: Task, key: str, index: int, attributes: PictureAttributes, jpeg: bytes) -> dict[str, Any]:
    rng = task.rng("row", index)
    caption = alt_text(rng, attributes)
    row = _placeholders(task, index, caption)
    if task.corpus == "laion_coco":
        candidates = [sentence_caption(rng, attributes), sentence_caption(rng, attributes), caption]
        row |= {
            "top_caption": candidates[0],
            "all_captions": candidates,
            "all_similarities": sorted((round(float(value), 6) for value in rng.uniform(0.22, 0.34, 3)), reverse=True),
        }
    if task.corpus == "laion_aesthetics":
        row["aesthetic"] = round(float(rng.uniform(6.0, 7.5)), 4)
    return row | {
        "caption": caption,
        "url": _url(task, index),
        "key": key,
        "status": "success",
        "error_message": None,
        "width": SIZE_PX,
        "height": SIZE_PX,
        "original_width": SIZE_PX,
        "original_height": SIZE_PX,
        "exif": "{}",
        "sha256": hashlib.sha256(jpeg).hexdigest(),
    }


def _failed_row(task: Task, key: str, index: int) -> dict[str, Any]:
    names = [name for name, _ in (*_FIRST, *_OWN[task.corpus], *_LAST)]
    caption = "a picture that is no longer there"
    row: dict[str, Any] = dict.fromkeys(names) | _placeholders(task, f"failed{index}", caption)
    url = _url(task, f"failed{index}")
    return row | {
        "caption": caption,
        "url": url,
        "key": key,
        "status": "failed_to_download",
        "error_message": _NOT_FOUND,
    }


def _placeholders(task: Task, index: int | str, caption: str) -> dict[str, Any]:
    rng = task.rng("placeholders", index)
    return {
        "similarity": round(float(rng.uniform(0.3, 0.4)), 12),
        "hash": stable_int(_url(task, index), caption, num_bytes=8) - 2**63,
        "punsafe": round(float(rng.uniform(0.001, 0.02)), 10),
        "pwatermark": round(float(rng.uniform(0.05, 0.3)), 10),
    }


def _url(task: Task, index: int | str) -> str:
    return f"https://example.org/{task.corpus}/{stable_hex(task.config.seed, task.split, index, digits=16)}.jpg"


def _parquet(corpus: str, rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*_FIRST, *_OWN[corpus], *_LAST])), buffer)
    return buffer.getvalue()


def _stats(rows: list[dict[str, Any]]) -> str:
    successes = sum(row["status"] == "success" for row in rows)
    failures = {_NOT_FOUND: len(rows) - successes} if len(rows) > successes else {}
    stats = {
        "count": len(rows),
        "successes": successes,
        "failed_to_download": len(rows) - successes,
        "failed_to_resize": 0,
        "duration": 4.0,
        "start_time": float(MTIME_S),
        "end_time": MTIME_S + 4.0,
        "status_dict": {"success": successes} | failures,
    }
    return json.dumps(stats, indent=4)
