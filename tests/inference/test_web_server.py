"""Behind the page: names and sizes of files, the queue for the model, who is let go, what is asked and what comes back."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from inference.chat_messages import FilePart, Finished, MediaReady, Reply, TextDelta, TextPart
from inference.web_app import is_loopback
from inference.web_cli import address, bind, main
from inference.web_config import ServerConfig, WebConfig
from inference.web_messages import event_line, message_line, read_message, remember, without_paths
from inference.web_queue import ModelQueue, QueueFull, Waiting
from inference.web_sessions import NoRoom, SessionStore
from inference.web_uploads import Refused, Upload, check_name, known_suffix, take_upload
from shards.errors import ConfigError
from shards.media_files import png_bytes
from shards.modality import Modality

ALL = (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)


@given(st.text(max_size=40), st.sampled_from("/\\"), st.text(max_size=40))
def test_no_name_with_a_folder_in_it_is_taken(before, slash, after):
    with pytest.raises(Refused, match="is not taken"):
        check_name(f"{before}{slash}{after}")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a\nb.png", "a\0.png", "x" * 121 + ".png", "a\u202egnp.exe"])
def test_a_name_that_is_none_is_refused_and_shown_in_one_line(name):
    with pytest.raises(Refused) as caught:
        check_name(name)
    assert caught.value.status == 400 and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@given(st.text(max_size=60))
def test_of_a_name_nothing_but_a_known_suffix_is_kept(name):
    assert known_suffix(name) in {"", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"} | {
        ".wav", ".flac", ".mp3", ".ogg", ".opus",
    }  # fmt: skip
    assert known_suffix(f"{name.replace('/', '')}x.PNG") == ".png" and known_suffix("page.svg") == ""


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_nothing_stays_of_a_file_that_is_refused(tmp_path, numpy_picture):
    """A size that was not told, or told wrong, is found while the file comes; what it is, at its end."""
    path = tmp_path / "one"
    for data, max_mb, status in ((b"x" * 5000, 0.004, 413), (b"no medium", 1.0, 415), (b"", 1.0, 415)):
        with pytest.raises(Refused, match="is not taken") as caught:
            asyncio.run(take_upload("a.png", chunks(data), path, max_mb=max_mb))
        assert caught.value.status == status and not path.exists()
    taken = asyncio.run(take_upload("a.wav", chunks(numpy_picture), path, max_mb=1.0))
    assert taken == Upload("a.wav", path, "picture") and path.read_bytes() == numpy_picture


@pytest.fixture
def numpy_picture() -> bytes:
    import numpy as np

    return png_bytes(np.zeros((8, 8, 3), np.uint8))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_answers_come_whole_one_after_another_in_the_order_they_were_asked(lengths):
    """And everybody was told a falling number of people before them, down to none."""
    running, order = [], []

    def write(who: int) -> Iterator[tuple[int, int]]:
        running.append(who)
        assert running == [who], "two answers at once"
        for number in range(lengths[who]):
            order.append(who)
            yield who, number
        running.remove(who)

    async def person(queue: ModelQueue, who: int) -> list[Any]:
        return [event async for event in queue.stream(lambda: write(who))]

    async def everybody() -> list[list[Any]]:
        queue = ModelQueue(max_waiting=len(lengths))
        try:
            return await asyncio.gather(*(person(queue, who) for who in range(len(lengths))))
        finally:
            queue.close()

    for who, events in enumerate(asyncio.run(everybody())):
        assert [event for event in events if not isinstance(event, Waiting)] == [(who, n) for n in range(lengths[who])]
        told = [event.before for event in events if isinstance(event, Waiting)]
        assert told[0] == who and told == sorted(set(told), reverse=True)
    assert order == sorted(order)


def test_who_leaves_makes_way_and_one_too_many_is_asked_to_come_again():
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            ended.set()

    async def story() -> None:
        queue = ModelQueue(max_waiting=1)
        first, second = queue.stream(endless), queue.stream(lambda: iter_of("done"))
        assert await anext(first) == Waiting(0) and await anext(first) == 1
        assert await anext(second) == Waiting(1)
        with pytest.raises(QueueFull, match="1 people wait already"):
            await anext(queue.stream(endless))
        await first.aclose()
        assert [event async for event in second] == [Waiting(0), "done"]
        assert ended.is_set()
        queue.close()

    asyncio.run(story())


def test_an_answer_that_nobody_waits_for_ends_in_the_midst_of_an_event():
    """A minute of speech is one event; between the steps of the model it is asked whether anybody is there."""
    queue, begun, ended = ModelQueue(max_waiting=1), threading.Event(), threading.Event()

    def speech() -> Iterator[int]:
        try:
            while True:
                begun.set()
                queue.check()
        finally:
            ended.set()
        yield 0

    async def story() -> None:
        events = queue.stream(speech)
        assert await anext(events) == Waiting(0)
        await asyncio.to_thread(begun.wait)
        await events.aclose()
        assert [event async for event in queue.stream(lambda: iter_of("next"))][-1] == "next"
        assert ended.is_set()
        queue.close()

    asyncio.run(story())


def test_an_error_of_the_model_reaches_the_one_who_asked_and_nobody_else():
    def broken() -> Iterator[int]:
        yield 1
        raise ConfigError("no codec")

    async def story() -> None:
        queue = ModelQueue(max_waiting=2)
        seen = []
        with pytest.raises(ConfigError, match="no codec"):
            async for event in queue.stream(broken):
                seen.append(event)
        assert seen == [Waiting(0), 1]
        assert [event async for event in queue.stream(lambda: iter_of(7))] == [Waiting(0), 7]
        queue.close()

    asyncio.run(story())


def iter_of(*events: Any) -> Iterator[Any]:
    yield from events


def test_the_session_silent_longest_is_let_go_with_its_folder_but_never_one_that_waits(tmp_path):
    store = SessionStore(tmp_path, lambda folder: None, most=2)
    first, second = store.open(), store.open()
    assert store.find(first.token) is first
    third = store.open()
    assert store.find(second.token) is None and not second.folder.exists()
    assert store.find(first.token) is first and len(store) == 2
    first.idle.clear()
    third.idle.clear()
    with pytest.raises(NoRoom, match="all 2 places"):
        store.open()
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_file_from_elsewhere_is_copied_before_it_is_served(tmp_path):
    session = SessionStore(tmp_path / "sessions", lambda folder: None, most=1).open()
    (tmp_path / "a.png").write_bytes(b"x")
    (session.folder / "b.png").write_bytes(b"y")
    names = [session.publish(tmp_path / "a.png"), session.publish(session.folder / "b.png")]
    assert all(session.files[name].parent == session.folder for name in names) and names[1] == "b.png"


@pytest.fixture
def uploads(tmp_path) -> dict[str, Upload]:
    return {
        "p": Upload("cat.png", tmp_path / "1.png", "picture"),
        "s": Upload("hello.wav", tmp_path / "2.wav", "sound"),
        "t": Upload("band.wav", tmp_path / "3.wav", "sound"),
    }


def said(text: str = "", files: dict[str, str] | None = None, to: str = "auto") -> str:
    return json.dumps({"text": text, "to": to, "files": [{"id": key, "as": use} for key, use in (files or {}).items()]})


def test_a_message_puts_files_before_words_and_is_shown_again_as_it_was(uploads):
    message = read_message(said(" who is it? ", {"p": "image", "s": "music", "t": "voice"}, "speech"), uploads, ALL)
    assert message.parts == (
        FilePart(uploads["p"].path, Modality.IMAGE),
        FilePart(uploads["s"].path, Modality.MUSIC),
        TextPart("who is it?"),
    )
    assert message.to_modality == Modality.SPEECH and message.voice_prompt == uploads["t"].path
    line = message_line(message, uploads)
    assert line["text"] == "who is it?"
    assert [(file["name"], file["as"]) for file in line["files"]] == [
        ("cat.png", "image"), ("hello.wav", "music"), ("band.wav", "voice"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "expected a message of the page"),
        ('{"text": "x", "path": "/etc/passwd"}', "expected a message of the page"),
        (said("  "), "there is nothing to answer"),
        (said(files={"s": "voice"}), "there is nothing to answer"),
        (said("x", {"nobody's": "image"}), "not in this chat"),
        (said(files={"p": "speech"}), "“cat.png” is a picture and cannot be used as speech"),
        (said("x", {"s": "voice", "t": "voice"}), "expected one voice"),
        (said("x", to="smell"), "does not answer in 'smell'"),
    ],
)
def test_a_message_that_cannot_be_answered_says_why(uploads, body, message):
    with pytest.raises(Refused, match=message):
        read_message(body, uploads, ALL)


def test_an_answer_is_remembered_as_it_was_seen(tmp_path):
    ready = MediaReady(Modality.IMAGE, tmp_path / "x.png")
    events = [Waiting(1), TextDelta("he", heard=True), TextDelta("a "), TextDelta("cat"), ready]
    events.append(Finished(Reply((), (), "length", ("Forgot one.",))))
    answer: list[dict[str, Any]] = []
    for event in events:
        remember(answer, event_line(event, lambda path: path.name))
    assert answer == [
        {"kind": "text", "text": "he", "heard": True},
        {"kind": "text", "text": "a cat", "heard": False},
        {"kind": "medium", "modality": "image", "url": "/media/x.png"},
        {"kind": "done", "notices": ["Forgot one.", "The answer ran out of room and was ended there."]},
    ]


def test_errors_name_files_as_the_person_knows_them(uploads):
    message = without_paths(f"{uploads['p'].path}: expected a picture", uploads)
    assert message == "“cat.png”: expected a picture"


def test_it_binds_to_loopback_unless_told_otherwise():
    with bind(ServerConfig()) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigError, match="choose another, or port 0"):
            bind(ServerConfig(port=listener.getsockname()[1]))
    with bind(ServerConfig(host="0.0.0.0")) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "192.168.0.1", "a.example")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_every_inference_config_serves_the_page_too(repository, capsys):
    for path in sorted((repository / "configs" / "inference").glob("*.toml")):
        assert load_config(path, WebConfig).server == ServerConfig()
    assert main([str(path), "--set", "server.port=8123", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["server"]["port"] == 8123
    assert main([str(path), "--set", "server.prot=1"]) == 2
    assert "did you mean 'port'" in capsys.readouterr().err


def test_without_aiohttp_the_extra_is_named(repository, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "inference.web_app")
    assert main([str(repository / "configs/inference/tiny.toml")]) == 2
    assert "anygpt-data[web]" in capsys.readouterr().err
