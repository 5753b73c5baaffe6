"""A real server on loopback that misbehaves in every way costs tries, never the job; an answer is never asked for twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shards.errors import ConfigError
from synthesis.calls import Answer, BudgetSpent, CallFailed, CallKeeper, Message, Request, together
from synthesis.calls_endpoint import EndpointWriter
from synthesis.calls_limits import RateLimiter
from synthesis.calls_store import AnswerStore
from synthesis.config import LlmConfig, PriceConfig

GOOD = {
    "choices": [{"message": {"content": "1. a red star"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    "model": "served",
}


class _Server(ThreadingHTTPServer):
    """Answers by a script of (status, headers, body, delay); the last one goes on for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, dict[str, str], bytes, float]] = []
        self.times: list[float] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        nth = len(self.server.times)
        self.server.times.append(time.monotonic())
        status, headers, body, delay = self.server.script[min(nth, len(self.server.script) - 1)]
        time.sleep(delay)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        # One that waited too long has gone.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    one = _Server()
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def reply(
    status: int = 200, body: object = GOOD, delay: float = 0.0, **headers: str
) -> tuple[int, dict[str, str], bytes, float]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, data, delay


def request(text: str = "List 1 thing") -> Request:
    return Request("topics", (Message("user", text),), "m", 1.0, 1.0, 50, 7)


def ask(server: _Server, folder: Path, *requests: Request, **changes: object) -> list[Answer | BaseException]:
    """Ask through a keeper, all at once."""
    config = LlmConfig(
        kind="endpoint",
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        **{"timeout_s": 5.0, "max_tries": 3, "backoff_s": 0.01, **changes},
    )

    async def run() -> list[Answer | BaseException]:
        store = AnswerStore(folder)
        keeper = CallKeeper(EndpointWriter(config, store), store, concurrency=4)
        try:
            return await asyncio.gather(*(keeper.ask(one) for one in requests), return_exceptions=True)
        finally:
            await keeper.close()
            store.close()

    return asyncio.run(run())


BAD = {
    "call_http_500": reply(500, b"oops"),
    "call_rate_limited": reply(429, b"slow down"),
    "call_garbage": reply(200, b"<html>hello</html>"),
    "call_empty": reply(200, {"choices": [{"message": {"content": "  "}}]}),
    "call_no_connection": reply(0),
    "call_timeout": reply(200, GOOD, delay=0.6),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_answer_is_tried_again_and_the_good_one_counts(reason: str, server: _Server, tmp_path: Path):
    """One bad answer costs a try."""
    server.script = [BAD[reason], reply()]
    (answer,) = ask(server, tmp_path, request(), timeout_s=0.3 if reason == "call_timeout" else 5.0)
    assert answer == Answer("1. a red star", 100, 10, "served")
    assert len(server.times) == 2


@pytest.mark.parametrize("reason", BAD)
def test_nothing_but_bad_answers_is_a_named_failure(reason: str, server: _Server, tmp_path: Path):
    """After the last try the call has failed, under the name of what went wrong; it is not kept as answered."""
    server.script = [BAD[reason]]
    (error,) = ask(server, tmp_path, request(), timeout_s=0.3 if reason == "call_timeout" else 5.0, max_tries=2)
    assert isinstance(error, CallFailed) and error.reason == reason
    assert len(server.times) == 2
    assert AnswerStore(tmp_path).get(request().key) is None


def test_a_wrong_request_is_not_tried_again_and_a_wrong_key_stops_the_run(server: _Server, tmp_path: Path):
    """400 would fail alike, 401 would fail every call alike."""
    server.script = [reply(400, b"bad"), reply(401, b"who are you")]
    first, second = ask(server, tmp_path, request())[0], ask(server, tmp_path, request())[0]
    assert isinstance(first, CallFailed) and first.reason == "call_http_400"
    assert isinstance(second, ConfigError)
    assert len(server.times) == 2


def test_retry_after_is_honoured(server: _Server, tmp_path: Path):
    """The endpoint says when to come back."""
    server.script = [reply(429, b"", Retry_After="1"), reply()]
    ask(server, tmp_path, request())
    assert server.times[1] - server.times[0] >= 1.0


def test_an_answered_call_is_never_repeated(server: _Server, tmp_path: Path):
    """Not at once, not by a later run, not after a run that tore its last line."""
    server.script = [reply()]
    assert len({repr(one) for one in ask(server, tmp_path, *[request()] * 5)}) == 1
    with next(tmp_path.glob("answers-*.jsonl")).open("ab") as file:
        file.write(b'0123456789abcdef {"key": "torn')
    assert ask(server, tmp_path, request())[0] == Answer("1. a red star", 100, 10, "served")
    assert len(server.times) == 1
    ask(server, tmp_path, request("another"))
    assert len(server.times) == 2


def test_the_cap_on_cost_holds_over_runs(server: _Server, tmp_path: Path):
    """What earlier runs spent counts; a call that might pass the cap is not made."""
    price = PriceConfig(usd_per_million_input=1000.0, usd_per_million_output=1000.0, max_usd=0.15)
    server.script = [reply()]
    assert isinstance(ask(server, tmp_path, request("a"), price=price)[0], Answer)
    assert isinstance(ask(server, tmp_path, request("b"), price=price)[0], BudgetSpent)
    assert len(server.times) == 1


def test_the_limits_of_rate_hold_in_every_window():
    """Six calls, two a window: the last of them is two windows late; tokens limit in the same way."""
    for limits, tokens in (((2.0, None), 1), ((None, 20.0), 10)):
        limiter = RateLimiter(*limits, window_s=0.2)

        async def run(limiter: RateLimiter = limiter, tokens: int = tokens) -> list[float]:
            async def one() -> float:
                await limiter.wait(tokens)
                return time.monotonic()

            return sorted(await asyncio.gather(*(one() for _ in range(6))))

        times = asyncio.run(run())
        assert all(later - early >= 0.199 for early, later in zip(times, times[2:], strict=False))


def test_a_call_has_60_seconds_by_default_and_the_client_is_what_ends_it(server: _Server, tmp_path: Path):
    """The client is told the config's limit; with 0.3 s, a call that would take 30 s has failed long before."""
    writer = EndpointWriter(LlmConfig(kind="endpoint", base_url="http://127.0.0.1:9/v1"), AnswerStore(tmp_path / "a"))
    assert writer._config.timeout_s == writer._client.timeout == 60.0
    server.script = [reply(200, GOOD, delay=30.0)]
    begun = time.monotonic()
    (error,) = ask(server, tmp_path / "b", request(), timeout_s=0.3, max_tries=1)
    assert isinstance(error, CallFailed) and error.reason == "call_timeout" and "within 0.3 s" in error.message
    assert time.monotonic() - begun < 20.0


def test_when_one_of_several_fails_the_others_have_ended_and_nothing_is_told_later(caplog: pytest.LogCaptureFixture):
    """An error that nobody took is written down by the garbage collector, in the middle of whatever runs then."""
    ended: list[int] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ConfigError("the key is wrong")

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    async def unit() -> list[None]:
        return await together([fail(), fail(), wait()])

    loop = asyncio.new_event_loop()
    with pytest.raises(ConfigError, match="the key is wrong"):
        loop.run_until_complete(together([unit(), unit(), wait()]))
    assert len(ended) == 3 and not asyncio.all_tasks(loop)
    loop.close()
    gc.collect()
    assert not caplog.records


def test_what_several_return_keeps_their_order():
    async def late(number: int) -> int:
        await asyncio.sleep(0.01 / (1 + number))
        return number

    assert asyncio.run(together(late(number) for number in range(5))) == [0, 1, 2, 3, 4]
