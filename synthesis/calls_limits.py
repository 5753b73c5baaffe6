"""How fast and for how much: requests and tokens per minute, and a cap on what all runs spend.

The limits are the endpoint's, so they hold in every window of 60 s, wherever it begins; a bucket that fills evenly would
let twice as many through. Cost is reserved before a call at the most it can be and settled after it, so calls that are
under way together cannot pass the cap.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from synthesis.calls import BudgetSpent, Request
from synthesis.config import PriceConfig


@dataclass(slots=True)
class RateLimiter:
    """Waits until a call fits into the limits.

    Attributes:
        window_s: what the limits count in; a minute, but for tests.
    """

    requests: float | None
    tokens: float | None
    window_s: float = 60.0
    _past: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    _tokens_past: int = 0
    _not_before: float = 0.0
    _turn: asyncio.Lock | None = None

    async def wait(self, tokens: int) -> None:
        """Return when a call of so many tokens may go out; those who wait go in the order they came."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            while (delay_s := self._delay_s(tokens)) > 0:
                await asyncio.sleep(delay_s)
            if self.requests is not None or self.tokens is not None:
                self._past.append((time.monotonic(), tokens))
                self._tokens_past += tokens

    def pause(self, seconds: float) -> None:
        """Let no call out for a while: the endpoint said so."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _delay_s(self, tokens: int) -> float:
        now = time.monotonic()
        while self._past and self._past[0][0] <= now - self.window_s:
            self._tokens_past -= self._past.popleft()[1]
        if now < self._not_before:
            return self._not_before - now
        too_many = self.requests is not None and len(self._past) + 1 > self.requests
        # A call that is larger than the limit itself goes out alone: the endpoint may know better, and says so if not.
        too_large = self.tokens is not None and self._tokens_past + tokens > self.tokens
        if self._past and (too_many or too_large):
            return max(self._past[0][0] + self.window_s - now, 0.001)
        return 0.0


@dataclass(slots=True)
class Budget:
    """What was spent, what calls under way may still spend, and the cap on both."""

    price: PriceConfig
    input_tokens: int = 0
    output_tokens: int = 0
    _reserved_usd: float = 0.0

    @property
    def spent_usd(self) -> float:
        """By all runs so far."""
        return cost_usd(self.price, self.input_tokens, self.output_tokens)

    def reserve(self, request: Request) -> float:
        """Set aside what a call costs at most.

        Returns:
            The sum, for :meth:`settle`.

        Raises:
            BudgetSpent: it is more than what is left.
        """
        most = cost_usd(self.price, request.estimated_tokens, request.max_tokens)
        cap = self.price.max_usd
        if cap is not None and self.spent_usd + self._reserved_usd + most > cap:
            raise BudgetSpent(
                f"llm.price.max_usd = {cap:g}: {self.spent_usd:.4f} USD are spent, calls under way may cost "
                f"{self._reserved_usd:.4f} more and the next one {most:.4f}; raise the cap and run again, every answer "
                "is kept"
            )
        self._reserved_usd += most
        return most

    def settle(self, reserved: float, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Replace what was set aside by what was used; nothing, where the call was not charged."""
        self._reserved_usd = max(0.0, self._reserved_usd - reserved)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


def cost_usd(price: PriceConfig, input_tokens: float, output_tokens: float) -> float:
    """What so many tokens cost."""
    return (input_tokens * price.usd_per_million_input + output_tokens * price.usd_per_million_output) / 1e6
