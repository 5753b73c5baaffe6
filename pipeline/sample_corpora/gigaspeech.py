"""The GigaSpeech layout: ``GigaSpeech.json`` and long recordings ``audio/<source>/P<nnnn>/<aid>.opus``.

A recording opens with music (``<MUSIC>``), ends in noise (``<NOISE>``), and between some sentences a stretch of silence
is labelled (``<SIL>``); the other gaps carry no segment. Segments begin and end on whole hundredths of a second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.sample_corpora import music
from pipeline.sample_corpora.draws import pick, stable_int
from pipeline.sample_corpora.encoders import opus_bytes
from pipeline.sample_corpora.items import ItemRecord, Task, say, speech_record, spoken_item
from pipeline.sample_corpora.speech import SAMPLE_RATE_HZ

_SENTENCES_PER_RECORDING = 34
_SOURCES = (("audiobook", "AUD", "Arts"), ("podcast", "POD", "Education"), ("youtube", "YOU", "Howto and Style"))
_GRID = SAMPLE_RATE_HZ // 100
_MUSIC_S, _NOISE_S = 2.0, 1.0
_MUSIC_DECIMATION = music.SAMPLE_RATE_HZ // SAMPLE_RATE_HZ


@dataclass(slots=True)
class _Recording:
    """A recording while it grows: sounds in order, and the segments that name stretches of them."""

    aid: str
    sounds: list[npt.NDArray[np.float32]] = field(default_factory=list[npt.NDArray[np.float32]])
    segments: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    num_samples: int = 0

    def append(self, sound: npt.NDArray[np.float32], text: str | None = None) -> str:
        """Add a sound, padded to the grid; with a text it is a segment, whose sid is returned."""
        padded = np.pad(sound, (0, -len(sound) % _GRID))
        begin, self.num_samples = self.num_samples, self.num_samples + len(padded)
        self.sounds.append(padded)
        if text is None:
            return ""
        sid = f"{self.aid}_S{len(self.segments):07d}"
        self.segments.append(
            {
                "sid": sid,
                "speaker": "N/A",
                "begin_time": begin / SAMPLE_RATE_HZ,
                "end_time": self.num_samples / SAMPLE_RATE_HZ,
                "text_tn": text,
                "subsets": ["{XL}", "{L}", "{M}", "{S}", "{XS}"],
            }
        )
        return sid


def write(task: Task) -> list[ItemRecord]:
    """Write the recordings and their one JSON; the truth about every sentence."""
    audios: list[dict[str, Any]] = []
    records: list[ItemRecord] = []
    for nth, start in enumerate(range(0, task.count, _SENTENCES_PER_RECORDING)):
        indices = range(start, min(start + _SENTENCES_PER_RECORDING, task.count))
        audio, own_records = _write_recording(task, nth, indices)
        audios.append(audio)
        records += own_records
    everything = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    (task.folder / "GigaSpeech.json").write_text(json.dumps(everything, indent=2), encoding="utf-8")
    return records


def _write_recording(task: Task, nth: int, indices: range) -> tuple[dict[str, Any], list[ItemRecord]]:
    source, prefix, category = _SOURCES[nth % len(_SOURCES)]
    aid = f"{prefix}{nth + 1:010d}"
    path = f"audio/{source}/P{nth + 1:04d}/{aid}.opus"
    recording = _Recording(aid)
    records = _record(task, recording, path, nth, indices)
    serial = stable_int(task.config.seed, task.split, aid, num_bytes=4)
    opus = opus_bytes(np.concatenate(recording.sounds), SAMPLE_RATE_HZ, serial=serial)
    (task.folder / path).parent.mkdir(parents=True, exist_ok=True)
    (task.folder / path).write_bytes(opus)
    audio = {
        "title": f"Small sentences, part {nth + 1}",
        "url": f"https://example.org/gigaspeech/{aid}",
        "path": path,
        "aid": aid,
        "source": source,
        "codec": "opus",
        "channels": 1,
        "sample_rate": SAMPLE_RATE_HZ,
        "format": "opus",
        "md5": hashlib.md5(opus, usedforsecurity=False).hexdigest(),
        "duration": recording.num_samples / SAMPLE_RATE_HZ,
        "speaker": "N/A",
        "category": category,
        "subsets": ["{XL}", "{L}", "{M}", "{S}", "{XS}"],
        "segments": recording.segments,
    }
    return audio, records


def _record(task: Task, recording: _Recording, path: str, nth: int, indices: range) -> list[ItemRecord]:
    """Music, sentences with gaps, noise."""
    from scipy.signal import resample_poly  # seconds to import, which a finished command need not wait

    rng = task.rng("recording", nth)
    piece = pick(rng, music.all_attributes(held_out=task.held_out))
    opening = resample_poly(music.render_music(piece, duration_s=_MUSIC_S, gain_db=-6), 1, _MUSIC_DECIMATION)
    recording.append(opening.astype(np.float32), "<MUSIC>")
    records: list[ItemRecord] = []
    for index in indices:
        gap_s = float(rng.uniform(0.2, 0.6))
        gap = rng.normal(0, 1e-4, round(gap_s * SAMPLE_RATE_HZ)).astype(np.float32)
        recording.append(gap, "<SIL>" if rng.random() < 0.2 else None)
        sentence, voice = spoken_item(task, index)
        sid = recording.append(say(sentence, voice).astype(np.float32), sentence.tagged)
        records.append(speech_record(path, sid, sentence, voice))
    recording.append(rng.normal(0, 0.05, round(_NOISE_S * SAMPLE_RATE_HZ)).astype(np.float32), "<NOISE>")
    return records
