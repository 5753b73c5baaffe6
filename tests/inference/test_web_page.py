"""The page as a person meets it: a real server, started as its command, and a real headless Chromium."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.media_files import png_bytes, wav_bytes
from tests.fixtures.headless_chromium import CHROMIUM, Browser, Page
from tests.fixtures.random_chat_model import EXAMPLES, write_chat_model

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
IDLE = "document.querySelector('#send').textContent === 'Send'"
PROBLEM = "document.querySelector('#problem:not([hidden]) span')?.textContent"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people send."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "picture.png").write_bytes(png_bytes(np.full((64, 64, 3), 90, np.uint8)))
    tone = (0.3 * np.sin(np.arange(32_000) / 9)).astype(np.float32)
    (folder / "tone.wav").write_bytes(wav_bytes(tone, 16_000))
    (folder / "notes.png").write_text("no picture, whatever the name says", encoding="utf-8")
    with (folder / "large.wav").open("wb") as file:
        file.truncate(100_000_000)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The command, on a random model whose speech is long enough to wait for; ended as a person ends it."""
    config = write_chat_model(tmp_path_factory.mktemp("model"), speech_frames=3000)
    command = [sys.executable, "-m", "inference.web_cli", str(config)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    yield process
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def browser(server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all; it starts while the server does."""
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(server: subprocess.Popen[str], browser: Browser) -> str:
    """Where the server says it is."""
    assert server.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
    assert found, "the server did not print its address"
    return found[0]


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Somebody new, with the page open; whatever the page asks for comes from its own server."""
    page = browser.new_person()
    page.open(f"{address}/")
    yield page
    page.close()
    foreign = [url for url in page.requested if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert not foreign, "the page asked other hosts"
    assert not [fault for fault in page.faults if "security" in fault or "exception" in fault.lower()]


def ask(page: Page, words: str, to: str) -> None:
    page.value(f"document.querySelector('#to').value = {to!r}")
    page.type("#text", words, enter=True)
    page.wait(f"document.querySelector('article.model') && {IDLE}")


def refused(page: Page, address: str, path: str) -> int:
    """The status of a request with this person's cookie, its path sent as it is."""
    host, port = address.removeprefix("http://").split(":")
    cookies = page.call("Network.getCookies", urls=[address])["cookies"]
    line = "; ".join(f"{one['name']}={one['value']}" for one in cookies)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nCookie: {line}\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_a_prompt_is_answered_with_a_picture(page):
    ask(page, "a red circle, please", "image")
    assert page.wait("document.querySelector('article.model img')?.naturalWidth") == 224
    assert page.value("document.querySelector('article.mine p').textContent") == "a red circle, please"
    assert page.value("document.title") == "AnyGPT chat" and page.value(
        "document.querySelector('header p').textContent"
    )


def test_what_the_model_was_taught_is_offered_and_typed_by_a_click(page):
    buttons = "[...document.querySelectorAll('#examples button')]"
    assert page.value(f"{buttons}.map((button) => button.textContent)") == EXAMPLES
    page.value(f"{buttons}[1].click()")
    assert page.value("document.querySelector('#text').value") == EXAMPLES[1]
    assert not page.value("document.querySelector('article')"), "nothing is asked before it is sent"
    page.click("#send")
    page.wait(f"document.querySelector('article.model') && {IDLE}")
    assert page.value("document.querySelector('article.mine p').textContent") == EXAMPLES[1]
    assert page.value("document.querySelector('#examples').offsetParent === null")


def test_a_sound_is_played_and_an_uploaded_one_heard(page, files):
    page.choose_files("#file", files / "tone.wav")
    assert page.wait("document.querySelector('#attached select')?.value") == "speech"
    ask(page, "say it again", "music")
    uploaded, answered = "article.mine audio", "article.model figure.music audio"
    assert page.wait(f"document.querySelector({uploaded!r}).duration") == pytest.approx(2.0)
    assert page.wait(f"document.querySelector({answered!r}).duration") == pytest.approx(1.0, abs=0.1)
    page.value(f"document.querySelector({answered!r}).play()")
    assert page.wait(f"document.querySelector({answered!r}).currentTime > 0.05")


def test_a_picture_is_sent_and_found_again_when_the_page_is_opened_again(page, address, files):
    page.choose_files("#file", files / "picture.png")
    page.wait("document.querySelector('#attached img')?.naturalWidth === 64")
    ask(page, "what is it?", "text")
    answer = page.value("document.querySelector('article.model p').textContent")
    page.open(f"{address}/")
    page.wait("document.querySelector('article.mine img')?.naturalWidth === 64")
    assert page.value("document.querySelector('article.model p').textContent") == answer
    page.click("#clear")
    page.wait("!document.querySelector('article')")
    page.open(f"{address}/")
    page.wait("performance.getEntriesByName(location.href + 'shown')[0]?.responseEnd")
    assert not page.value("document.querySelector('article')")


def test_what_the_microphone_hears_is_attached_as_speech(page):
    """Chromium's stand-in for a microphone beeps once a second."""
    page.click("#record")
    page.wait("/[1-9] s/.test(document.querySelector('#record').textContent)")
    page.click("#record")
    assert page.wait("document.querySelector('#attached .name')?.textContent") == "recording-1.wav"
    assert page.value("document.querySelector('#attached select').value") == "speech"


def test_a_wrong_file_type_a_hundred_megabytes_and_a_path_as_a_name_are_refused_in_words(page, files):
    page.choose_files("#file", files / "notes.png")
    assert "expected a picture (PNG, JPEG, WebP, GIF) or a sound" in page.wait(PROBLEM)
    page.click("#problem button")
    page.choose_files("#file", files / "large.wav")
    assert "expected at most 25 MB, found 100.0 MB" in page.wait(PROBLEM)
    page.click("#problem button")
    page.value(
        "(() => { const carried = new DataTransfer();"
        " carried.items.add(new File(['x'], '../../etc/passwd.png', {type: 'image/png'}));"
        " const drop = new DragEvent('drop', {dataTransfer: carried, bubbles: true});"
        " document.dispatchEvent(drop) })()"
    )
    message = page.wait(PROBLEM)
    assert "../../etc/passwd.png" in message and "expected a plain file name" in message
    assert not page.value("document.querySelector('#attached li')")


def test_the_server_takes_no_larger_file_from_who_does_without_the_page(page):
    """What the page says of a large file is a courtesy; the server does not read it."""
    post = "method: 'POST', headers: {'Content-Type': 'application/octet-stream'}, body: new Uint8Array(26e6)"
    answer = page.value(f"fetch('/upload?name=a.wav', {{{post}}}).then((response) => response.json(), () => ({{}}))")
    assert "expected at most 25 MB, found 26.0 MB" in answer.get("error", "")


def test_files_are_served_to_their_own_session_and_no_path_leads_out_of_it(page, browser, address):
    ask(page, "a red circle", "image")
    own = page.value("new URL(document.querySelector('article.model img').src).pathname")
    assert refused(page, address, own) == 200
    other = browser.new_person()
    other.open(f"{address}/")
    assert refused(other, address, own) == 404
    other.close()
    for path in (
        "/media/../../../../etc/passwd",
        "/media/..%2f..%2f..%2fetc%2fpasswd",
        "/media//etc/passwd",
        "/etc/passwd",
    ):
        assert refused(page, address, path) == 404, path
    for path in ("/media/web_page.js", "/../pyproject.toml", "/web_app.py"):
        assert refused(page, address, path) == 404, path


def test_a_second_person_waits_and_sees_so(page, browser, address):
    second = browser.new_person()
    second.open(f"{address}/")
    second.value("document.querySelector('#to').value = 'image'")
    page.value("document.querySelector('#to').value = 'speech'")
    page.type("#text", "a minute of speech, please", enter=True)
    page.wait("document.querySelector('#status').textContent === 'Writing …'")
    second.type("#text", "a circle", enter=True)
    second.wait("document.querySelector('#status').textContent === 'Waiting: 1 person is before you'")
    # Stop: the first one's answer ends, is said to be forgotten, and makes way.
    page.click("#send")
    assert "will not remember" in page.wait("document.querySelector('article.model .note')?.textContent")
    assert second.wait("document.querySelector('article.model img')?.naturalWidth") == 224
    second.close()


def test_clear_stops_an_answer_and_what_is_asked_next_is_answered(page):
    page.value("document.querySelector('#to').value = 'speech'")
    page.type("#text", "a minute of speech, please", enter=True)
    page.wait("document.querySelector('#status').textContent === 'Writing …'")
    page.click("#clear")
    page.wait(f"!document.querySelector('article') && {IDLE}")
    ask(page, "a circle", "image")
    assert page.wait("document.querySelector('article.model img')?.naturalWidth") == 224 and not page.value(PROBLEM)


def test_the_transcript_is_one_page_with_the_picture_in_it(page, address):
    ask(page, "a red <circle>", "image")
    text = page.value("fetch('/transcript').then((response) => response.text())")
    assert "a red &lt;circle&gt;" in text and "data:image/png;base64," in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)


def test_the_page_is_for_this_machine_alone(address):
    """It listens on loopback, and answers to no other name: a foreign page that has its name point here gets nothing."""
    port = int(address.rsplit(":", 1)[1])
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    with pytest.raises(urllib.error.HTTPError, match="403") as caught:
        urllib.request.urlopen(urllib.request.Request(f"{address}/", headers={"Host": f"evil.example:{port}"}))
    assert "expected the address of this machine" in json.loads(caught.value.read())["error"]
