"""What a unit of work gives, whichever stage it is of: rows, and what was left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.sample_corpora.draws import stable_int
from pipeline.samples import Filtered, Reject
from shards.records import Provenance
from synthesis.calls import Answer, Kind, Message, Request
from synthesis.config import TextConfig

Ask = Callable[[Request], Awaitable[Answer]]
"""Gives the answer to a request; raises :class:`~synthesis.calls.CallFailed` where there is none."""
Row = dict[str, Any]
LeftOut = Reject | Filtered


@dataclass(slots=True)
class UnitResult:
    """Rows and left-out items of a unit, each in the order of its inputs."""

    rows: list[Row] = field(default_factory=list[Row])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])

    def add(self, item: Row | LeftOut) -> None:
        """Put an item where it belongs."""
        if isinstance(item, dict):
            self.rows.append(item)
        else:
            self.left_out.append(item)

    @property
    def inputs(self) -> int:
        """Everything that came in."""
        return len(self.rows) + len(self.left_out)


def joined(results: Iterable[UnitResult]) -> UnitResult:
    """Several results as one, in their order."""
    whole = UnitResult()
    for result in results:
        whole.rows += result.rows
        whole.left_out += result.left_out
    return whole


def make_request(config: TextConfig, kind: Kind, messages: tuple[Message, ...], *key: object) -> Request:
    """A request by the settings of the config; its seed depends on the config's and on the key."""
    llm = config.llm
    most = {
        "topics": llm.max_topic_tokens,
        "scenarios": llm.max_scenario_tokens,
        "dialogues": llm.max_dialogue_tokens,
    }[kind]
    seed = stable_int("call", config.seed, kind, *key, num_bytes=4) >> 1
    return Request(kind, messages, llm.model, llm.temperature, llm.top_p, most, seed)


def rejected(stage: str, key: str, reason: str, message: str, member: str = "") -> Reject:
    """An item that broke a rule, or a call without an answer."""
    return Reject(key, stage, reason, message, Provenance(stage, member))


def filtered(stage: str, key: str, reason: str, message: str, member: str = "") -> Filtered:
    """A sound item that is left out on purpose."""
    return Filtered(key, stage, reason, message, Provenance(stage, member))
