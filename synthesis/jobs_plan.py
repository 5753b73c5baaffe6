"""What a run would ask for, before it does: calls, tokens and cost of every stage.

Prompts are rendered as they will be sent, with stand-ins for what is not written yet; answers are taken to be as long as
they were asked to be, and for the worst case as long as they may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from synthesis import dialogues_stage, scenarios, topics
from synthesis.calls_limits import cost_usd
from synthesis.config import Requirement, TextConfig
from synthesis.prompts import typical_answer_tokens

_TOPIC = "seven words about this and that theme"
_SCENARIO = " ".join(["some words about what the user wants"] * 4)


@dataclass(frozen=True, slots=True)
class StageCost:
    """Calls and tokens of a stage.

    Attributes:
        most_output_tokens: if every answer were as long as it may be.
    """

    calls: int
    input_tokens: int
    output_tokens: int
    most_output_tokens: int


def plan_costs(config: TextConfig) -> dict[str, StageCost]:
    """Calls and tokens by stage, all of them, answered or not.

    Raises:
        ConfigError: a list or the demonstrations cannot be read.
    """
    count = config.scenarios.count
    per_call = config.scenarios.topics_per_call
    num_dialogues = min(count, config.dialogues.count or count)
    return {
        topics.NAME: _topics_cost(config),
        scenarios.NAME: _cost(
            scenarios.call_request(
                config, [0, Requirement.USER_GIVES_IMAGE, [["", _TOPIC]] * per_call]
            ).estimated_tokens,
            -(-count // per_call),
            typical_answer_tokens(config.scenarios),
            config.llm.max_scenario_tokens,
        ),
        dialogues_stage.NAME: _cost(
            dialogues_stage.call_request(
                config,
                {"scenario_id": "0", "topic": _TOPIC, "scenario": _SCENARIO, "requirement": "user_gives_image"},
            )[0].estimated_tokens,
            num_dialogues,
            typical_answer_tokens(config.dialogues),
            config.llm.max_dialogue_tokens,
        ),
    }


def describe_plan(config: TextConfig) -> str:
    """The costs as a table for a terminal."""
    lines = [f"{'stage':<12}{'calls':>10}{'tokens in':>14}{'tokens out':>14}{'USD':>12}{'USD at most':>14}"]
    total = most = 0.0
    for stage, cost in plan_costs(config).items():
        usd = cost_usd(config.llm.price, cost.input_tokens, cost.output_tokens)
        usd_at_most = cost_usd(config.llm.price, cost.input_tokens, cost.most_output_tokens)
        total, most = total + usd, most + usd_at_most
        lines.append(
            f"{stage:<12}{cost.calls:>10,}{cost.input_tokens:>14,}{cost.output_tokens:>14,}{usd:>12,.2f}{usd_at_most:>14,.2f}"
        )
    cap = config.llm.price.max_usd
    lines.append(
        f"all: {total:,.2f} USD, at most {most:,.2f}; the cap is {'not set' if cap is None else f'{cap:,.2f} USD'}"
    )
    return "\n".join(lines)


def _topics_cost(config: TextConfig) -> StageCost:
    names, answer = topics.meta_topics(config), typical_answer_tokens(config.topics)
    first = names[0] if names else ""
    listed = "\n".join(f"{number}. {_TOPIC}" for number in range(config.topics.per_round))
    tokens = sum(
        topics.round_request(config, first, number, [listed] * number).estimated_tokens
        for number in range(config.topics.rounds)
    )
    calls = len(names) * config.topics.rounds
    return StageCost(calls, tokens * len(names), calls * answer, calls * config.llm.max_topic_tokens)


def _cost(prompt: int, calls: int, answer: int, most: int) -> StageCost:
    return StageCost(calls, calls * prompt, calls * min(answer, most), calls * most)
