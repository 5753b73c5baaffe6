"""The data card of a synthesized corpus: ``README.md`` for people, ``data_card.json`` for programs.

Everything in it is counted from the corpus's own lines and from its report, or taken from the config it was made with; no
time and no machine, so equal corpora have equal cards. The form is that of dataset cards on the Hugging Face hub.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shards.errors import DatasetError
from shards.left_out import FILTERED_NAME, REJECTS_NAME
from shards.writer import commit_bytes

CARD_NAME, README_NAME = "data_card.json", "README.md"
_SIDES = {"USER": "user", "AnyGPT": "assistant"}


@dataclass(slots=True)
class _Counts:
    """What the lines of a corpus add up to."""

    dialogues: int = 0
    turns: Counter[str] = field(default_factory=Counter[str])
    rounds: Counter[int] = field(default_factory=Counter[int])
    media: Counter[str] = field(default_factory=Counter[str])
    combinations: Counter[str] = field(default_factory=Counter[str])
    exchanges: Counter[str] = field(default_factory=Counter[str])
    voices: Counter[str] = field(default_factory=Counter[str])
    requirements: Counter[str] = field(default_factory=Counter[str])
    speeds: Counter[float] = field(default_factory=Counter[float])
    topics: set[str] = field(default_factory=set[str])
    meta_topics: set[str] = field(default_factory=set[str])
    words: int = 0
    speech_s: float = 0.0
    music_s: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """One line."""
        chat = record["chat"]
        self.dialogues += 1
        self.rounds[len(chat) // 2] += 1
        self.requirements.update([record["requirement"]] if record["requirement"] else [])
        self.topics.update([record["topic"]] if record["topic"] else [])
        self.meta_topics.update([record["meta_topic"]] if record["meta_topic"] else [])
        self.combinations["+".join(_in_order({kind for message in chat for kind in _kinds(message)}))] += 1
        for user, reply in zip(chat[::2], chat[1::2], strict=True):
            self.exchanges[f"{'+'.join(_kinds(user))} -> {'+'.join(_kinds(reply))}"] += 1
        for message in chat:
            self._add_message(message)

    def _add_message(self, message: Mapping[str, Any]) -> None:
        side = _SIDES[message["role"]]
        self.turns[side] += 1
        self.words += sum(not word.startswith("<") for word in message["message"].split())
        self.media.update({f"{side} image": len(message["images"]), f"{side} music": len(message["music"])})
        self.music_s += sum(piece["music_s"] for piece in message["music"])
        if message["speech"]:
            self.media[f"{side} speech"] += 1
            self.voices[message["voice"]] += 1
            self.speeds[message["speed"]] += 1
            self.speech_s += message["speech_s"]


def write_data_card(output: Path) -> dict[str, Any]:
    """Count a corpus and write both forms of its card.

    Returns:
        What ``data_card.json`` holds.

    Raises:
        DatasetError: ``output`` is no finished corpus.
    """
    report, settings = (_read(output, name) for name in ("report.json", "synthesis.json"))
    counts = _Counts()
    with (output / "metadata.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            counts.add(json.loads(line))
    card = _card(counts, report, settings, output)
    commit_bytes(output / CARD_NAME, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    commit_bytes(output / README_NAME, ("\n".join(_readme(card)) + "\n").encode())
    return card


def _read(output: Path, name: str) -> dict[str, Any]:
    path = output / name
    if not path.is_file():
        raise DatasetError(f"{path}: expected a finished corpus, found no such file; run anygpt-synthesize to its end")
    return json.loads(path.read_text(encoding="utf-8"))


def _card(counts: _Counts, report: Mapping[str, Any], settings: Mapping[str, Any], output: Path) -> dict[str, Any]:
    media = {
        kind: {side: counts.media[f"{side} {kind}"] for side in _SIDES.values()}
        for kind in ("image", "music", "speech")
    }
    speeds = sorted(counts.speeds.elements())
    examples = _examples(output / REJECTS_NAME) | _examples(output / FILTERED_NAME)
    return {
        **settings["config"]["provenance"],
        "dialogues": counts.dialogues,
        "turns": dict(sorted(counts.turns.items())),
        "rounds": {str(rounds): number for rounds, number in sorted(counts.rounds.items())},
        "words": counts.words,
        "media": media,
        "modality_combinations": _sorted(counts.combinations),
        "exchanges": _sorted(counts.exchanges),
        "hours": {"speech": round(counts.speech_s / 3600, 4), "music": round(counts.music_s / 3600, 4)},
        "voices": _sorted(counts.voices),
        "speed": {"slowest": speeds[0], "median": speeds[len(speeds) // 2], "fastest": speeds[-1]} if speeds else {},
        "requirements": _sorted(counts.requirements),
        "topics": len(counts.topics),
        "meta_topics": len(counts.meta_topics),
        "inputs": report["inputs"],
        "written": report["written"],
        "filtered": dict(report["filtered"]),
        "rejected": dict(report["rejected"]),
        "left_out_examples": examples,
        "sources": settings["sources"],
        "made_with": settings["facts"],
    }


def _kinds(message: Mapping[str, Any]) -> list[str]:
    """What a message is made of."""
    found = {
        "text": any(not word.startswith("<") for word in message["message"].split()),
        "speech": bool(message["speech"]),
        "image": bool(message["images"]),
        "music": bool(message["music"]),
    }
    return [kind for kind, is_there in found.items() if is_there]


def _in_order(kinds: set[str]) -> list[str]:
    return [kind for kind in ("text", "speech", "image", "music") if kind in kinds]


def _sorted(counter: Counter[str]) -> dict[str, int]:
    """The most frequent first, equals by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _examples(path: Path) -> dict[str, str]:
    """Reason -> the first message of it."""
    table = pq.read_table(path, columns=["reason", "error"])
    found: dict[str, str] = {}
    for reason, error in zip(table["reason"].to_pylist(), table["error"].to_pylist(), strict=True):
        found.setdefault(reason, error)
    return dict(sorted(found.items()))


def _readme(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("---", f"pretty_name: {json.dumps(card['name'], ensure_ascii=False)}")
    licence = _licence_id(card["licence"])
    yield from ("license:", f"- {licence}")
    if licence == "other":
        yield f"license_name: {json.dumps(card['licence'], ensure_ascii=False)}"
    yield from (
        "task_categories:",
        "- any-to-any",
        "tags:",
        "- anygpt",
        "- synthetic",
        "---",
        "",
        f"# {card['name']}",
        "",
    )
    yield (
        f"{card['dialogues']:,} dialogues of {sum(card['turns'].values()):,} turns in the AnyInstruct layout: one dialogue "
        "a line of `metadata.jsonl`, and the files below `images_224`, `music` and `speech`. All media are synthetic."
    )
    if card["notes"]:
        yield from ("", card["notes"])
    yield from ("", "## What is in it", "")
    yield from _table("medium", "by the user", "by the assistant", rows=_media_rows(card))
    yield (
        f"{card['hours']['speech']:.2f} h of speech, {card['hours']['music']:.2f} h of music, {card['words']:,} words; "
        f"{card['topics']:,} topics of {card['meta_topics']:,} meta-topics."
    )
    for title, key in (
        ("Modalities of a dialogue", "modality_combinations"),
        ("Question and answer", "exchanges"),
        ("Rounds", "rounds"),
        ("Requirements", "requirements"),
        ("Voices", "voices"),
    ):
        if card[key]:
            yield from ("", f"### {title}", "")
            yield from _table(title, "number", rows=[(name, f"{number:,}") for name, number in card[key].items()])
    if card["speed"]:
        speed = card["speed"]
        yield f"Speed of speech: {speed['slowest']:g} to {speed['fastest']:g}, median {speed['median']:g}."
    yield from _left_out(card)
    yield from _origin(card)


def _licence_id(licence: str) -> str:
    """The hub's identifier of a licence."""
    if not licence:
        return "unknown"
    # Imports torch, which takes seconds.
    from tokenize_jobs.data_card import licence_id

    return licence_id(licence)


def _media_rows(card: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(kind, f"{by['user']:,}", f"{by['assistant']:,}") for kind, by in card["media"].items()]


def _left_out(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## What is not in it", "")
    out = {**card["filtered"], **card["rejected"]}
    yield f"{card['inputs']:,} inputs = {card['written']:,} written + {sum(out.values()):,} left out."
    if out:
        yield ""
        rows = [
            (reason, f"{number:,}", _cell(card["left_out_examples"].get(reason, ""))) for reason, number in out.items()
        ]
        yield from _table("reason", "number", "for example", rows=rows)


def _origin(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## How it was made", "")
    yield f"- licence: {card['licence'] or 'not stated'}"
    yield f"- text: {card['text_source'] or 'not stated'}; from {', '.join(card['sources'])}"
    for modality, facts in card["made_with"]["plugs"].items():
        yield f"- {modality}: `{json.dumps(facts, sort_keys=True)}`"
    rest = {key: value for key, value in card["made_with"].items() if key != "plugs"}
    yield f"- settings: `{json.dumps(rest, sort_keys=True)}`"


def _table(*header: str, rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield from (f"| {' | '.join(header)} |", "|---" * len(header) + "|")
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:120]
