"""The layouts of the music corpora: metadata of the Youtube-Music-1M kind, and MusicCaps.

Youtube: ``<first character of id, lower case>/<id>.wav`` and ``<id>.json``. MusicCaps: ``musiccaps-public.csv`` and
``wav/[<ytid>]-[<start>-<end>].wav``; its clips are ten seconds long in reality, here as long as the config says.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from pipeline.sample_corpora.draws import pick, stable_int
from pipeline.sample_corpora.encoders import wav_bytes
from pipeline.sample_corpora.items import (
    ItemRecord,
    Task,
    as_sentence,
    music_attributes,
    music_caption,
    music_sound,
)
from pipeline.sample_corpora.music import SAMPLE_RATE_HZ, MusicAttributes

_ID_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CSV_HEADER = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
)
_PLAYLISTS = ("Etudes for one instrument", "Scales and drones", "Quiet practice")


def write_youtube_music(task: Task) -> list[ItemRecord]:
    """Write one JSON and one WAV a clip; the truth about every clip."""
    records: list[ItemRecord] = []
    for index in range(task.count):
        attributes = music_attributes(task, index)
        name = _video_id(task, index)
        metadata = _metadata(task, index, name, attributes)
        folder = task.folder / name[0].lower()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")
        sound = music_sound(task, attributes, index, duration_s=task.config.music.duration_s)
        (folder / f"{name}.wav").write_bytes(wav_bytes(sound, SAMPLE_RATE_HZ))
        records.append(
            ItemRecord(f"{folder.name}/{name}.wav", name, "music", metadata["caption"], attributes.as_dict())
        )
    return records


def write_musiccaps(task: Task) -> list[ItemRecord]:
    """Write the CSV and its clips; the truth about every clip."""
    (task.folder / "wav").mkdir(parents=True, exist_ok=True)
    duration_s = task.config.music.musiccaps_duration_s
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(_CSV_HEADER.split(","))
    records: list[ItemRecord] = []
    for index in range(task.count):
        rng = task.rng("caption", index)
        attributes, name = music_attributes(task, index), _video_id(task, index)
        start_s = 10 * int(rng.integers(0, 20))
        path = f"wav/[{name}]-[{start_s}-{start_s + duration_s}].wav"
        sound = music_sound(task, attributes, index, duration_s=duration_s)
        (task.folder / path).write_bytes(wav_bytes(sound, SAMPLE_RATE_HZ))
        caption = as_sentence(music_caption(rng, attributes))
        aspects = str([*attributes.as_dict().values(), "instrumental"])
        rows.writerow([name, start_s, start_s + duration_s, "/m/04rlf", aspects, caption, 0, False, False])
        records.append(ItemRecord(path, name, "music", caption, attributes.as_dict()))
    (task.folder / "musiccaps-public.csv").write_text(table.getvalue(), encoding="utf-8")
    return records


def _metadata(task: Task, index: int, name: str, attributes: MusicAttributes) -> dict[str, Any]:
    rng = task.rng("caption", index)
    title = f"{attributes.pattern.capitalize()} in {attributes.key} ({attributes.instrument}, {attributes.tempo})"
    return {
        "id": name,
        "title": title,
        "artist": "Additive synthesis",
        "description": f"{as_sentence(music_caption(rng, attributes))} Synthesised for practice.",
        "keywords": [attributes.instrument, attributes.pattern, f"{attributes.tempo} tempo", "instrumental"],
        "playlist": [pick(rng, _PLAYLISTS)],
        "lyrics": None,
        "duration": task.config.music.duration_s,
        "audio": f"{name}.wav",
        "caption": as_sentence(music_caption(rng, attributes)),
    }


def _video_id(task: Task, index: int) -> str:
    """Eleven characters, as the real ids have."""
    number = stable_int("video", task.config.seed, task.corpus, task.split, index)
    return "".join(_ID_CHARACTERS[(number // 62**place) % 62] for place in range(11))
