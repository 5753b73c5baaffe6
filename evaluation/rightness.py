"""What is right about an answer in a dialogue: decided by looking, listening and reading, never with codes.

The modality is right if the answer has the media of the true one, in their order. The content is the mean over what can be
told of the true answer:

    picture, music   the attributes that the request names (:func:`named_attributes`), as the judges see and hear them in
                     the true medium and in the answer's; what a request leaves open cannot be wrong
    words            where the true answer shows nothing: the attributes it names
    heard            of a spoken request: words right (1 - word error rate) of the transcript
    reply            of a spoken request: words right of the written reply
    speech           of a spoken request: the sound of the true replies that is nearest to the answer's says the same words

An answer of the wrong modality has no right content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.answers import Said, said_in
from evaluation.heldout import Examiner
from evaluation.judges import MusicJudge, PictureJudge, SpeechJudge, words_right
from pipeline.dialogues import Turn
from pipeline.sample_corpora import music, pictures
from shards.vocabulary import Codes, Modality

Attributes = Mapping[str, str]
_MUSIC_FRAME_S = 1 / 50
_THINGS = frozenset({"shape", "instrument"})  # naming one asks for something new


@dataclass(frozen=True, slots=True)
class Marks:
    """What is right about one answer.

    Attributes:
        parts: ``picture``, ``music``, ``words``, ``heard``, ``reply``, ``speech`` -> fraction right; all 0 if the modality
            is wrong; empty if the true answer says nothing that can be judged.
        attributes: those judged, by name.
    """

    modality: bool
    parts: Mapping[str, float]
    attributes: Mapping[str, bool]

    @property
    def content(self) -> float | None:
        """Mean over the parts; None without any."""
        return float(np.mean(list(self.parts.values()))) if self.parts else None

    @property
    def all_right(self) -> bool:
        """Whether nothing is wrong."""
        return self.modality and all(part == 1.0 for part in self.parts.values())

    @property
    def by_name(self) -> dict[str, bool]:
        """Every mark, as a page shows it."""
        whole = {part: value == 1.0 for part, value in self.parts.items() if part in ("heard", "reply", "speech")}
        return {"modality": self.modality, **self.attributes, **whole}


class TurnJudge:
    """Judges turns of one set of dialogues, whose true answers it has seen and heard."""

    def __init__(self, examiner: Examiner, truths: Sequence[Said]) -> None:
        self._examiner = examiner
        self._pictures = PictureJudge()
        clips = [codes for one in truths if (codes := one.codes(Modality.MUSIC)) is not None]
        self._music = MusicJudge(max(map(len, clips)) * _MUSIC_FRAME_S) if clips else None
        spoken = [(one.text, codes) for one in truths if (codes := one.codes(Modality.SPEECH)) is not None]
        sounds = examiner.decode(Modality.SPEECH, [codes for _, codes in spoken]) if spoken else []
        self._speech = SpeechJudge([(text, sound) for (text, _), sound in zip(spoken, sounds, strict=True)])
        # True answers come with every round, and what a model says first it says twice: equal codes are judged once.
        self._known: dict[tuple[Modality, bytes], Attributes] = {}
        self._heard: dict[bytes, str] = {}

    def judge(
        self, histories: Sequence[Sequence[Turn]], truths: Sequence[Said], answers: Sequence[Said]
    ) -> list[Marks]:
        """The marks of each answer."""
        wanted, found = self._shown(truths), self._shown(answers)
        spoken = self._spoken(answers)
        marks: list[Marks] = []
        for nth, (history, truth, said) in enumerate(zip(histories, truths, answers, strict=True)):
            is_right = said.modalities == truth.modalities
            named = named_attributes(history, truth.heard)
            part = (
                "words"
                if truth.modalities == (Modality.TEXT,)
                else str(truth.modalities[0]).replace("image", "picture")
            )
            asked = {name: value for name, value in wanted[nth].items() if part == "words" or name in named}
            attributes = {name: is_right and found[nth].get(name) == value for name, value in asked.items()}
            parts = {part: float(np.mean(list(attributes.values())))} if attributes else {}
            parts |= _voice_parts(truth, said, spoken[nth]) if truth.heard is not None else {}
            marks.append(Marks(is_right, parts if is_right else dict.fromkeys(parts, 0.0), attributes))
        return marks

    def _shown(self, turns: Sequence[Said]) -> list[Attributes]:
        """Attributes of each turn's first picture, else of its first clip, else of its words."""
        seen: list[Attributes] = [pictures.parse_caption(one.text) | music.parse_caption(one.text) for one in turns]
        for modality in (Modality.MUSIC, Modality.IMAGE):
            chosen = [nth for nth, one in enumerate(turns) if one.codes(modality) is not None]
            codes = [codes for one in turns if (codes := one.codes(modality)) is not None]
            for nth, attributes in zip(chosen, self._judge_media(modality, codes), strict=True):
                seen[nth] = attributes
        return seen

    def _judge_media(self, modality: Modality, codes: Sequence[Codes]) -> Sequence[Attributes]:
        keys = [(modality, one.tobytes()) for one in codes]
        new = {key: one for key, one in zip(keys, codes, strict=True) if key not in self._known}
        if new:
            decoded = self._examiner.decode(modality, list(new.values()))
            if modality == Modality.IMAGE:
                found: Sequence[Attributes] = self._pictures.judge(decoded)
            else:
                found = self._music.judge(decoded) if self._music else [{} for _ in decoded]
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[key] for key in keys]

    def _spoken(self, turns: Sequence[Said]) -> list[str]:
        """What each turn's voice says; "" without one."""
        codes = {nth: codes for nth, one in enumerate(turns) if (codes := one.codes(Modality.SPEECH)) is not None}
        if not codes or not self._speech.sentences:
            return [""] * len(turns)
        keys = {nth: one.tobytes() for nth, one in codes.items()}
        new = {key: codes[nth] for nth, key in keys.items() if key not in self._heard}
        if new:
            sounds = self._examiner.decode(Modality.SPEECH, list(new.values()))
            self._heard |= {key: self._speech.judge(sound) for key, sound in zip(new, sounds, strict=True)}
        return [self._heard[keys[nth]] if nth in keys else "" for nth in range(len(turns))]


def named_attributes(history: Sequence[Turn], heard: str | None = None) -> frozenset[str]:
    """What the request at the end of a history names; one that names no new thing changes the last, so all named since.

    Args:
        heard: what a spoken request says, for its words are not in its turn.
    """
    named: set[str] = set()
    requests = [
        f"{_words(turn)} {said}" for turn, said in zip(history[::2], _spoken_words(history, heard), strict=True)
    ]
    for request in reversed(requests):
        words = {*pictures.parse_caption(request), *music.parse_caption(request)}
        named |= words
        if words & _THINGS:
            break
    return frozenset(named)


def _words(turn: Turn) -> str:
    return " ".join(segment.text for segment in turn.segments if segment.text)


def _spoken_words(history: Sequence[Turn], heard: str | None) -> list[str]:
    """What each request said aloud, from the transcript at the head of its reply; the last has no reply yet."""
    return [*(said_in(reply.segments).heard or "" for reply in history[1::2]), heard or ""]


def _voice_parts(truth: Said, said: Said, spoken: str) -> dict[str, float]:
    parts = {"heard": words_right(said.heard or "", truth.heard or ""), "reply": words_right(said.text, truth.text)}
    if truth.codes(Modality.SPEECH) is not None:
        parts["speech"] = float(spoken == truth.text)
    return parts
