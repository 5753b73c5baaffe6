"""Dialogues as the text stages would have left them, of what the offline renderers know."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.draws import generator, pick
from synthesis.dialogues import DIALOGUES_NAME, Dialogue, DialogueTurn, dialogues_table

REQUIREMENTS = ("asks_for_image", "user_gives_image", "asks_for_music", "user_shares_music")


def draw_dialogue(number: int) -> Dialogue:
    """Two rounds; which medium stands where goes by turns."""
    rng = generator(7, "dialogue", number)
    kind = REQUIREMENTS[number % len(REQUIREMENTS)]
    caption = pictures.describe(
        pick(rng, pictures.all_attributes()), int(rng.integers(len(pictures.SENTENCE_TEMPLATES)))
    )
    piece = music.describe(pick(rng, music.all_attributes()), int(rng.integers(len(music.TEMPLATES))))
    medium = f"[music: {piece}]" if "music" in kind else f"[image: {caption}]"
    texts = (
        ("Could you make something simple for my wall today?", f"Here it is, I hope you like it. {medium}")
        if kind.startswith("asks")
        else (f"{medium} What do you make of this one, my friend?", "It is calm and clear, and I like it a lot.")
    )
    closing = (
        "Thank you, that is just what I was after.",
        f"You are welcome; here is one more picture. [image: {caption}]",
    )
    turns = tuple(
        DialogueTurn(role, text) for role, text in zip(("user", "assistant") * 2, (*texts, *closing), strict=True)
    )
    return Dialogue(f"{number:08x}", turns, "simple things", "art", kind, "Somebody wants something simple.")


def write_dialogues(folder: Path, dialogues: list[Dialogue]) -> Path:
    """The folder as :func:`synthesis.media_job.make_media` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(dialogues_table(dialogues), folder / DIALOGUES_NAME)
    return folder
