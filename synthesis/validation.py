"""Whether an answer is a dialogue as we asked for it: every rule a function with a name that rejects count by.

Source: AnyGPT appendix D, figure 7, says what a dialogue is; the order of the rules, and what each takes for a breach, is
ours. All rules are asked; the first that is broken, in the order of :data:`RULES`, is the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.filters.rules.language_foreign import tell_language
from synthesis.config import DialoguesConfig, Requirement
from synthesis.dialogues import ASSISTANT, USER, DialogueTurn, described_media, spoken_words
from synthesis.names import famous_name
from synthesis.prompts import SPEAKERS, read_turns
from synthesis.similarity import most_alike

SHINGLE_WORDS = 3
_MIN_LANGUAGE_CONFIDENCE = 0.6
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_PLACEHOLDER = re.compile(
    r"\{\w*\}|<\w+>|\bdescription of the (?:image|picture|music)\b|\.\.\.\]|…\]|\[(?:image|music):\s*\]"
)
_REFUSED = "help|assist|create|generate|make|draw|play|hear|listen|see|view|provide|produce|show|access|continue|write"
_REFUSAL = re.compile(
    r"\b(?:as an ai\b|as a language model|"
    r"(?:i['’]?m|i am) (?:sorry|afraid|unable|not able)\b.{0,40}\b(?:can['’]?t|cannot|unable|not able|to (?:help|assist))|"
    rf"i(?: can['’]?t| cannot| won['’]?t| am unable to|['’]m unable to) (?:{_REFUSED})|"
    r"can['’]?t (?:assist|help) with|against my (?:guidelines|policy))",
    re.IGNORECASE | re.DOTALL,
)
_REQUEST = re.compile(
    r"\?|\b(?:please|can|could|would|will|i want|needs?|i['’]d|let['’]s|what|how|which|who|where|why|show|draw|paint|sketch|"
    r"make|create|design|play|compose|write|give|find|tell|describe|explain|suggest|recommend|help|turn|change|add|put|move|"
    r"try|listen|look|hear|name|compare|imagine|generate|produce|pick|choose|share|send|bring|use|keep|set|guess|sing|match)\b",
    re.IGNORECASE,
)
_ASKS_FOR = {
    "image": re.compile(
        r"\b(?:images?|pictures?|photos?|photographs?|draw\w*|paint\w*|sketch\w*|illustrat\w*|posters?|logos?|cards?|covers?|icons?|"
        r"art\w*|design\w*|visual\w*|look\w*|see|show\w*|scenes?|portraits?|stickers?|wallpapers?|cartoons?|colou?r\w*)\b",
        re.IGNORECASE,
    ),
    "music": re.compile(
        r"\b(?:music\w*|songs?|tunes?|melod\w*|tracks?|pieces?|sounds?|soundtracks?|play\w*|hear\w*|listen\w*|compos\w*|rhythms?|beats?|"
        r"jingles?|scores?|lullab\w*|instrument\w*|themes?|ballads?|audio|anthems?|tempo|sing\w*|loops?|ambien\w*)\b",
        re.IGNORECASE,
    ),
}
_WANTED = {
    Requirement.USER_GIVES_IMAGE: (USER, "image"),
    Requirement.USER_SHARES_MUSIC: (USER, "music"),
    Requirement.ASKS_FOR_MUSIC: (ASSISTANT, "music"),
    Requirement.ASKS_FOR_IMAGE: (ASSISTANT, "image"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that is broken, and how."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What an answer was read as, and its faults in the order of the rules; sound when there are none."""

    turns: tuple[DialogueTurn, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class _Case:
    """An answer as the rules see it; ``spoken`` has a speaker's name as it was written."""

    text: str
    spoken: tuple[tuple[str, str], ...]
    turns: tuple[DialogueTurn, ...]
    requirement: Requirement
    config: DialoguesConfig
    demonstrations: Sequence[str]
    famous_names: Path | None


def check_dialogue(
    text: str,
    requirement: Requirement,
    config: DialoguesConfig,
    *,
    demonstrations: Sequence[str] = (),
    famous_names: Path | None = None,
) -> Checked:
    """Read an answer as a dialogue and ask every rule.

    Args:
        demonstrations: that the prompt showed, as :func:`~synthesis.prompts.format_dialogue` writes them.
        famous_names: a file of names beyond our own.
    """
    spoken = tuple(read_turns(text))
    turns = tuple(DialogueTurn(SPEAKERS[name], words) for name, words in spoken if name in SPEAKERS)
    case = _Case(text, spoken, turns, requirement, config, demonstrations, famous_names)
    faults: list[Fault] = []
    for reason, rule in RULES.items():
        message = next(rule(case), None)
        if message is not None:
            faults.append(Fault(reason, message))
            if reason in _NOTHING_TO_JUDGE:
                break
    return Checked(turns, tuple(faults))


def _is_empty(case: _Case) -> Iterator[str]:
    if not case.text.strip():
        yield "the answer has no text"


def _is_refused(case: _Case) -> Iterator[str]:
    answers = [turn.text for turn in case.turns if turn.role == ASSISTANT] or [case.text]
    yield from (found[0] for found in map(_REFUSAL.search, answers) if found)


def _is_no_dialogue(case: _Case) -> Iterator[str]:
    if not case.spoken:
        yield f"expected lines that begin with a speaker, found {case.text[:100]!r}"


def _has_strangers(case: _Case) -> Iterator[str]:
    yield from (f"expected User or AnyGPT, found {name!r}" for name, _ in case.spoken if name not in SPEAKERS)


def _is_out_of_turn(case: _Case) -> Iterator[str]:
    roles = [turn.role for turn in case.turns]
    expected = ([USER, ASSISTANT] * len(roles))[: len(roles)]
    if roles != expected or len(roles) % 2:
        yield f"expected user and assistant in turn, found {', '.join(roles) or 'nobody'}"


def _has_wrong_rounds(case: _Case) -> Iterator[str]:
    rounds, least, most = len(case.turns) // 2, case.config.min_rounds, case.config.max_rounds
    if not least <= rounds <= most:
        yield f"expected {least} to {most} rounds, found {rounds}"


def _has_open_brackets(case: _Case) -> Iterator[str]:
    for turn in case.turns:
        rest = _BRACKET.sub("", turn.text)
        if "[" in rest or "]" in rest:
            yield f"expected every bracket to have its other half, none inside another: {turn.text[:100]!r}"


def _has_unknown_media(case: _Case) -> Iterator[str]:
    for turn in case.turns:
        for found in _BRACKET.finditer(turn.text):
            if not described_media(found[0]):
                yield f"expected [image: …] or [music: …], found {found[0][:80]!r}"


def _has_placeholders(case: _Case) -> Iterator[str]:
    yield from (f"found {found[0]!r}" for found in (_PLACEHOLDER.search(turn.text) for turn in case.turns) if found)


def _has_bad_descriptions(case: _Case) -> Iterator[str]:
    least, most = case.config.min_description_words, case.config.max_description_words
    for turn in case.turns:
        for medium in described_media(turn.text):
            words = len(medium.description.split())
            if not least <= words <= most:
                yield f"expected {least} to {most} words, found {words}: {medium.description[:80]!r}"


def _is_empty_turn(case: _Case) -> Iterator[str]:
    yield from (f"turn {nth} says nothing" for nth, turn in enumerate(case.turns, 1) if not spoken_words(turn.text))


def _is_too_short(case: _Case) -> Iterator[str]:
    least = case.config.min_words - case.config.words_slack
    for nth, words in _word_counts(case):
        if 0 < words < least:
            yield f"expected at least {least} words, found {words} in turn {nth}"


def _is_too_long(case: _Case) -> Iterator[str]:
    most = case.config.max_words + case.config.words_slack
    for nth, words in _word_counts(case):
        if words > most:
            yield f"expected at most {most} words, found {words} in turn {nth}"


def _has_no_media(case: _Case) -> Iterator[str]:
    if not any(described_media(turn.text) for turn in case.turns):
        yield "expected a picture or a piece of music, found neither"


def _has_too_many_images(case: _Case) -> Iterator[str]:
    yield from _too_many(case, "image", case.config.max_images)


def _has_too_many_music(case: _Case) -> Iterator[str]:
    yield from _too_many(case, "music", case.config.max_music)


def _breaks_requirement(case: _Case) -> Iterator[str]:
    side, modality = _WANTED[case.requirement]
    if not any(modality == other for _, other in _sides(case)):
        yield f"expected {modality} of the {side}, found none at all"


def _has_media_in_wrong_turn(case: _Case) -> Iterator[str]:
    side, modality = _WANTED[case.requirement]
    sides = [role for role, other in _sides(case) if other == modality]
    if sides and side not in sides:
        yield f"expected {modality} of the {side}, found it only in a turn of the {sides[0]}"


def _has_media_nobody_asked_for(case: _Case) -> Iterator[str]:
    asked: set[str] = set()
    for turn in case.turns:
        if turn.role == USER:
            asked |= {modality for modality, sign in _ASKS_FOR.items() if sign.search(spoken_words(turn.text))}
            continue
        for medium in described_media(turn.text):
            if medium.modality not in asked:
                yield f"the user never asked for {medium.modality}, the assistant gives it: {turn.text[:80]!r}"


def _asks_nothing(case: _Case) -> Iterator[str]:
    for turn in case.turns:
        words = spoken_words(turn.text)
        if turn.role == USER and words and not _REQUEST.search(words):
            yield f"expected a question or an instruction, found {words[:80]!r}"


def _is_foreign(case: _Case) -> Iterator[str]:
    if not case.config.languages:
        return
    language, confidence = tell_language(" ".join(spoken_words(turn.text) for turn in case.turns))
    if language not in case.config.languages and confidence >= _MIN_LANGUAGE_CONFIDENCE:
        yield f"expected {', '.join(case.config.languages)}, found {language} ({confidence:.2f})"


def _names_somebody(case: _Case) -> Iterator[str]:
    for turn in case.turns:
        texts = [medium.description for medium in described_media(turn.text)]
        for text in [*texts, spoken_words(turn.text)]:
            found = famous_name(text, case.famous_names)
            if found:
                yield f"found {found!r}"


def _copies_a_demonstration(case: _Case) -> Iterator[str]:
    found = most_alike(
        "\n".join(turn.text for turn in case.turns), map(_bare, case.demonstrations), words=SHINGLE_WORDS
    )
    if found >= case.config.demonstration_similarity:
        yield f"as alike as {found:.2f} to one it was shown"


def _word_counts(case: _Case) -> Iterator[tuple[int, int]]:
    for nth, turn in enumerate(case.turns, 1):
        yield nth, len(spoken_words(turn.text).split())


def _sides(case: _Case) -> list[tuple[str, str]]:
    return [(turn.role, medium.modality) for turn in case.turns for medium in described_media(turn.text)]


def _too_many(case: _Case, modality: str, most: int) -> Iterator[str]:
    count = sum(modality == other for _, other in _sides(case))
    if count > most:
        yield f"expected at most {most}, found {count}"


def _bare(dialogue: str) -> str:
    return "\n".join(words for _, words in read_turns(dialogue))


RULES: dict[str, Callable[[_Case], Iterator[str]]] = {
    "empty": _is_empty,
    "refusal": _is_refused,
    "not_a_dialogue": _is_no_dialogue,
    "unknown_speaker": _has_strangers,
    "roles_out_of_turn": _is_out_of_turn,
    "rounds": _has_wrong_rounds,
    "brackets_unbalanced": _has_open_brackets,
    "medium_unknown": _has_unknown_media,
    "placeholder": _has_placeholders,
    "description_length": _has_bad_descriptions,
    "utterance_empty": _is_empty_turn,
    "utterance_too_short": _is_too_short,
    "utterance_too_long": _is_too_long,
    "no_media": _has_no_media,
    "too_many_images": _has_too_many_images,
    "too_much_music": _has_too_many_music,
    "requirement_not_met": _breaks_requirement,
    "media_in_wrong_turn": _has_media_in_wrong_turn,
    "media_not_asked_for": _has_media_nobody_asked_for,
    "asks_nothing": _asks_nothing,
    "famous_name": _names_somebody,
    "language": _is_foreign,
    "like_demonstration": _copies_a_demonstration,
}
"""Reason -> what each breach of it says; in the order in which reasons are given."""
_NOTHING_TO_JUDGE = {"empty", "refusal", "not_a_dialogue"}
