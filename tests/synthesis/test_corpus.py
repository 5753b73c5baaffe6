"""Dialogues into a corpus: what is planned, what is written, and that the corpus reader reads it back whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora import anyinstruct
from pipeline.pictures import decode_picture
from pipeline.samples import RawMedia, RawSample, RawText
from pipeline.sound_files import read_channels
from shards.errors import DatasetError, FingerprintMismatch, RejectBudgetExceeded, SampleError
from shards.modality import Modality
from synthesis.corpus import plan_dialogue
from synthesis.dialogues import Dialogue, DialogueTurn
from synthesis.media import FOLDERS
from synthesis.media_config import CorpusMediaConfig, VoicesConfig
from synthesis.media_job import cut_units, make_media
from synthesis.voices import default_voices
from tests.synthesis.synthetic_dialogues import draw_dialogue, write_dialogues

COUNT = 40
CONFIG = CorpusMediaConfig(music_s=2.0, unit_dialogues=8, workers=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty dialogues with their media, made in this process."""
    folder = tmp_path_factory.mktemp("synthesis")
    write_dialogues(folder, [draw_dialogue(number) for number in range(COUNT)])
    make_media(CONFIG, folder, folder / "corpus")
    return folder / "corpus"


def read_corpus(root: Path, *, speech: str = "both") -> list[Any]:
    options = anyinstruct.Options(speech=speech)
    return [one for source in anyinstruct.sources(root, options) for one in anyinstruct.read(root, source, options)]


def lines_of(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def tree(folder: Path, *, without: tuple[str, ...] = ("report.json",)) -> dict[str, bytes]:
    """Every file by its name, but for times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def test_the_corpus_reader_reads_every_dialogue_with_all_its_words_and_media(corpus: Path) -> None:
    samples = read_corpus(corpus)
    assert len(samples) == COUNT
    assert all(isinstance(sample, RawSample) for sample in samples)
    for number, sample in enumerate(samples):
        said = " ".join(turn.text for turn in draw_dialogue(number).turns)
        words = re.sub(r"\[(image|music): [^\]]*\]", " ", said).split()
        assert " ".join(part.text for part in sample.segments if isinstance(part, RawText)).split() == words
        media = Counter(part.modality for part in sample.segments if isinstance(part, RawMedia))
        assert media[Modality.IMAGE] == said.count("[image:")
        assert media[Modality.MUSIC] == said.count("[music:")
        assert media[Modality.SPEECH] == 4


def test_media_have_the_sizes_and_rates_of_table_1(corpus: Path) -> None:
    for path in (corpus / "images_224").iterdir():
        assert decode_picture(path.read_bytes()).shape == (224, 224, 3)
    for path in (corpus / "music").iterdir():
        sound, rate = read_channels(path.read_bytes(), reader="soundfile", channel="mean", limit_s=None)
        assert (rate, sound.shape) == (32_000, (64_000, 1))
    for path in (corpus / "speech").iterdir():
        sound, rate = read_channels(path.read_bytes(), reader="soundfile", channel="mean", limit_s=None)
        assert rate == 16_000
        assert sound.shape[1] == 1
        assert np.abs(sound).max() > 0.1


def test_the_card_counts_what_is_in_the_corpus(corpus: Path) -> None:
    """Counted here by the corpus reader and from the files, not from what the job said."""
    card = json.loads((corpus / "data_card.json").read_text(encoding="utf-8"))
    samples = read_corpus(corpus)
    media = Counter(
        f"{part.slot} {part.modality}" for one in samples for part in one.segments if isinstance(part, RawMedia)
    )
    assert {f"{side} {kind}": n for kind, by in card["media"].items() for side, n in by.items()} == dict(media)
    assert card["dialogues"] == card["written"] == len(samples)
    assert sum(card["turns"].values()) == 4 * COUNT
    for modality, folder in FOLDERS.items():
        assert sum(card["media"][str(modality)].values()) == len(list((corpus / folder).iterdir()))
    texts = [part.text for one in samples for part in one.segments if isinstance(part, RawText)]
    assert card["words"] == sum(len(text.split()) for text in texts)
    assert card["requirements"] == dict.fromkeys(sorted(card["requirements"]), COUNT // 4)
    samples_s = [len(p.read_bytes()) - 44 for p in (corpus / "speech").iterdir()]
    assert card["hours"]["speech"] == pytest.approx(sum(samples_s) / 2 / 16_000 / 3600, abs=1e-4)
    assert sum(card["modality_combinations"].values()) == COUNT
    assert card["exchanges"]["text+speech+image -> text+speech"] == COUNT // 4
    readme = (corpus / "README.md").read_text(encoding="utf-8")
    assert f"{COUNT:,} dialogues of {4 * COUNT:,} turns" in readme


def test_each_side_of_a_dialogue_has_one_voice_and_many_are_heard(corpus: Path) -> None:
    voices: set[str] = set()
    for line in lines_of(corpus):
        for role in ("USER", "AnyGPT"):
            heard = {(message["voice"], message["speed"]) for message in line["chat"] if message["role"] == role}
            assert len(heard) == 1
            voices.update(voice for voice, _ in heard)
    assert len(voices) > 20
    assert voices <= set(default_voices())


def test_the_same_call_again_makes_nothing_and_changes_nothing(corpus: Path) -> None:
    before = tree(corpus)
    times = {path: path.stat().st_mtime_ns for folder in FOLDERS.values() for path in (corpus / folder).iterdir()}
    make_media(CONFIG, corpus.parent, corpus)
    assert tree(corpus) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_config_is_refused_by_what_changed(corpus: Path) -> None:
    with pytest.raises(FingerprintMismatch, match=r"music_s was 2\.0, now 3\.0"):
        make_media(CONFIG.model_copy(update={"music_s": 3.0}), corpus.parent, corpus)


PLANTED = {
    "caption_no_picture": "Look at this one. [image: a photograph of a city at night]",
    "caption_no_music": "Listen to this one. [music: something to dance to]",
    "caption_empty": "Look at this. [image: ]",
    "placeholder_malformed": "Look at this. [image a red circle",
    "turn_empty": "",
    "speech_silent": "...",
}


def test_every_planted_violation_is_rejected_with_its_reason(tmp_path: Path) -> None:
    good = [draw_dialogue(number) for number in range(4)]
    bad = [
        replace(draw_dialogue(4), dialogue_id=f"bad-{reason}", turns=(DialogueTurn("user", text), good[0].turns[1]))
        for reason, text in PLANTED.items()
    ]
    bad.append(replace(good[0], dialogue_id="bad-turns_out_of_order", turns=good[0].turns[1:]))
    write_dialogues(tmp_path, [*bad[:3], *good, *bad[3:]])
    report = make_media(CONFIG, tmp_path, tmp_path / "corpus")
    rejects = pq.read_table(tmp_path / "corpus" / "rejects.parquet").to_pylist()
    assert {row["sample_id"]: row["reason"] for row in rejects} == {
        f"bad-{reason}": reason for reason in (*PLANTED, "turns_out_of_order")
    }
    assert all(row["error"] for row in rejects)
    assert report["inputs"] == report["written"] + sum(report["rejected"].values()) == 11
    assert [line["id"] for line in lines_of(tmp_path / "corpus")] == [one.dialogue_id for one in good]
    card = json.loads((tmp_path / "corpus" / "data_card.json").read_text(encoding="utf-8"))
    assert card["rejected"] == report["rejected"]
    assert set(card["left_out_examples"]) == set(report["rejected"])


def test_media_of_rejected_dialogues_do_not_stay(tmp_path: Path) -> None:
    dialogue = draw_dialogue(0)
    broken = replace(dialogue, turns=(*dialogue.turns[:-1], DialogueTurn("assistant", "Here. [image: a sunset]")))
    write_dialogues(tmp_path, [broken, draw_dialogue(1)])
    report = make_media(CONFIG, tmp_path, tmp_path / "corpus")
    assert report["written"] == 1
    named = re.findall(
        r"(?:image|music|speech)_[0-9a-f]{16}\.\w+", (tmp_path / "corpus" / "metadata.jsonl").read_text()
    )
    found = [path.name for folder in FOLDERS.values() for path in (tmp_path / "corpus" / folder).iterdir()]
    assert sorted(found) == sorted(named)


def test_a_run_that_rejects_too_much_stops(tmp_path: Path) -> None:
    turns = (DialogueTurn("user", "Look. [image: a sunset]"), DialogueTurn("assistant", "Nice."))
    write_dialogues(tmp_path, [Dialogue(f"{number:08x}", turns) for number in range(120)])
    with pytest.raises(RejectBudgetExceeded, match="caption_no_picture"):
        make_media(CONFIG, tmp_path, tmp_path / "corpus")


def test_two_dialogues_of_one_id_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    write_dialogues(tmp_path, [draw_dialogue(3), draw_dialogue(3)])
    with pytest.raises(DatasetError, match="00000003"):
        make_media(CONFIG, tmp_path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@given(st.lists(st.integers(0, 50), max_size=4), st.integers(1, 20))
def test_units_cover_every_input_once_in_order(counts: list[int], size: int) -> None:
    covered = [(unit.source, place) for unit in cut_units(counts, size) for place in range(unit.start, unit.stop)]
    assert covered == [(source, place) for source, count in enumerate(counts) for place in range(count)]


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_every_request_of_a_corpus_is_another(number: int, seed: int) -> None:
    """Two dialogues that want the same picture get two: keys and seeds differ, whatever the captions say."""
    config = CONFIG.model_copy(update={"seed": seed})
    one = draw_dialogue(number)
    other = replace(one, dialogue_id=f"{number + 1:08x}")
    requests = [*plan_dialogue(one, config).requests, *plan_dialogue(other, config).requests]
    assert len({request.key for request in requests}) == len(requests)
    assert plan_dialogue(one, config) == plan_dialogue(one, config)


def test_some_dialogues_and_some_rounds_are_spoken_where_a_config_says_so() -> None:
    half = CONFIG.model_copy(update={"spoken_share": 0.5, "spoken_rounds": 1})
    spoken = [[turn.speech is not None for turn in plan_dialogue(draw_dialogue(n), half).turns] for n in range(400)]
    assert all(one in ([False] * 4, [True, True, False, False]) for one in spoken)
    assert 160 < sum(one[0] for one in spoken) < 240


def test_a_round_with_many_words_stays_written_and_the_others_are_spoken() -> None:
    words = ("Draw a red circle. [image: words of a caption are not said]", "Here it is.")
    turns = (*words, "What is it that you have drawn?", "A circle.", "Thanks.", "It was a pleasure to draw it.")
    told = tuple(DialogueTurn(role, text) for role, text in zip(("user", "assistant") * 3, turns, strict=True))

    def spoken(most: int) -> list[bool]:
        planned = plan_dialogue(Dialogue("x", told), CONFIG.model_copy(update={"max_spoken_words": most}))
        return [turn.speech is not None for turn in planned.turns]

    assert spoken(3) == [False] * 6
    assert spoken(4) == [True, True, False, False, False, False]
    assert spoken(7) == spoken(0) == [True] * 6


def test_the_assistant_may_have_one_voice() -> None:
    config = CONFIG.model_copy(update={"voices": VoicesConfig(names=("ada", "ben"), assistant="cleo")})
    planned = [plan_dialogue(draw_dialogue(number), config) for number in range(20)]
    heard = {(turn.role, turn.speech.voice) for one in planned for turn in one.turns if turn.speech}
    assert heard == {("user", "ada"), ("user", "ben"), ("assistant", "cleo")}


def test_media_and_words_keep_their_order_and_kinds_are_numbered_apart() -> None:
    text = "First [image: a] then [music: b] then [image: c] done."
    turns = (DialogueTurn("user", text), DialogueTurn("assistant", "Fine."))
    planned = plan_dialogue(Dialogue("x", turns), CONFIG)
    assert planned.turns[0].message == "First <image1> then <music1> then <image2> done."
    assert [request.text for request in planned.turns[0].media] == ["a", "b", "c"]
    assert planned.turns[0].speech is not None
    assert planned.turns[0].speech.text == "First then then done."


def test_a_turn_of_media_alone_says_nothing() -> None:
    turns = (DialogueTurn("user", "[image: a]"), DialogueTurn("assistant", "Fine."))
    planned = plan_dialogue(Dialogue("x", turns), CONFIG)
    assert planned.turns[0].speech is None
    with pytest.raises(SampleError, match="turn_empty"):
        plan_dialogue(Dialogue("x", (DialogueTurn("user", " "), turns[1])), CONFIG)
