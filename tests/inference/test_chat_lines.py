"""Lines of a chat: both field orders, sentences with paths in them, commands; a slip of the pen is told, not sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.chat_lines import Command, read_line, sentence_parts
from inference.chat_messages import FilePart, TextPart, UserMessage
from pipeline.sample_corpora import pictures
from shards.errors import ConfigError
from shards.media_files import png_bytes, wav_bytes
from shards.modality import Modality


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture = png_bytes(np.asarray(pictures.render_picture(pictures.all_attributes()[0])))
    sound = wav_bytes(np.sin(np.arange(8000) / 9), 16_000)
    for name in ("cat.png", "my cat.png", "a,b.png", "dog's.png", "picture", "cat.png.backup"):
        (tmp_path / name).write_bytes(picture)
    for name in ("hello.wav", "my voice.wav", "tune.mp3"):
        (tmp_path / name).write_bytes(sound)
    (tmp_path / "notes").write_text("a word that is a file, too", encoding="utf-8")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(name: str) -> FilePart:
    return FilePart(Path(name), Modality.IMAGE)


def speech(name: str) -> FilePart:
    return FilePart(Path(name), Modality.SPEECH)


def test_voice_and_images_are_told_apart_by_what_they_are(files: Path):
    """The code has the voice first, the README the images (anygpt-compat 5.1)."""
    expected = UserMessage(
        (
            image("cat.png"),
            image("my cat.png"),
            FilePart(Path("tune.mp3"), Modality.MUSIC),
            speech("hello.wav"),
            TextPart("Hi"),
        ),
        Modality.MUSIC,
        Path("my voice.wav"),
    )
    code = read_line("interleaved|Hi|music|my voice.wav|cat.png,my cat.png|hello.wav|tune.mp3")
    readme = read_line("interleaved | Hi | music | cat.png, my cat.png | my voice.wav | hello.wav | tune.mp3")
    assert code == readme == expected


@pytest.mark.parametrize(
    ("line", "images", "voice"),
    [
        ("interleaved|Hi", [], None),
        ("Interleaved | Hi", [], None),
        ("interleaved|Hi||cat.png", ["cat.png"], None),
        ("interleaved|Hi|||cat.png", ["cat.png"], None),
        ("interleaved|Hi||hello.wav", [], "hello.wav"),
        ("interleaved|Hi|||hello.wav", [], "hello.wav"),
        ("interleaved|Hi||a,b.png|hello.wav||", ["a,b.png"], "hello.wav"),
    ],
)
def test_fields_at_the_end_may_be_left_out(files: Path, line: str, images: list[str], voice: str | None):
    expected = UserMessage((*map(image, images), TextPart("Hi")), None, Path(voice) if voice else None)
    assert read_line(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "interleaved|Hi||cat.png|my cat.png",
            "voice_prompt: expected a sound, found picture",
        ),
        ("interleaved|Hi||hello.wav|my voice.wav", "images: expected a picture, found sound"),
        ("interleaved|Hi||none.wav|cat.png", "found no file 'none.wav'"),
        ("interleaved|Hi||||cat.png", "speech: expected a sound, found picture"),
        ("interleaved|Hi|||||notes", "music: expected a sound, found neither a picture nor a sound in notes"),
        ("interleaved|Hi|video", "to_modality: expected one of text, image, speech, music"),
        ("interleaved|a|b|c|d|e|f|g", "at most 7 fields, found 8"),
        ("text|image|a red circle", "anygpt-generate"),
        ("interleave|Hi|image", "'interleave': expected 'interleaved' before the first bar"),
        ("|nonsense", "expected a command of"),
        ("|save", "expected |save FILE"),
        ("|clear all", "expected |clear"),
        ("what is nothing.png?", "'nothing.png': expected the path of a picture or a sound"),
        ('what is "not here.png"', "'not here.png'"),
        ("what is text.png", "found neither a picture nor a sound"),
        ("music:cat.png", "expected a sound, found picture"),
        ("music:gone.wav", "'gone.wav'"),
    ],
)
def test_a_wrong_line_is_told(files: Path, line: str, message: str):
    with pytest.raises(ConfigError) as raised:
        read_line(line)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("what is in cat.png?", (TextPart("what is in"), image("cat.png"), TextPart("?"))),
        ('what is in "my cat.png"?', (TextPart("what is in"), image("my cat.png"), TextPart("?"))),
        (
            "what is in 'my cat.png' and cat.png",
            (TextPart("what is in"), image("my cat.png"), TextPart("and"), image("cat.png")),
        ),
        (r"my\ cat.png what is it?", (image("my cat.png"), TextPart("what is it?"))),
        ("hello.wav", (speech("hello.wav"),)),
        ("what plays in music:tune.mp3", (TextPart("what plays in"), FilePart(Path("tune.mp3"), Modality.MUSIC))),
        ("what plays in music:'tune.mp3'", (TextPart("what plays in"), FilePart(Path("tune.mp3"), Modality.MUSIC))),
        ("see picture here", (TextPart("see"), image("picture"), TextPart("here"))),
        ("see dog's.png", (TextPart("see"), image("dog's.png"))),
        ("see cat.png.backup!", (TextPart("see"), image("cat.png.backup"), TextPart("!"))),
        ("my notes don't say 'so' or \"so\"", (TextPart("my notes don't say 'so' or \"so\""),)),
        ("a | b", (TextPart("a | b"),)),
    ],
)
def test_paths_in_a_sentence_stand_for_what_they_hold(files: Path, line: str, parts: tuple[TextPart | FilePart, ...]):
    assert read_line(line) == UserMessage(parts)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.text(st.sampled_from("ab .'\"\\|,:/é\n?"), max_size=25))
def test_words_without_files_are_one_text_as_typed(files: Path, line: str):
    parts = sentence_parts(line.strip())
    assert parts == ((TextPart(line.strip()),) if line.strip() else ())


def test_commands(files: Path):
    assert read_line("|clear") == Command("clear") and read_line(" | CLEAR ") == Command("clear")
    assert read_line("|save my chat.json") == Command("save", Path("my chat.json"))
    assert read_line('|transcript "a b.html"') == Command("transcript", Path("a b.html"))
    assert read_line("quit") == read_line("|quit") == read_line("EXIT") == Command("quit")
    assert read_line("  ") is None


def test_a_task_of_the_template_may_stand_in_the_first_field(files: Path):
    line = "Image QA|What colour?||cat.png"
    assert read_line(line, tasks=["Image QA"]) == UserMessage(
        (image("cat.png"), TextPart("What colour?")), task="Image QA"
    )
    assert read_line(line.lower(), tasks=["Image QA"]).task == "Image QA"
    with pytest.raises(ConfigError, match="expected 'Image QA' before the first bar"):
        read_line(line.replace("QA", "Q A"), tasks=["Image QA"])
    assert read_line(line.replace("cat.png", "")) == UserMessage((TextPart("Image QA|What colour?||"),))
    shutil.rmtree(files)
