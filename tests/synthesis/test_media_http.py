"""Media from endpoints, against a real server on loopback: good answers, bad ones, none, and late ones."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ConfigError, SampleError
from shards.modality import Modality
from synthesis.media import MediaRequest
from synthesis.media_config import CorpusMediaConfig, HttpMusic, HttpPictures, HttpSpeech
from synthesis.media_http import HttpPlug
from synthesis.media_job import make_media
from tests.synthesis.media_server import hangs, picture, png_bytes, says, serve, wav_bytes
from tests.synthesis.synthetic_dialogues import draw_dialogue, write_dialogues

PICTURE = MediaRequest(Modality.IMAGE, "a dog", "d/0/image1", 7)
MUSIC = MediaRequest(Modality.MUSIC, "a waltz", "d/0/music1", 7, 2.0)
SPEECH = MediaRequest(Modality.SPEECH, "Here you are.", "d/0/speech", 7, voice="alloy", speed=1.1)
QUICK: dict[str, Any] = {"plug": "http", "backoff_s": 0.01, "timeout_s": 60.0, "max_tries": 3}


def pictures(url: str, **settings: Any) -> HttpPlug:
    return HttpPlug(HttpPictures(base_url=url, **{**QUICK, **settings}))


def test_a_picture_comes_as_openai_gives_it() -> None:
    with serve(picture) as server:
        plug = pictures(server.url, model="dall-e-3", extra={"quality": "hd"})
        ((request, made),) = plug.make([PICTURE])
    assert request is PICTURE
    assert isinstance(made, np.ndarray)
    assert made.shape == (224, 224, 3)
    ((path, body, _),) = server.calls
    assert path == "/v1/images/generations"
    assert body == {
        "model": "dall-e-3", "prompt": "a dog", "n": 1, "size": "1024x1024", "response_format": "b64_json", "quality": "hd",
    }  # fmt: skip


def test_a_picture_may_lie_at_a_url() -> None:
    with serve() as server:
        server.replies.append(says({"data": [{"url": server.url + "/file.png"}]}))
        ((_, made),) = pictures(server.url).make([PICTURE])
    assert isinstance(made, np.ndarray)


def test_speech_comes_as_openai_gives_it_and_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICE_KEY", "secret")
    with serve(says(wav_bytes(1.0))) as server:
        plug = HttpPlug(HttpSpeech(base_url=server.url, model="tts-1", api_key_variable="VOICE_KEY", **QUICK))
        ((_, made),) = plug.make([SPEECH])
    assert isinstance(made, np.ndarray)
    assert made.shape == (16_000,)
    said = {"model": "tts-1", "input": "Here you are.", "voice": "alloy", "speed": 1.1, "response_format": "wav"}
    assert server.calls == [("/v1/audio/speech", said, "Bearer secret")]
    assert "secret" not in json.dumps(plug.facts())


def test_music_comes_as_a_body_or_as_base64_in_json() -> None:
    sound = wav_bytes(2.2, rate_hz=32_000)
    with serve(says(sound), says({"audio": base64.b64encode(sound).decode()})) as server:
        plug = HttpPlug(HttpMusic(base_url=server.url, **QUICK))
        found = [made for _ in range(2) for _, made in plug.make([MUSIC])]
    assert all(isinstance(made, np.ndarray) and made.shape == (64_000,) for made in found)
    assert server.calls[0][:2] == ("/v1/generate", {"prompt": "a waltz", "duration": 2.0, "seed": 7})


BAD = {
    "call_http_500": says({}, 500),
    "call_rate_limited": says({}, 429),
    "call_empty": says(b""),
    "call_garbage": says(b"<html>garbage</html>"),
    "image_unreadable": lambda: picture(b"no picture at all"),
    "picture_one_colour": lambda: picture(png_bytes(plain=True)),
    "answer_too_large": lambda: picture(bytes(90_000)),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_answer_costs_tries_then_a_reject_and_one_in_time_saves_it(reason: str) -> None:
    with serve(BAD[reason]) as server:
        ((_, found),) = pictures(server.url, max_bytes=60_000).make([PICTURE])
        assert isinstance(found, SampleError)
        assert found.reason == reason
        assert "after 3 tries" in str(found)
        assert len(server.calls) == 3
    with serve(BAD[reason], picture) as server:
        ((_, made),) = pictures(server.url, max_bytes=60_000).make([PICTURE])
        assert isinstance(made, np.ndarray)
        assert len(server.calls) == 2


def test_a_request_that_is_refused_is_not_tried_again() -> None:
    with serve(says({"error": "against our policy"}, 400)) as server:
        ((_, found),) = pictures(server.url).make([PICTURE])
    assert isinstance(found, SampleError)
    assert found.reason == "call_http_400"
    assert "against our policy" in str(found)
    assert len(server.calls) == 1


def test_no_server_and_a_late_one_are_rejects() -> None:
    with serve() as server:
        nobody = server.url
    ((_, found),) = pictures(nobody).make([PICTURE])
    assert isinstance(found, SampleError)
    assert found.reason == "call_no_connection"
    with serve(hangs(1.5)) as server:
        ((_, found),) = pictures(server.url, timeout_s=0.3, max_tries=2).make([PICTURE])
        assert isinstance(found, SampleError)
        assert found.reason == "call_timeout"


def test_a_wait_that_the_endpoint_asks_for_is_kept() -> None:
    with serve(says({}, 429, retry_after="1"), picture) as server:
        began = time.monotonic()
        ((_, made),) = pictures(server.url).make([PICTURE])
    assert isinstance(made, np.ndarray)
    assert time.monotonic() - began >= 1.0


def test_a_wrong_key_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(says({"error": "bad key"}, 401)) as server, pytest.raises(ConfigError, match="bad key"):
        list(pictures(server.url).make([PICTURE]))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        list(pictures("http://127.0.0.1:9", api_key_variable="NO_SUCH_KEY").make([PICTURE]))


def test_many_requests_go_out_at_once_and_all_are_answered() -> None:
    asked = [replace(PICTURE, key=str(number)) for number in range(12)]
    with serve(hangs(0.3)) as server:
        found = {request.key: made for request, made in pictures(server.url, concurrency=12).make(asked)}
    assert sorted(found) == sorted(request.key for request in asked)
    assert all(isinstance(made, np.ndarray) for made in found.values())
    assert server.most_at_once > 1


def test_where_an_endpoint_is_does_not_change_what_was_made() -> None:
    here, there = (pictures(f"http://{host}/v1", timeout_s=timeout) for host, timeout in (("a", 1), ("b", 2)))
    assert here.facts() == there.facts() != pictures("http://a/v1", size="512x512").facts()


def test_a_corpus_from_endpoints_asks_for_each_medium_once_and_retries_what_was_out_of_reach(tmp_path: Path) -> None:
    """The third picture fails for good at first; what was answered is kept, and only what failed is asked for again."""
    write_dialogues(tmp_path, [draw_dialogue(number) for number in (0, 1, 4, 5)])
    with serve(picture, picture, says({}, 503), says({}, 503), says({}, 503), picture) as server:
        config = CorpusMediaConfig.model_validate(
            {"pictures": QUICK | {"base_url": server.url, "concurrency": 1}, "workers": 0, "spoken_share": 0.0}
        )
        report = make_media(config, tmp_path, tmp_path / "corpus")
        assert report["rejected"] == {"call_http_503": 1}
        answered = len(server.calls) - 3
        make_media(config, tmp_path, tmp_path / "corpus")
        assert len(server.calls) == answered + 3
        report = make_media(config.model_copy(update={"retry_rejects": True}), tmp_path, tmp_path / "corpus")
        assert report["rejected"] == {}
        assert report["written"] == 4
        assert report["media"]["image"] == len(server.calls) - 3
