"""Every rule catches what breaks it, under its own name; what breaks none passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sample_corpora import music, pictures
from synthesis.config import DialoguesConfig, Requirement
from synthesis.dialogues import described_media
from synthesis.dialogues_stage import load_demonstrations
from synthesis.llm_rules_dialogues import write_dialogue
from synthesis.names import famous_name
from synthesis.prompts import format_dialogue
from synthesis.validation import RULES, check_dialogue

RULES_OF = DialoguesConfig()
WANTS = Requirement.USER_GIVES_IMAGE
CAT = "[image: a black cat asleep on a red velvet chair]"
WALTZ = "[music: slow waltz for accordion and violin, warm and calm]"
SOUND = (
    f"User: What is the animal in this picture doing? {CAT}\n"
    "AnyGPT: It is a black cat, asleep on a red chair.\n"
    f"User: Can you play a piece of music for it?\n"
    f"AnyGPT: Here is something as calm as the cat. {WALTZ}"
)
PLANTED = {
    "empty": " \n ",
    "refusal": SOUND.replace("Here is something as calm as the cat.", "I'm sorry, but I cannot create music for you."),
    "not_a_dialogue": "Once upon a time a cat slept on a chair.",
    "unknown_speaker": SOUND + "\nNarrator: The cat went on sleeping.",
    "roles_out_of_turn": SOUND + "\nAnyGPT: The cat goes on sleeping all day.",
    "rounds": "\n".join(SOUND.splitlines()[:2]),
    "brackets_unbalanced": SOUND.replace("chair]", "chair"),
    "medium_unknown": SOUND.replace("[music:", "[video:"),
    "placeholder": SOUND.replace("a black cat asleep on a red velvet chair", "description of the image goes here"),
    "description_length": SOUND.replace("a black cat asleep on a red velvet chair", "cat"),
    "utterance_empty": SOUND.replace("What is the animal in this picture doing? ", ""),
    "utterance_too_short": SOUND.replace("It is a black cat, asleep on a red chair.", "A black cat."),
    "utterance_too_long": SOUND.replace("It is a black cat", "It is" + " really" * 12 + " a black cat"),
    "no_media": SOUND.replace(CAT, "").replace(WALTZ, ""),
    "too_many_images": SOUND.replace(CAT, f"{CAT} {CAT} {CAT}"),
    "too_much_music": SOUND.replace(WALTZ, f"{WALTZ} {WALTZ}"),
    "requirement_not_met": SOUND.replace(CAT, ""),
    "media_in_wrong_turn": SOUND.replace(CAT, "").replace("a red chair.", f"a red chair. {CAT}"),
    "media_not_asked_for": SOUND.replace("play a piece of music for it", "guess what its name may be"),
    "asks_nothing": SOUND.replace("What is the animal in this picture doing?", "Such a lazy animal on that chair."),
    "famous_name": SOUND.replace("slow waltz", "slow waltz by Chopin"),
    "language": (
        f"User: Was macht das Tier auf diesem Bild gerade? show {CAT}\n"
        "AnyGPT: Die schwarze Katze schläft auf einem roten Sessel am Fenster.\n"
        "User: Welche Farbe hat der Sessel auf dem Bild genau?\n"
        "AnyGPT: Der Sessel ist rot und sieht ziemlich weich und gemütlich aus."
    ),
    "like_demonstration": SOUND.replace("as calm as the cat", "as calm as a cat"),
}


def test_every_rule_has_a_planted_breach():
    """A rule without a test is a rule that may never fire."""
    assert set(PLANTED) == set(RULES)


def test_a_sound_dialogue_breaks_no_rule():
    """The dialogue that all breaches are made of is sound itself."""
    checked = check_dialogue(SOUND, WANTS, RULES_OF)
    assert not checked.faults
    assert [turn.role for turn in checked.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("reason", PLANTED)
def test_a_planted_breach_is_rejected_under_its_name(reason: str):
    """The first fault of a dialogue with one breach is that breach."""
    shown = [SOUND] if reason == "like_demonstration" else []
    faults = check_dialogue(PLANTED[reason], WANTS, RULES_OF, demonstrations=shown).faults
    assert faults and faults[0].reason == reason, faults


def test_the_demonstrations_keep_the_rules_they_teach(repository: Path):
    """A model copies what it is shown."""
    for one in load_demonstrations(repository / "configs/synthesis/dialogues.toml", 3):
        assert not check_dialogue(format_dialogue(one.turns), one.requirement, RULES_OF).faults, one.topic


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(list(Requirement)), st.sampled_from(["", "lost cat notice", "rye loaf"]))
def test_what_the_offline_writer_writes_is_sound_and_can_be_rendered(seed: int, wanted: Requirement, thing: str):
    """No rule is broken, every medium is one the renderers know, and none is kept for evaluation."""
    text = write_dialogue(np.random.default_rng(seed), wanted, thing)
    # Telling languages takes most of the time; the sound dialogue above was told.
    checked = check_dialogue(text, wanted, DialoguesConfig(languages=()))
    assert not checked.faults, (text, checked.faults)
    for medium in (medium for turn in checked.turns for medium in described_media(turn.text)):
        if medium.modality == "image":
            assert not pictures.PictureAttributes(**pictures.parse_caption(medium.description)).held_out
        else:
            assert not music.MusicAttributes(**music.parse_caption(medium.description)).held_out


@pytest.mark.parametrize(
    "text",
    [
        "a portrait of Frida Kahlo",
        "the Mona Lisa's smile",
        "a waltz by Zorbo",
        "Anna Smith on a bench",
        'the song "Rain"',
    ],
)
def test_a_famous_or_famous_looking_name_is_found(text: str):
    """By our list, by a given name before another name, by a maker, by a title."""
    assert famous_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "a waltz in C major by candle light",
        "inspired by French cafes",
        "A red house. The sun sets.",
        "drone in D minor",
    ],
)
def test_ordinary_capitals_are_no_names(text: str):
    """Keys, countries and the first word of a sentence name nobody."""
    assert famous_name(text) is None


def test_names_of_ones_own_are_found_too(tmp_path: Path):
    """A list in a file adds to ours."""
    (tmp_path / "names.txt").write_text("# own\nBlue Parrot Band\n", encoding="utf-8")
    assert famous_name("a poster of the blue parrot band", tmp_path / "names.txt")
    assert famous_name("a poster of the blue parrot band") is None
