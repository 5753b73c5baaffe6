"""A dialogue as AnyInstruct has it: what media it needs, and its line of ``metadata.jsonl``.

Source: AnyGPT section 4.2; the layout that :mod:`pipeline.corpora.anyinstruct` reads, which leaves keys it does not know
alone. Beside those of the layout, a line holds ``topic``, ``meta_topic`` and ``requirement``, and each message whose words
are said, ``voice``, ``speed`` and ``speech_s``; a piece of music has ``music_s``. The data card is counted from these lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sample_corpora.draws import generator, stable_int
from shards.errors import SampleError
from shards.modality import Modality
from synthesis.dialogues import ASSISTANT, USER, Described, Dialogue, DialogueTurn, split_turn, spoken_words
from synthesis.media import MediaRequest
from synthesis.media_config import CorpusMediaConfig
from synthesis.voices import Speaker, choose_speaker, default_voices

ROLES = {USER: "USER", ASSISTANT: "AnyGPT"}
_SEED_BYTES = 4
# Left of a description that is none: it would be read as words.
_LEFTOVERS = ("[image", "[music", "<image", "<music")


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """A turn with the requests for its media, in the order of its placeholders, and for its voice."""

    role: str
    message: str
    media: tuple[MediaRequest, ...]
    speech: MediaRequest | None


@dataclass(frozen=True, slots=True)
class PlannedDialogue:
    """A dialogue that needs nothing but its media."""

    dialogue: Dialogue
    turns: tuple[PlannedTurn, ...]

    @property
    def requests(self) -> tuple[MediaRequest, ...]:
        """All of them: first pictures and music, which fail more often than speech does."""
        shown = [request for turn in self.turns for request in turn.media]
        return (*shown, *(turn.speech for turn in self.turns if turn.speech is not None))


@dataclass(frozen=True, slots=True)
class MadeMedium:
    """A medium on disk: its file's name in the folder of its modality, and its length."""

    name: str
    seconds: float


def plan_dialogue(dialogue: Dialogue, config: CorpusMediaConfig) -> PlannedDialogue:
    """What media a dialogue needs.

    Raises:
        SampleError: ``turns_out_of_order``, ``turn_empty``, ``caption_empty``, ``placeholder_malformed``.
    """
    roles = [turn.role for turn in dialogue.turns]
    if len(roles) < 2 or len(roles) % 2 or roles != [USER, ASSISTANT] * (len(roles) // 2):
        raise SampleError("turns_out_of_order", f"expected user and assistant in turn, found {roles}")
    is_spoken = generator(config.seed, "spoken", dialogue.dialogue_id).random() < config.spoken_share
    spoken = (config.spoken_rounds or len(roles) // 2) if is_spoken else 0
    said = [nth < spoken and _is_brief(dialogue, nth, config.max_spoken_words) for nth in range(len(roles) // 2)]
    turns = [_planned(dialogue, nth, config, is_spoken=said[nth // 2]) for nth in range(len(roles))]
    return PlannedDialogue(dialogue, tuple(turns))


def dialogue_record(planned: PlannedDialogue, made: Mapping[str, MadeMedium]) -> dict[str, Any]:
    """The line of a dialogue, by the media that were made for the keys of its requests."""
    dialogue = planned.dialogue
    return {
        "id": dialogue.dialogue_id,
        "scenario": dialogue.scenario or dialogue.topic,
        "topic": dialogue.topic,
        "meta_topic": dialogue.meta_topic,
        "requirement": dialogue.requirement,
        "chat": [_message(turn, made) for turn in planned.turns],
    }


def _is_brief(dialogue: Dialogue, round_number: int, most: int) -> bool:
    """Whether both turns of a round are short enough to be said."""
    turns = dialogue.turns[2 * round_number : 2 * round_number + 2]
    return not most or all(len(spoken_words(turn.text).split()) <= most for turn in turns)


def _planned(dialogue: Dialogue, nth: int, config: CorpusMediaConfig, *, is_spoken: bool) -> PlannedTurn:
    turn = dialogue.turns[nth]
    message, media = _message_text(dialogue, nth, config)
    words = spoken_words(turn.text)
    speech = None
    if is_spoken and words:
        speaker = _speaker(dialogue, turn, config)
        key = f"{dialogue.dialogue_id}/{nth}/speech"
        speech = MediaRequest(Modality.SPEECH, words, key, _seed(config, key), voice=speaker.voice, speed=speaker.speed)
    return PlannedTurn(turn.role, message, media, speech)


def _message_text(dialogue: Dialogue, nth: int, config: CorpusMediaConfig) -> tuple[str, tuple[MediaRequest, ...]]:
    """The message with its placeholders, numbered by kind from 1, and what stands for each."""
    words: list[str] = []
    media: list[MediaRequest] = []
    counts = {"image": 0, "music": 0}
    for part in split_turn(dialogue.turns[nth].text):
        if isinstance(part, Described):
            counts[part.modality] += 1
            name = f"{part.modality}{counts[part.modality]}"
            words.append(f"<{name}>")
            media.append(_request(part, f"{dialogue.dialogue_id}/{nth}/{name}", config))
            continue
        if any(leftover in part.lower() for leftover in _LEFTOVERS):
            raise SampleError("placeholder_malformed", f"expected [image: ...] or [music: ...], found {part!r}")
        words.append(part)
    if not words:
        raise SampleError("turn_empty", f"expected words or media in turn {nth}, found nothing")
    return " ".join(words), tuple(media)


def _request(part: Described, key: str, config: CorpusMediaConfig) -> MediaRequest:
    if not part.description:
        raise SampleError("caption_empty", f"expected a description of the {part.modality}, found nothing")
    modality = Modality.IMAGE if part.modality == "image" else Modality.MUSIC
    duration_s = config.music_s if modality is Modality.MUSIC else 0.0
    return MediaRequest(modality, part.description, key, _seed(config, key), duration_s)


def _speaker(dialogue: Dialogue, turn: DialogueTurn, config: CorpusMediaConfig) -> Speaker:
    voices = config.voices.names or default_voices()
    if turn.role == ASSISTANT and config.voices.assistant:
        voices = (config.voices.assistant,)
    return choose_speaker(
        voices,
        slowest=config.voices.slowest,
        fastest=config.voices.fastest,
        seed=config.seed,
        dialogue_id=dialogue.dialogue_id,
        role=turn.role,
    )


def _seed(config: CorpusMediaConfig, key: str) -> int:
    return stable_int(config.seed, "medium", key, num_bytes=_SEED_BYTES) >> 1


def _message(turn: PlannedTurn, made: Mapping[str, MadeMedium]) -> dict[str, Any]:
    images = [
        {"caption": request.text, "image_file": made[request.key].name}
        for request in turn.media
        if request.modality is Modality.IMAGE
    ]
    music = [
        {
            "caption": request.text,
            "music_file": made[request.key].name,
            "music_s": round(made[request.key].seconds, 4),
        }
        for request in turn.media
        if request.modality is Modality.MUSIC
    ]
    message: dict[str, Any] = {"role": ROLES[turn.role], "message": turn.message, "speech": None}
    if turn.speech is not None:
        said = made[turn.speech.key]
        message |= {
            "speech": said.name,
            "voice": turn.speech.voice,
            "speed": turn.speech.speed,
            "speech_s": round(said.seconds, 4),
        }
    return message | {"images": images, "music": music}
