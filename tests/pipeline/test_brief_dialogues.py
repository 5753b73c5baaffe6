"""Brief dialogues name one to four words of the world, keep to their side, and are spoken as they are written."""

import json
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from pipeline.sample_corpora import anyinstruct, music, pictures
from pipeline.sample_corpora.brief import draw_brief_dialogue
from pipeline.sample_corpora.config import SampleCorporaConfig, Split
from pipeline.sample_corpora.draws import generator
from pipeline.sample_corpora.items import Task
from pipeline.sample_corpora.pictures import PictureAttributes
from pipeline.sample_corpora.sentences import names_held_out_pair


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_brief_dialogues_keep_to_their_side(seed, held_out, is_spoken):
    rounds = draw_brief_dialogue(generator(seed), held_out=held_out, is_spoken=is_spoken)
    assert 1 <= len(rounds) <= 3 and (rounds[0].kind == "speak") == is_spoken
    for message in (message for one in rounds for message in (one.request, one.answer)):
        if message.shown is not None:
            assert message.shown.held_out == held_out
        if not held_out:
            assert not names_held_out_pair(message.text)


@given(st.integers(0, 2**32), st.booleans())
def test_what_is_said_of_a_medium_is_true_of_it(seed, is_spoken):
    """Requests and answers alike; what a request for a picture leaves open is in the center, on white."""
    last = None
    for one in draw_brief_dialogue(generator(seed), held_out=False, is_spoken=is_spoken):
        last = one.request.shown or one.answer.shown or last
        assert last is not None
        truth = last.as_dict()
        parse = pictures.parse_caption if isinstance(last, PictureAttributes) else music.parse_caption
        named = parse(one.request.words)
        assert named.items() <= truth.items() and parse(one.answer.words).items() <= truth.items()
        if one.kind in ("draw", "speak"):
            assert {"shape", "colour"} <= set(named)
            assert truth.items() <= {"position": "center", "background": "white", **named}.items()
        if one.kind in ("ask", "describe", "listen"):
            assert parse(one.answer.words)


@pytest.fixture
def written(tmp_path: Path, request: pytest.FixtureRequest) -> list[dict]:
    path = Path(request.config.rootpath) / "configs" / "sample_corpora" / "sft-tiny.toml"
    config = load_config(path, SampleCorporaConfig, [f"output={tmp_path}"])
    anyinstruct.write(Task("anyinstruct", Split.TRAIN, 12, tmp_path, config))
    return [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_spoken_rounds_come_first_and_have_both_voices(written, tmp_path):
    spoken = [one["chat"] for one in written if one["scenario"].startswith("speak")]
    assert spoken and len(spoken) < len(written)
    for chat in spoken:
        assert all(soundfile.info(tmp_path / "speech" / turn["speech"]).duration > 0.5 for turn in chat[:2])
        assert all(turn["speech"] is None for turn in chat[2:])
    assert all(turn["speech"] is None for one in written if one["chat"] not in spoken for turn in one["chat"])


def test_the_style_of_the_other_corpora_is_the_one_they_always_had():
    assert SampleCorporaConfig(output=Path()).dialogues.style == "full"
