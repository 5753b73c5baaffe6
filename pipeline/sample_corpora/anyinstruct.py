"""The AnyInstruct layout: ``metadata.jsonl``, ``images_224/``, ``speech/``, ``music/``; one dialogue a line.

In some dialogues (``dialogues.spoken_share``) the first round is spoken: both its messages have a file, and what is said
is what is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.sample_corpora import music, speech
from pipeline.sample_corpora.dialogues import Message, draw_dialogue
from pipeline.sample_corpora.draws import pick
from pipeline.sample_corpora.encoders import mp3_bytes, wav_bytes
from pipeline.sample_corpora.items import ItemRecord, Task, music_sound, picture_bytes
from pipeline.sample_corpora.pictures import PictureAttributes


@dataclass(slots=True)
class _Media:
    """The media files of the dialogues written so far, numbered through."""

    task: Task
    num_images: int = 0
    num_music: int = 0
    records: list[ItemRecord] = field(default_factory=list[ItemRecord])

    def add(self, message: Message, dialogue_id: str) -> dict[str, list[dict[str, str]]]:
        """Write what the message shows; its ``images`` and ``music`` fields."""
        if message.shown is None:
            return {"images": [], "music": []}
        if isinstance(message.shown, PictureAttributes):
            name = f"image_{self.num_images:06d}.jpg"
            path, modality, data = (
                f"images_224/{name}",
                "image",
                picture_bytes(self.task, message.shown, self.num_images),
            )
            self.num_images += 1
            entry = {"images": [{"caption": message.caption, "image_file": name}], "music": []}
        else:
            name = f"music_{self.num_music:06d}.mp3"
            duration_s = self.task.config.music.duration_s
            sound = music_sound(self.task, message.shown, self.num_music, duration_s=duration_s)
            path, modality, data = f"music/{name}", "music", mp3_bytes(sound, music.SAMPLE_RATE_HZ)
            self.num_music += 1
            entry = {"images": [], "music": [{"caption": message.caption, "music_file": name}]}
        (self.task.folder / path).write_bytes(data)
        self.records.append(ItemRecord(path, dialogue_id, modality, message.caption, message.shown.as_dict()))
        return entry


def write(task: Task) -> list[ItemRecord]:
    """Write the dialogues and their media; the truth about every picture and sound."""
    for folder in ("images_224", "speech", "music"):
        (task.folder / folder).mkdir(parents=True, exist_ok=True)
    media = _Media(task)
    lines = [json.dumps(_dialogue(media, index)) + "\n" for index in range(task.count)]
    (task.folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return media.records


def _dialogue(media: _Media, index: int) -> dict[str, Any]:
    rng = media.task.rng("dialogue", index)
    is_spoken = rng.random() < media.task.config.dialogues.spoken_share
    rounds = draw_dialogue(rng, held_out=media.task.held_out, is_spoken=is_spoken)
    voices = [speech.voice_by_name(name) for name in media.task.config.speech.voices]
    # The assistant speaks with one voice, as in the real corpus; users have any.
    speakers = {"USER": pick(rng, voices), "AnyGPT": voices[0]}
    dialogue_id = f"{index:08d}"
    chat: list[dict[str, Any]] = []
    for nth, one in enumerate(rounds):
        for role, message in (("USER", one.request), ("AnyGPT", one.answer)):
            name = f"chat_{dialogue_id}_{role[0]}{nth + 1}.wav" if is_spoken and nth == 0 else None
            if name:
                _write_speech(media, message.words, speakers[role], name, dialogue_id)
            chat.append({"role": role, "message": message.text, "speech": name} | media.add(message, dialogue_id))
    return {"id": dialogue_id, "scenario": " then ".join(one.kind for one in rounds), "chat": chat}


def _write_speech(media: _Media, words: str, voice: speech.Voice, name: str, dialogue_id: str) -> None:
    sound = speech.synthesize(words, voice)
    (media.task.folder / "speech" / name).write_bytes(wav_bytes(sound, speech.SAMPLE_RATE_HZ))
    media.records.append(ItemRecord(f"speech/{name}", dialogue_id, "speech", words, {"voice": voice.name}))
