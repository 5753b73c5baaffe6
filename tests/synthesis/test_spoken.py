"""Speech-only dialogues out of instruction sets: what is kept, what is left out and why, and the corpus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora import anyinstruct
from pipeline.samples import RawMedia, RawSample
from shards.errors import ConfigError, SampleError
from synthesis.media_config import CorpusMediaConfig
from synthesis.spoken import SpeakConfig, read_turns, speak_instructions
from synthesis.spoken_rules import ReadabilityConfig, reading_ease, syllables, unspeakable

READABILITY = ReadabilityConfig()
GOOD = "Take a slow walk in the evening. It clears the head, and you will sleep better for it."

UNSPEAKABLE = {
    "code": (
        "Use this: ```print(1)```",
        "def add(a, b):\n    return a + b",
        "Call the function os.path.join(a, b) first.",
        "for (int i = 0; i < 3; i++) { sum += i; }",
        "Put <b>bold</b> around it.",
    ),
    "table": ("| name | age |\n| Ann | 3 |", "name\tage\tcity"),
    "url": (
        "See https://example.org for more.",
        "Write to ann@example.org today.",
        "Look into /etc/hosts first.",
        "Try wikipedia.org for that.",
    ),
    "maths": (
        "The answer is x = 4.",
        "It is 3 + 4 in all.",
        "The area is \\frac{1}{2} of it.",
        "So x^2 grows fast.",
        "That is 5 × 6.",
    ),
    "list": ("You need:\n- milk\n- eggs", "1. Wake up.\n2. Get up.", "First 1. wake up, then 2. get up."),
    "markup": ("This is **very** important.", "# A title", "Dear [name], thank you."),
    "symbols": ("I like it 😀 a lot.", "Yours ~ Ann", "Call 123456789 now.", "...", "Keep it under_lined."),
    "too_long": ("word " * 61, "and then we went on " * 9 + "home."),
    "hard_to_read": (
        "Institutional heterogeneity necessitates organizational reconfiguration. Interdisciplinary collaboration "
        "facilitates epistemological diversification. Methodological considerations predominate subsequently. "
        "Administrative accountability deteriorates accordingly. Nevertheless, constitutional responsibilities "
        "characteristically necessitate deliberation.",
    ),
    "language": ("Gehen Sie am Abend langsam spazieren, das macht den Kopf frei und Sie schlafen danach viel besser.",),
}
SPEAKABLE = (
    GOOD,
    "It's about 5 km, or 3.1 miles; that takes an hour (or less)!",
    'Well, "no" means no, and a cup of tea costs $2 at Ann\'s place.',
    "The first of May, 1990, was a Tuesday.",
    "Bake it at 180°C for twenty minutes, then let it rest - that is all.",
    "I think I would import more tea from China, if I were you.",
)


@pytest.mark.parametrize(("reason", "text"), [(name, text) for name, texts in UNSPEAKABLE.items() for text in texts])
def test_what_no_voice_can_say_is_left_out_by_name(reason: str, text: str) -> None:
    found = unspeakable(["What should I do today, my friend?", text], READABILITY)
    assert found is not None
    assert found[0] == reason, found


@pytest.mark.parametrize("text", SPEAKABLE)
def test_plain_talk_is_kept(text: str) -> None:
    assert unspeakable(["What should I do about all this, my friend?", text], READABILITY) is None


def test_a_dialogue_as_a_whole_may_be_too_long() -> None:
    assert unspeakable([GOOD] * 12, READABILITY) == ("too_long", f"a dialogue of {12 * len(GOOD.split())} words")


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert unspeakable([text], ReadabilityConfig(languages=())) is None or text is not None
    assert reading_ease(text) <= 121.3


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("table", 2), ("walked", 1), ("wanted", 2), ("make", 1), ("idea", 2), ("the", 1), ("2024", 4)],
)
def test_syllables_are_counted_as_english_has_them(word: str, count: int) -> None:
    assert syllables(word) == count


def test_easy_words_read_easier_than_hard_ones() -> None:
    assert reading_ease(GOOD) > 80 > 30 > reading_ease(UNSPEAKABLE["hard_to_read"][0])


ALPACA: dict[str, Any] = {"instruction": "Tell me how to rest.", "input": "", "output": GOOD}


def test_both_forms_give_the_same_turns() -> None:
    turns = [("user", "Tell me how to rest."), ("assistant", GOOD)]
    shared = [
        {"from": "human", "value": turns[0][1]},
        {"from": "gpt", "value": GOOD},
        {"from": "human", "value": "Ok?"},
    ]
    chat = [{"role": role, "content": text} for role, text in turns]
    for record in (ALPACA, {"conversations": shared}, {"messages": chat}):
        assert [(turn.role, turn.text) for turn in read_turns(json.dumps(record).encode())] == turns


def test_the_input_of_an_instruction_is_part_of_the_question() -> None:
    record = ALPACA | {"instruction": "Say it in one word:", "input": "very good"}
    assert read_turns(json.dumps(record).encode())[0].text == "Say it in one word:\nvery good"


MALFORMED = {
    "record_malformed": [b"{", b"[]", b"\xff\xfe", b'{"instruction": 3, "output": "x"}', b'{"conversations": ["x"]}'],
    "record_unknown": [b"{}", b'{"text": "hello"}'],
    "role_unknown": [b'{"conversations": [{"from": "system", "value": "x"}]}'],
    "turn_empty": [b'{"instruction": "Rest?", "output": " "}'],
    "turns_out_of_order": [
        b'{"conversations": []}',
        b'{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}',
    ],
}


@pytest.mark.parametrize(("reason", "line"), [(name, line) for name, lines in MALFORMED.items() for line in lines])
def test_what_is_no_dialogue_is_rejected_by_name(reason: str, line: bytes) -> None:
    with pytest.raises(SampleError) as caught:
        read_turns(line)
    assert caught.value.reason == reason


def write_lines(path: Path, records: list[Any]) -> Path:
    lines = b"\n\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in records) + b"\n"
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def config_of(output: Path, *files: Path, unit_dialogues: int = 3) -> SpeakConfig:
    return SpeakConfig(output=output, files=files, media=CorpusMediaConfig(workers=0, unit_dialogues=unit_dialogues))


def test_instructions_become_a_corpus_that_the_reader_reads(tmp_path: Path) -> None:
    alpaca = write_lines(tmp_path / "alpaca.jsonl", [ALPACA, b"{", ALPACA | {"output": "x = 3"}, ALPACA, ALPACA])
    turns = [{"from": side, "value": "Good day to you, my friend."} for side in ("human", "gpt")] * 5
    shared = write_lines(tmp_path / "shared.jsonl.gz", [{"conversations": turns}])
    report = speak_instructions(config_of(tmp_path / "corpus", alpaca, shared))
    assert report["inputs"] == 6
    assert (report["written"], report["filtered"], report["rejected"]) == (4, {"maths": 1}, {"record_malformed": 1})
    options = anyinstruct.Options(speech="speech")
    (source,) = anyinstruct.sources(tmp_path / "corpus", options)
    samples = list(anyinstruct.read(tmp_path / "corpus", source, options))
    assert all(isinstance(sample, RawSample) for sample in samples)
    spoken = [sum(isinstance(part, RawMedia) for part in sample.segments) for sample in samples]
    assert spoken == [2, 2, 2, 6]
    card = json.loads((tmp_path / "corpus" / "data_card.json").read_text(encoding="utf-8"))
    assert card["modality_combinations"] == {"text+speech": 4}
    assert card["filtered"] == {"maths": 1}
    (left_out,) = pq.read_table(tmp_path / "corpus" / "filtered.parquet").to_pylist()
    assert (left_out["source_file"], left_out["member"]) == ("alpaca.jsonl", "line 2")
    line = alpaca.read_bytes()[left_out["offset"] :].splitlines()[0]
    assert json.loads(line)["output"] == "x = 3"


@given(size=st.integers(1, 7))
def test_units_of_any_size_read_the_same_dialogues(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    from synthesis.spoken import InstructionReader, _index

    folder = tmp_path_factory.mktemp("lines")
    records = [b"{", *({"instruction": f"Tell me story {n} again.", "output": GOOD} for n in range(6)), b""]
    for name in ("plain.jsonl", "zipped.jsonl.gz"):
        path = write_lines(folder / name, records)
        reader = InstructionReader(config_of(folder / "out", path), {path: name})
        count, offsets = _index(path, size)
        assert count == 7
        units = [
            (start, min(start + size, count), offset)
            for start, offset in zip(range(0, count, size), offsets, strict=True)
        ]
        assert [item for unit in units for item in reader(path, *unit)] == list(reader(path, 0, count, 0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.jsonl"):
        speak_instructions(config_of(tmp_path / "corpus", tmp_path / "nothing.jsonl"))
