"""The page of a chat: everything in it, everything escaped, nothing from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inference.chat_cli import converse
from inference.chat_messages import FilePart, TextDelta, TextPart, UserMessage
from inference.chat_session import ChatSession
from inference.transcript import ShownTurn, transcript_page, turn_html, write_transcript
from shards.modality import Modality
from tests.fixtures import tiny_chat
from tests.fixtures.scripted_model import scripted


class Page(HTMLParser):
    """Elements with their attributes, and the text that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def sources(self, tag: str) -> list[str]:
        return [str(attributes["src"]) for name, attributes in self.elements if name == tag]


def chat(tmp_path: Path) -> ChatSession:
    runtime = tiny_chat.runtime()
    vocabulary, tokenizer = runtime.vocabulary, runtime.text_tokenizer
    said = tokenizer.encode(" Here & there: <img src=x onerror=alert(1)>")
    for modality in (Modality.IMAGE, Modality.MUSIC):
        said += vocabulary.media_token_ids(modality, tiny_chat.made_up(vocabulary, modality, 1)).tolist()
    told = scripted(runtime, [[*said, vocabulary.marker("<eos>")]])
    told.decoding = tiny_chat.WIDE
    session = ChatSession(told, folder=tmp_path)
    files = tiny_chat.files()
    parts = (FilePart(files[Modality.IMAGE]), TextPart("<script>alert(2)</script>"), FilePart(files[Modality.SPEECH]))
    session.ask(UserMessage(parts))
    return session


def test_the_page_holds_what_was_said_and_needs_nothing_else(tmp_path: Path):
    session = chat(tmp_path)
    write_transcript(tmp_path / "page.html", session, title="A <b> & co")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "Here & there: <img src=x onerror=alert(1)>" in text and "<script>alert(2)</script>" in text
    assert not {"script", "b", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    pictures, sounds = page.sources("img"), page.sources("audio")
    assert (len(pictures), len(sounds)) == (2, 2) and all(uri.startswith("data:") for uri in [*pictures, *sounds])
    shown = tiny_chat.files()[Modality.IMAGE].read_bytes()
    assert base64.b64decode(pictures[0].partition(",")[2]) == shown
    saved = next(path for path in tmp_path.iterdir() if path.suffix == ".wav")
    assert base64.b64decode(sounds[1].partition(",")[2]) == saved.read_bytes()


def test_media_whose_files_are_gone_are_decoded_from_the_ids(tmp_path: Path):
    session = chat(tmp_path)
    before = Page(transcript_page(session))
    for path in tmp_path.iterdir():
        path.unlink()
    after = Page(transcript_page(session))
    assert after.sources("img") == before.sources("img") and after.sources("audio") == before.sources("audio")
    no_codecs = replace(session.runtime, config=session.runtime.config.model_copy(update={"codecs": {}}))
    session.runtime = no_codecs
    assert "could not be decoded" in " ".join(Page(transcript_page(session)).text)


def test_exchanges_the_model_is_no_longer_shown_are_there_above_a_line(tmp_path: Path):
    session = chat(tmp_path)
    session.said.append(session.said[0])
    session.dropped = 1
    kinds = [(tag, attributes.get("class")) for tag, attributes in Page(transcript_page(session)).elements]
    order = [kind for tag, kind in kinds if tag == "article" or kind == "line"]
    assert order == ["user", "assistant", "line", "user", "assistant"]


def test_an_empty_chat_has_a_page():
    assert "Nothing was said." in Page(transcript_page(ChatSession(tiny_chat.runtime()))).text


@given(text=st.text(max_size=30), heard=st.booleans())
def test_whatever_is_said_adds_no_element(text: str, heard: bool):
    usual = Page(turn_html(ShownTurn(False, (TextDelta("x", heard),)))).elements
    page = Page(turn_html(ShownTurn(False, (TextDelta(text, heard),))))
    assert page.elements == usual


def test_a_command_of_the_chat_writes_it(tmp_path: Path):
    shown: list[str] = []
    assert converse(chat(tmp_path), [f"|transcript {tmp_path / 'a b.html'}"], shown.append) == 0
    assert (tmp_path / "a b.html").is_file() and str(tmp_path / "a b.html") in "".join(shown)
