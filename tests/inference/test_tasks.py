"""The grammar of tasks: the released one, its bars told apart by a rule, and an error for each malformed line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from inference.tasks import Task, parse_task, read_tasks, with_keys
from shards.errors import ConfigError
from shards.modality import Modality

TEXT, IMAGE, SPEECH, MUSIC = Modality.TEXT, Modality.IMAGE, Modality.SPEECH, Modality.MUSIC
WORDS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A sound whose name says nothing."""
    path = tmp_path / "a voice.txt"
    soundfile.write(path, np.sin(np.arange(8000) / 9).astype(np.float32), 16_000, format="WAV")
    return path


def lines(tmp_path: Path, *rows: str, name: str = "tasks.txt") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def json_lines(tmp_path: Path, *rows: object) -> Path:
    return lines(tmp_path, *(json.dumps(row) for row in rows), name="tasks.jsonl")


@pytest.mark.parametrize("target", [IMAGE, MUSIC, TEXT])
@given(words=WORDS)
def test_whatever_follows_the_second_bar_is_the_text(target, words):
    task = parse_task(f"text|{target}|{words}")
    assert (task.source, task.target, task.text, task.voice) == (TEXT, target, words, None)


@pytest.mark.parametrize("source", [IMAGE, SPEECH, MUSIC])
def test_a_medium_is_a_path_bars_included(source):
    task = parse_task(f" {source} | text | folder/a|b.png ")
    assert (task.path, task.text, task.direction) == (Path("folder/a|b.png"), None, f"{source}_to_text")


def test_a_voice_prompt_is_a_last_field_that_is_a_sound_file(voice: Path, tmp_path: Path):
    task = parse_task(f"text|speech|one|two |{voice}")
    assert (task.text, task.voice) == ("one|two", voice)
    text = tmp_path / "notes.txt"
    text.write_text("no sound", encoding="utf-8")
    for last in (str(text), "no file at all", "", "x" * 9000, "nul\x00"):
        assert parse_task(f"text|speech|one|{last}").voice is None
    assert parse_task(f"text|speech|{voice}").voice is None, "the only field is the text"
    assert parse_task(f"text|image|one|{voice}").text == f"one|{voice}", "a picture has no voice"
    with pytest.raises(ConfigError, match=r"sound file as voice prompt, found no file absent.wav; mend the path"):
        parse_task("text|speech|one|absent.wav")
    assert parse_task("text|speech|one|he said absent.wav").voice is None, "with words it is a text"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected SOURCE|TARGET|INPUT"),
        ("a red circle", "expected SOURCE|TARGET|INPUT, e.g. text|image|a red circle, found 'a red circle'"),
        ("text|image", "expected SOURCE|TARGET|INPUT"),
        ("|image|x", "expected one of text, image, speech, music, found ''"),
        ("txt|image|x", "found 'txt'; did you mean 'text'?"),
        ("text|picture|x", "found 'picture'"),
        ("text|imgae|x", "did you mean 'image'?"),
        ("audio|text|x.wav", "found audio; no published model was trained on it"),
        ("text|audio|rain", "found audio; no published model was trained on it"),
        ("image|speech|x.png", "expected text on one side, found image|speech; ask in two steps"),
        ("image|image|x.png", "expected text on one side"),
        ("text|image|", "expected a text after text|image|, found nothing"),
        ("image|text|  ", "expected the path of a file (image) after image|text|"),
        ("text|image|\ud83d", "found half of a surrogate pair at character 0"),
    ],
)
def test_a_malformed_line_is_told(line, message):
    with pytest.raises(ConfigError) as caught:
        parse_task(line, where="list.txt, line 7")
    assert message in str(caught.value) and str(caught.value).startswith("list.txt, line 7: ")


@given(st.text(max_size=60) | st.text("|texaudioimgsphc ", max_size=40))
def test_any_line_is_a_task_or_a_clear_error(line):
    try:
        task = parse_task(line, where="here")
    except ConfigError as error:
        assert str(error).startswith("here: ")
    else:
        assert TEXT in (task.source, task.target) and (task.text is None) != (task.path is None)


def test_a_file_of_lines_skips_blank_ones_and_remarks(tmp_path: Path):
    path = tmp_path / "tasks.txt"
    path.write_bytes("\ufeff# a remark\r\ntext|image|x\u2028y\r\n\n  \ntext|text|z".encode())
    tasks = read_tasks(path)
    assert [task.text for task in tasks] == ["x\u2028y", "z"] and tasks[1].where == f"{path}, line 5"


def test_json_lines_say_it_by_name(tmp_path: Path, voice: Path):
    path = json_lines(
        tmp_path,
        {"task": "text|image|x", "id": "first", "instruction": "Draw."},
        {"source": "text", "target": "speech", "input": f"a|{voice}", "voice_prompt": str(voice)},
        {"source": "image", "target": "text", "input": "p.png"},
    )
    first, second, third = read_tasks(path)
    assert (first.name, first.instruction, first.text) == ("first", "Draw.", "x")
    assert (second.text, second.voice) == (f"a|{voice}", voice), "no bar means anything here"
    assert third.path == Path("p.png")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected a JSON object"),
        ({}, "expected task, or source with target and input, found []"),
        ({"source": "text", "input": "x"}, "found ['input', 'source']"),
        ({"task": "text|image|x", "input": "y"}, "found both; keep one form"),
        ({"task": "text|image|x", "ID": "y"}, "unknown key 'ID'"),
        ({"source": "sound", "target": "text", "input": "x"}, "key 'source'"),
        ({"source": "audio", "target": "text", "input": "x"}, "found audio; no published model"),
        (
            {"task": "text|image|x", "voice_prompt": "v.wav"},
            "expected a sound file as voice prompt, found none at v.wav",
        ),
        ({"task": "text|image|x", "id": " "}, "expected an id with something in it"),
        ({"task": "text|image|\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_a_malformed_row_is_told(tmp_path: Path, row, message):
    with pytest.raises(ConfigError) as caught:
        read_tasks(json_lines(tmp_path, {"task": "text|image|fine"}, row))
    assert message in str(caught.value) and "tasks.jsonl, line 2" in str(caught.value)


def test_a_voice_for_a_picture_is_refused(tmp_path: Path, voice: Path):
    with pytest.raises(ConfigError, match=r"expected a voice prompt with text\|speech only"):
        read_tasks(json_lines(tmp_path, {"task": "text|image|x", "voice_prompt": str(voice)}))


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read_tasks(lines(tmp_path, *["nothing"] * 13, "text|image|x"))
    assert str(caught.value).count("expected SOURCE") == 10 and str(caught.value).endswith("... and 3 more")
    with pytest.raises(ConfigError, match=r"line 3: expected an id of its own, found 'a' again, as in .*line 1"):
        rows = [{"task": "text|image|x", "id": name} for name in ("a", "b", "a")]
        read_tasks(json_lines(tmp_path, *rows))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a file of tasks, found none"),
        (b"\xff\xfe", "expected UTF-8"),
        (b"# x\n", "expected tasks, found none"),
    ],
)
def test_a_file_without_tasks_is_told(tmp_path: Path, data, message):
    path = tmp_path / "tasks.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_tasks(path)


def test_a_key_is_of_what_is_asked_and_no_two_are_equal(tmp_path: Path):
    here, there, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for path, data in ((here, b"same"), (there, b"same"), (other, b"other")):
        path.write_bytes(data)

    def keys(*tasks: Task) -> list[str]:
        return [key for key, _ in with_keys(tasks)]

    pictures = [Task(IMAGE, TEXT, path=path) for path in (here, there, other)]
    first, second, third = keys(*pictures)
    assert second == f"{first}-2" and third != first, "content counts, not where it lies"
    assert keys(pictures[1]) == [first]
    assert len({*keys(Task(TEXT, IMAGE, "x")), *keys(Task(TEXT, MUSIC, "x")), *keys(Task(TEXT, IMAGE, "y"))}) == 3
    assert keys(Task(TEXT, IMAGE, "x", instruction="Draw.")) != keys(Task(TEXT, IMAGE, "x"))
    assert keys(Task(TEXT, IMAGE, "x", name="mine")) == ["mine"]
