"""Brief dialogues name few words of the world, keep to their side, and whatever they say is true of what they show."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.draws import generator
from pipeline.sample_corpora.sentences import names_held_out_pair
from shards.errors import ConfigError
from synthesis.config import Requirement, SynthesisConfig
from synthesis.dialogues import described_media, spoken_words
from synthesis.llm_rules_brief import write_brief_dialogue
from synthesis.prompts import read_turns
from synthesis.validation import check_dialogue

PARSE = {
    "image": lambda text: pictures.PictureAttributes(**pictures.parse_caption(text)),
    "music": lambda text: music.MusicAttributes(**music.parse_caption(text)),
}
OPEN = {
    "image": {"position": "center", "background": "white"},
    "music": {"key": "C major", "pattern": "rising scale", "tempo": "fast"},
}
dialogues = st.tuples(st.integers(0, 2**32), st.sampled_from(Requirement), st.booleans())


def written(drawn):
    """(speaker, words, medium, what it shows) of each turn."""
    seed, requirement, held_out = drawn
    for speaker, text in read_turns(write_brief_dialogue(generator(seed), requirement, held_out=held_out)):
        media = described_media(text)
        assert len(media) <= 1
        shown = PARSE[media[0].modality](media[0].description) if media else None
        yield speaker, spoken_words(text), media[0].modality if media else None, shown


@given(dialogues)
def test_every_rule_is_kept(drawn):
    config = load_config(Path("configs/synthesis/tiny.toml"), SynthesisConfig)
    seed, requirement, held_out = drawn
    text = write_brief_dialogue(generator(seed), requirement, held_out=held_out)
    assert check_dialogue(text, requirement, config.dialogues).faults == ()


@given(dialogues)
def test_a_dialogue_keeps_to_its_side_but_for_music_that_is_asked_for(drawn):
    for speaker, words, modality, shown in written(drawn):
        if shown is not None and not (modality == "music" and speaker == "AnyGPT"):
            assert shown.held_out == drawn[2]
        if not drawn[2]:
            assert not names_held_out_pair(words)
            assert shown is None or not shown.held_out


@given(dialogues)
def test_what_is_said_of_a_medium_is_true_of_it_and_decides_it(drawn):
    """Requests and answers alike; a picture or piece that is asked for follows from the request, or from the last one."""
    last, turns = None, list(written(drawn))
    for (_, request, _, given_), (_, answer, modality, made) in zip(turns[::2], turns[1::2], strict=True):
        before, last = last, made or given_ or last
        truth = last.as_dict()
        named = pictures.parse_caption(request) | music.parse_caption(request)
        assert named.items() <= truth.items()
        assert (pictures.parse_caption(answer) | music.parse_caption(answer)).items() <= truth.items()
        if made is None:
            assert pictures.parse_caption(answer) or music.parse_caption(answer)
        elif "shape" in named or "instrument" in named:
            assert truth == OPEN[modality] | named
        else:
            assert truth == before.as_dict() | named


def test_answers_to_different_questions_begin_with_different_words():
    begins = {}
    for seed in range(400):
        for requirement in Requirement:
            turns = list(written((seed, requirement, False)))
            for (_, request, _, _), (_, answer, modality, _) in zip(turns[::2], turns[1::2], strict=True):
                if modality is None:
                    kind = next(iter(pictures.parse_caption(answer) | music.parse_caption(answer)))
                    about = "all" if "picture" in request else kind
                    begins.setdefault(about, set()).add(" ".join(re.findall(r"\w+", answer)[:2]))
    first = [words for found in begins.values() for words in found]
    assert len(begins) == 6 and len(first) == len(set(first)) == 6


def test_a_manner_that_no_rules_have_is_refused():
    with pytest.raises(ConfigError, match=r"rules-1, brief-1, brief-1-heldout.*'gpt-4o'"):
        load_config(Path("configs/synthesis/tiny.toml"), SynthesisConfig, ["llm.model=gpt-4o"])
