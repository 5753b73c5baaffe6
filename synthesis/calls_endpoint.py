"""Any endpoint that speaks OpenAI's chat completions, by the official client; the tries are ours.

Tried again, after a doubling delay: no connection, no answer in time, 408, 409, 429, 5xx, an answer that is no JSON of the
right shape, and an empty one. Not tried again: a 4xx that says the request is wrong. A wrong key or an unknown model (401,
403, 404) would fail every call alike, so it stops the run.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from shards.errors import ConfigError
from synthesis.calls import Answer, CallFailed, Request
from synthesis.calls_limits import Budget, RateLimiter
from synthesis.calls_store import AnswerStore
from synthesis.config import LlmConfig

_STOPS_THE_RUN = {401, 403, 404}
_WORTH_ANOTHER_TRY = {408, 409, 425, 429}


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a try failed.

    Attributes:
        is_final: another try would fail alike.
        wait_s: what the endpoint asked for.
        is_charged: it may have been paid for.
    """

    reason: str
    message: str
    is_final: bool = False
    wait_s: float = 0.0
    is_charged: bool = False


class EndpointWriter:
    """Asks an endpoint within its limits and ours."""

    def __init__(self, config: LlmConfig, store: AnswerStore) -> None:
        """Connect to nothing yet.

        Raises:
            ConfigError: the client is not installed, or there is no key.
        """
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "llm.kind = endpoint: expected the package openai, found none; pip install 'anygpt-data[synthesis]'"
            ) from error
        key = os.environ.get(config.api_key_variable, "")
        if not key and not config.base_url:
            raise ConfigError(
                f"llm.api_key_variable: expected a key in the environment variable {config.api_key_variable}, found "
                "none; set it, or name an endpoint that needs none by llm.base_url"
            )
        self._config = config
        self._store = store
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            # The client insists on one, an endpoint of one's own does not.
            api_key=key or "none",
            base_url=config.base_url or None,
            max_retries=0,
            timeout=config.timeout_s,
        )
        self.limiter = RateLimiter(config.requests_per_minute, config.tokens_per_minute)
        self.budget = Budget(config.price, store.input_tokens, store.output_tokens)

    async def write(self, request: Request) -> Answer:
        """One answer, after at most ``max_tries`` tries.

        Raises:
            CallFailed: all failed; the reason is the last one's.
            BudgetSpent: a try might cost more than is left.
            ConfigError: the endpoint refuses this key, or knows no such model.
        """
        for number in range(self._config.max_tries):
            await self.limiter.wait(request.estimated_tokens + request.max_tokens)
            outcome = await self._try(request)
            if isinstance(outcome, Answer):
                return outcome
            if outcome.is_final or number + 1 == self._config.max_tries:
                break
            await self._wait(request, number, outcome)
        tries = f"{number + 1} {'try' if number == 0 else 'tries'}"
        raise CallFailed(outcome.reason, f"after {tries}: {outcome.message}")

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.close()

    async def _wait(self, request: Request, number: int, failure: _Failure) -> None:
        delay_s = min(self._config.backoff_s * 2.0**number, self._config.max_backoff_s)
        # Calls that failed together must not come back together; which one waits how long depends on its key.
        delay_s *= 0.75 + int(request.key[:4], 16) / 0x1_0000 / 2
        if failure.wait_s:
            self.limiter.pause(failure.wait_s)
        await asyncio.sleep(max(delay_s, failure.wait_s))

    async def _try(self, request: Request) -> Answer | _Failure:
        reserved = self.budget.reserve(request)
        used = (0, 0)
        try:
            outcome = await self._ask(request)
            if isinstance(outcome, Answer):
                used = (outcome.input_tokens, outcome.output_tokens)
            elif outcome.is_charged:
                used = (request.estimated_tokens, request.max_tokens)
                await self._store.put_lost(request.key, input_tokens=used[0], output_tokens=used[1])
            return outcome
        finally:
            self.budget.settle(reserved, input_tokens=used[0], output_tokens=used[1])

    async def _ask(self, request: Request) -> Answer | _Failure:
        config, openai = self._config, self._openai
        messages: Any = [{"role": message.role, "content": message.content} for message in request.messages]
        call = self._client.chat.completions.with_raw_response.create(
            model=request.model,
            messages=messages,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
        )
        try:
            # The client's own limit is on every read; an endpoint that dribbles would pass it for ever.
            response = await asyncio.wait_for(call, config.timeout_s)
            return read_completion(response.http_response.text, request)
        except (openai.APITimeoutError, TimeoutError):
            return _Failure("call_timeout", f"no answer within {config.timeout_s:g} s", is_charged=True)
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            return _Failure("call_no_connection", str(error.__cause__ or error))

    def _status(self, error: Any) -> _Failure:
        status = int(error.status_code)
        text = " ".join(str(error.response.text).split())[:200]
        if status in _STOPS_THE_RUN:
            raise ConfigError(
                f"llm: the endpoint {self._client.base_url} answered {status} for the model {self._config.model!r}: "
                f"{text}; correct llm.base_url, llm.model, or the key in {self._config.api_key_variable}"
            )
        reason = "call_rate_limited" if status == 429 else f"call_http_{status}"
        is_final = status < 500 and status not in _WORTH_ANOTHER_TRY
        return _Failure(reason, text or f"status {status}", is_final, retry_after_s(error.response.headers))


def read_completion(text: str, request: Request) -> Answer | _Failure:
    """The answer in the body of a response; its fields are checked, whatever the status said."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"].get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return _Failure("call_garbage", f"expected a chat completion, found {text[:100]!r}", is_charged=True)
    if content is not None and not isinstance(content, str):
        return _Failure("call_garbage", f"expected text, found {str(content)[:100]!r}", is_charged=True)
    if not content or not content.strip():
        is_refused = choice.get("finish_reason") == "content_filter"
        reason = "call_refused" if is_refused else "call_empty"
        return _Failure(reason, "the answer has no text", is_final=is_refused, is_charged=True)
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    return Answer(
        content,
        _count(usage.get("prompt_tokens"), request.estimated_tokens),
        _count(usage.get("completion_tokens"), len(content) // 4 + 1),
        str(body.get("model", "")),
    )


def retry_after_s(headers: Any, *, most_s: float = 3600.0) -> float:
    """What ``Retry-After`` asks for: seconds or a date; 0 where it says nothing one can read."""
    value = str(headers.get("retry-after", "")).strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), most_s) if seconds == seconds else 0.0


def _count(found: Any, otherwise: int) -> int:
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else otherwise
