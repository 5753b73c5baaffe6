"""Media from endpoints: OpenAI's images and speech, and any server that takes JSON and gives a sound.

Tried again, after a doubling delay: no connection, no answer in time, 408, 409, 425, 429, 5xx, an answer that is no medium,
and a medium that is not what was asked for (silent, of one colour, too short): another try may give a better one. Not tried
again: a 4xx that says the request is wrong. A wrong key or an unknown model (401, 403, 404) would fail every request alike,
so it stops the run. Reasons are those of :mod:`synthesis.calls_endpoint`, and those of the readers and of the checks.

Time and bytes of an answer are bounded as a whole: a server that dribbles, or never ends, costs one try. So is the cost
(:mod:`synthesis.media_budget`): what was refused, or never got there, is free; all else counts as charged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, SampleError
from synthesis.calls import BudgetSpent
from synthesis.calls_endpoint import retry_after_s
from synthesis.calls_limits import RateLimiter
from synthesis.media import Made, MediaRequest, Outcome
from synthesis.media_budget import MediaBudget
from synthesis.media_checks import check_made, read_made
from synthesis.media_config import Endpoint, HttpMusic, HttpPictures

if TYPE_CHECKING:
    import httpx

_STOPS_THE_RUN = {401, 403, 404}
_WORTH_ANOTHER_TRY = {408, 409, 425, 429}
_SHOWN_BYTES = 200


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a try failed; ``wait_s`` is what the endpoint asked for, and ``is_free`` that it charged nothing."""

    error: SampleError
    is_final: bool = False
    wait_s: float = 0.0
    is_free: bool = False


@dataclass(frozen=True, slots=True)
class HttpPlug:
    """Asks an endpoint for one medium a request, several requests at once."""

    config: Endpoint
    together: int = 1
    budget: MediaBudget | None = None

    def facts(self) -> Mapping[str, Any]:
        """Model and form of the request; not where it runs, nor how patient we are."""
        kept = {"model", "size", "response_format", "path", "text_field", "seconds_field", "extra"}
        return {"plug": f"http {type(self.config).__name__}", **self.config.model_dump(mode="json", include=kept)}

    def make(self, requests: Sequence[MediaRequest]) -> Iterator[tuple[MediaRequest, Outcome]]:
        """Ask for all of them, ``concurrency`` at once.

        Raises:
            ConfigError: httpx is not installed, there is no key, or the endpoint refuses it or knows no such model.
            BudgetSpent: the next try might cost more than is left; what was asked for before has been waited for.
        """
        headers, spent = self._headers(), list[BudgetSpent]()
        with asyncio.Runner() as runner:
            session = _Session(self.config, headers, self.budget)
            under_way = {runner.get_loop().create_task(session.ask(request)) for request in requests}
            try:
                while under_way:
                    done, under_way = runner.run(_first(under_way))
                    for task in done:
                        try:
                            yield task.result()
                        except BudgetSpent as error:
                            spent.append(error)
            finally:
                for task in under_way:
                    task.cancel()
                runner.run(session.close())
        if spent:
            raise spent[0]

    def _headers(self) -> dict[str, str]:
        name = self.config.api_key_variable
        if not name:
            return {}
        key = os.environ.get(name, "")
        if not key:
            raise ConfigError(
                f"api_key_variable: expected a key in the environment variable {name}, found none; set it, or leave "
                "api_key_variable empty for an endpoint that needs none"
            )
        return {"Authorization": f"Bearer {key}"}


async def _first(tasks: set[asyncio.Task[Any]]) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


class _Session:
    """Connections, limits and tries of one call of :meth:`HttpPlug.make`."""

    def __init__(self, config: Endpoint, headers: Mapping[str, str], budget: MediaBudget | None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError(
                "plug = http: expected the package httpx, found none; pip install 'anygpt-data[synthesis]'"
            ) from error
        self._config = config
        self._budget = budget
        self._httpx = httpx
        self._headers = dict(headers)
        self._client = httpx.AsyncClient(timeout=config.timeout_s, follow_redirects=False)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._limiter = RateLimiter(config.requests_per_minute, None)

    async def ask(self, request: MediaRequest) -> tuple[MediaRequest, Outcome]:
        """What came of a request, after at most ``max_tries`` tries."""
        async with self._slots:
            for number in range(self._config.max_tries):
                await self._limiter.wait(0)
                outcome = await self._paid_try(request)
                if not isinstance(outcome, _Failure):
                    return request, outcome
                if outcome.is_final or number + 1 == self._config.max_tries:
                    break
                await self._wait(request, number, outcome)
        tries = f"{number + 1} {'try' if number == 0 else 'tries'}"
        message = str(outcome.error).removeprefix(f"{outcome.error.reason}: ")
        return request, SampleError(outcome.error.reason, f"after {tries}: {message}")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _wait(self, request: MediaRequest, number: int, failure: _Failure) -> None:
        delay_s = min(self._config.backoff_s * 2.0**number, self._config.max_backoff_s)
        # Requests that failed together must not come back together; which one waits how long depends on its seed.
        delay_s *= 0.75 + (request.seed % 1024) / 2048
        if failure.wait_s:
            self._limiter.pause(failure.wait_s)
        await asyncio.sleep(max(delay_s, failure.wait_s))

    async def _paid_try(self, request: MediaRequest) -> Made | _Failure:
        if self._budget is None:
            return await self._try(request)
        self._budget.reserve()
        try:
            outcome = await self._try(request)
        except ConfigError:
            self._budget.refund()
            raise
        if isinstance(outcome, _Failure) and outcome.is_free:
            self._budget.refund()
        return outcome

    async def _try(self, request: MediaRequest) -> Made | _Failure:
        httpx = self._httpx
        try:
            # The client's own limit is on every read; an endpoint that dribbles would pass it for ever.
            return await asyncio.wait_for(self._ask(request), self._config.timeout_s)
        except (TimeoutError, httpx.TimeoutException):
            return _Failure(SampleError("call_timeout", f"no answer within {self._config.timeout_s:g} s"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # A connection that broke later may have carried the request.
            is_free = isinstance(error, httpx.ConnectError | httpx.InvalidURL | httpx.UnsupportedProtocol)
            message = str(error) or type(error).__name__
            return _Failure(SampleError("call_no_connection", message), is_free=is_free)
        except SampleError as error:
            return _Failure(error)

    async def _ask(self, request: MediaRequest) -> Made | _Failure:
        path, body = request_body(self._config, request)
        url = self._config.base_url.rstrip("/") + path
        async with self._client.stream("POST", url, json=body, headers=self._headers) as response:
            data = await self._body(response)
        if response.status_code >= 300:
            return self._status(response, data)
        medium = await self._medium(response, data)
        return check_made(request, read_made(request.modality, medium))

    async def _medium(self, response: httpx.Response, data: bytes) -> bytes:
        """The encoded medium: the body itself, or what its JSON holds or points to."""
        kind = response.headers.get("content-type", "")
        if not data:
            raise SampleError("call_empty", "the answer has no body")
        if isinstance(self._config, HttpPictures) or "json" in kind:
            found = medium_field(self._config, data)
            if not found.startswith(("http://", "https://")):
                return _from_base64(found)
            async with self._client.stream("GET", found) as pointed:
                medium = await self._body(pointed)
            if pointed.status_code != 200:
                raise SampleError("call_garbage", f"expected a medium at the answer's url, found {pointed.status_code}")
            return medium
        return data

    async def _body(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > self._config.max_bytes:
                raise SampleError("answer_too_large", f"expected at most {self._config.max_bytes} bytes, found more")
        return bytes(data)

    def _status(self, response: httpx.Response, data: bytes) -> _Failure:
        status = response.status_code
        text = " ".join(data[:_SHOWN_BYTES].decode(errors="replace").split()) or f"status {status}"
        if status in _STOPS_THE_RUN:
            raise ConfigError(
                f"the endpoint {response.url} answered {status} for the model {self._config.model!r}: {text}; correct "
                f"base_url, model, or the key in {self._config.api_key_variable or 'api_key_variable'}"
            )
        reason = "call_rate_limited" if status == 429 else f"call_http_{status}"
        is_final = status < 500 and status not in _WORTH_ANOTHER_TRY
        return _Failure(SampleError(reason, text), is_final, retry_after_s(response.headers), is_free=True)


def request_body(config: Endpoint, request: MediaRequest) -> tuple[str, dict[str, Any]]:
    """Where a request goes, below ``base_url``, and its JSON."""
    model: dict[str, Any] = {"model": config.model} if config.model else {}
    if isinstance(config, HttpPictures):
        form = {"response_format": config.response_format} if config.response_format else {}
        return "/images/generations", {
            **model,
            "prompt": request.text,
            "n": 1,
            "size": config.size,
            **form,
            **config.extra,
        }
    if isinstance(config, HttpMusic):
        seconds = {config.seconds_field: request.duration_s} if config.seconds_field else {}
        return config.path, {**model, config.text_field: request.text, **seconds, "seed": request.seed, **config.extra}
    said = {"input": request.text, "voice": request.voice, "speed": request.speed, "response_format": "wav"}
    return "/audio/speech", {**model, **said, **config.extra}


def medium_field(config: Endpoint, data: bytes) -> str:
    """Base64 or a url out of an answer's JSON.

    Raises:
        SampleError: ``call_garbage``, ``call_empty``.
    """
    try:
        body = json.loads(data)
        if isinstance(config, HttpPictures):
            found = body["data"][0].get("b64_json") or body["data"][0].get("url")
        else:
            found = body[config.answer_field] if isinstance(config, HttpMusic) else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SampleError("call_garbage", f"expected JSON with a medium, found {data[:80]!r}") from error
    if not isinstance(found, str) or not found:
        raise SampleError("call_empty", "the answer has no medium")
    return found


def _from_base64(text: str) -> bytes:
    # A data url has its kind before the comma.
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError("call_garbage", f"expected base64, found {text[:40]!r}") from error
