"""One stage of the text half on its own: a config of small units, and somebody who answers and keeps what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthesis import jobs
from synthesis.calls import Answer, Request
from synthesis.config import DialoguesConfig, ScenariosConfig, TextConfig, TopicsConfig


def stage_config(output: Path, repository: Path, **changes: Any) -> TextConfig:
    """Three meta-topics, two rounds of ten; 40 scenarios; tables of ``changes`` are laid over."""
    lists = repository / "configs/synthesis"
    topics = {"num_meta_topics": 3, "rounds": 2, "per_round": 10, "meta_topics_per_unit": 2}
    scenarios = {"count": 40, "calls_per_unit": 2}
    return TextConfig(
        output=output,
        workers=0,
        run_share=1.0,
        seed=changes.get("seed", 0),
        topics=TopicsConfig(meta_topics=lists / "meta_topics.txt", **{**topics, **changes.get("topics", {})}),
        scenarios=ScenariosConfig(
            demonstrations=lists / "scenarios.toml", **{**scenarios, **changes.get("scenarios", {})}
        ),
        dialogues=DialoguesConfig(demonstrations=lists / "dialogues.toml", languages=()),
    )


class Asked:
    """Answers by a function and keeps every request, in the order they came."""

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        return Answer(self._answer(request))


def run_stage(config: TextConfig, stage: str, asked: Asked) -> dict[str, Any]:
    """The report of a stage whose calls ``asked`` answers."""
    loop = asyncio.new_event_loop()
    try:
        return jobs.run_stage(config, stage, jobs.units_in_this_process(asked, loop))
    finally:
        loop.close()


def requested(config: TextConfig, stage: str, answer: Callable[[Request], str]) -> set[str]:
    """Keys of the calls that a stage made."""
    asked = Asked(answer)
    run_stage(config, stage, asked)
    return {request.key for request in asked.requests}


def numbered(lines: list[str]) -> str:
    """A list as models give it."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
