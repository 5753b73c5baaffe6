"""``anygpt-chat`` from the outside: a script of lines, what is printed, what is left on disk, how it ends."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from inference.chat_cli import converse, main
from inference.chat_session import ChatSession
from shards.modality import Modality
from tests.fixtures import tiny_chat
from tests.fixtures.scripted_model import scripted


@pytest.fixture
def config() -> str:
    return str(tiny_chat.folder() / "chat.toml")


def test_a_script_is_answered_line_by_line(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]):
    script, saved, page = tmp_path / "lines.txt", tmp_path / "chat.json", tmp_path / "chat.html"
    picture = tiny_chat.files()[Modality.IMAGE]
    lines = ["interleaved|Draw a/b.|image", f"interleaved|What is it?|text|{picture}", f"|save {saved}", "|clear"]
    lines += [f"|load {saved}", f"|transcript {page}", "|help", "quit", "never"]
    script.write_text("\n".join(lines), encoding="utf-8")
    examples = 'examples=["Draw a star.", "What is it?"]'
    assert main([config, "--script", str(script), "--set", f"output={tmp_path / 'out'}", "--set", examples]) == 0
    out = capsys.readouterr().out
    assert "> never" not in out and "Forgotten." in out and "2 exchanges from" in out and "|transcript FILE" in out
    assert "taught to answer: Draw a star. What is it?" in out
    # The path that is printed is the path of the file (U-25).
    (path,) = re.findall(r"^\[image: (.+)\]$", out, re.MULTILINE)
    assert Path(path).is_file() and [Path(path)] == list((tmp_path / "out").rglob("*.png"))
    assert saved.is_file() and page.is_file()
    assert main([config, "--load", str(saved), "--script", str(script), "--limit", "0"]) == 0


def test_a_line_that_fails_is_told_and_the_chat_goes_on(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    lines = "interleaved|Hear this.||||gone.wav\n|save /dev/null/x\ninterleaved|Well?|text\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main([config, "--set", f"output={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("anygpt-chat: ") == 2 and "gone.wav" in captured.err
    assert captured.out.rstrip().splitlines()[-1] != "> interleaved|Well?|text"


def test_every_option_of_the_command_line_counts(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The released chat drops the paths of the speech tokenizer (U-19)."""
    script = tmp_path / "lines.txt"
    script.write_text(str(tiny_chat.files()[Modality.SPEECH]), encoding="utf-8")
    assert main([config, "--script", str(script), "--set", "codecs.speech=elsewhere.safetensors"]) == 1
    assert "elsewhere.safetensors" in capsys.readouterr().err


def test_wrong_usage_and_a_wrong_config_are_2(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([config, "--set", "modle=x"]) == 2
    assert main([config, "--script", str(tmp_path / "none")]) == 2
    assert "expected lines of text" in capsys.readouterr().err
    assert main([config, "--dry-run"]) == 0
    assert '"decoding"' in capsys.readouterr().out


def test_what_was_heard_stands_in_brackets_and_a_cut_answer_says_so(tmp_path: Path):
    runtime = tiny_chat.runtime()
    vocabulary, tokenizer = runtime.vocabulary, runtime.text_tokenizer
    said = [*tokenizer.encode(" "), vocabulary.marker("<-Ins->"), *tokenizer.encode(" hello\n ")]
    said += [vocabulary.marker("<-Res->"), *tokenizer.encode(" Good day.")]
    said += vocabulary.media_token_ids("speech", tiny_chat.made_up(vocabulary, Modality.SPEECH, 1)).tolist()
    told = scripted(runtime, [[*said, vocabulary.marker("<eos>")], tokenizer.encode(" red") * 5000])
    told.decoding = tiny_chat.WIDE
    session, shown = ChatSession(told, folder=tmp_path), []
    assert converse(session, [str(tiny_chat.files()[Modality.SPEECH]), "more"], shown.append) == 0
    (path,) = tmp_path.iterdir()
    first, _, rest = "".join(shown).partition("]\n")
    assert first == f"(heard: hello)\nGood day.\n[speech: {path}"
    assert rest.endswith("red\n(The answer ran out of room and was ended there.)\n")
