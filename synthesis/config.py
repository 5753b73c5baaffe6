"""What ``anygpt-synthesize`` reads: how many of what, who writes it, and the rules it has to keep.

The tables of this file are the text half (topics, scenarios, dialogues). :class:`SynthesisConfig` is the whole file.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs.load import Config
from synthesis.media_config import CorpusMediaConfig


class Requirement(StrEnum):
    """What a scenario must hold; figure 6 of the paper."""

    USER_GIVES_IMAGE = "user_gives_image"
    USER_SHARES_MUSIC = "user_shares_music"
    ASKS_FOR_MUSIC = "asks_for_music"
    ASKS_FOR_IMAGE = "asks_for_image"


class RulesModel(StrEnum):
    """The manners of the offline writer."""

    PLAIN = "rules-1"
    """Whole sentences about a topic, every attribute named."""
    BRIEF = "brief-1"
    """Requests of a few words, for a small model."""
    BRIEF_HELD_OUT = "brief-1-heldout"
    """The same about compositions that the others never show, for its evaluation."""


class PriceConfig(Config):
    """What an endpoint asks, and what we are ready to pay."""

    usd_per_million_input: float = Field(default=0.0, ge=0)
    usd_per_million_output: float = Field(default=0.0, ge=0)
    """Of tokens."""
    max_usd: float | None = Field(default=None, ge=0)
    """Spent by all runs into one output together; a call that might exceed it is not made, and the run stops."""


class LlmConfig(Config):
    """Who writes: any endpoint that speaks OpenAI's protocol, or rules of our own."""

    kind: Literal["rules", "endpoint"] = "rules"
    model: str = RulesModel.PLAIN
    """An endpoint's name of it; for the rules, one of :class:`RulesModel`."""
    base_url: str = ""
    """Of the endpoint, e.g. ``http://localhost:8000/v1``; empty: the client's own default."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a key is never written into a config."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_topic_tokens: int = Field(default=1200, ge=1)
    max_scenario_tokens: int = Field(default=1500, ge=1)
    max_dialogue_tokens: int = Field(default=700, ge=1)
    """Longest answer of a call of each kind; they also bound what a call can cost."""
    timeout_s: float = Field(default=60.0, gt=0)
    max_tries: int = Field(default=5, ge=1)
    backoff_s: float = Field(default=2.0, gt=0)
    """Before the second try, doubled before each further one; an endpoint's Retry-After is honoured where it is longer."""
    max_backoff_s: float = Field(default=60.0, gt=0)
    concurrency: int = Field(default=16, ge=1)
    """Calls under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Of prompt and longest answer together, as endpoints count them; None: no limit."""
    price: PriceConfig = PriceConfig()

    @model_validator(mode="after")
    def _manner_is_known(self) -> LlmConfig:
        if self.kind == "rules" and self.model not in set(RulesModel):
            raise ValueError(f"model: expected one of {', '.join(RulesModel)} of the rules, found {self.model!r}")
        return self


class TopicsConfig(Config):
    """Meta-topics into topics; figure 5."""

    meta_topics: Path = Path("configs/synthesis/meta_topics.txt")
    """One a line; what follows a ``|`` are things to talk about, for the offline writer only."""
    num_meta_topics: int | None = Field(default=None, ge=1)
    """Use the first so many of the list; None: all."""
    rounds: int = Field(default=4, ge=1)
    per_round: int = Field(default=50, ge=1)
    meta_topics_per_unit: int = Field(default=10, ge=1)
    min_words: int = Field(default=1, ge=1)
    max_words: int = Field(default=10, ge=1)
    similarity: float = Field(default=0.85, gt=0, le=1)
    """Jaccard similarity of word sets from which a topic is a near copy of an earlier one."""


class ScenariosConfig(Config):
    """Topics into scenarios; figure 6."""

    count: int = Field(default=20_000, ge=1)
    """How many are asked for; when there are fewer topics, topics come again, each pass in another order."""
    demonstrations: Path = Path("configs/synthesis/scenarios.toml")
    demonstrations_per_call: int = Field(default=5, ge=1)
    topics_per_call: int = Field(default=10, ge=1)
    calls_per_unit: int = Field(default=10, ge=1)
    requirements: dict[Requirement, float] = Field(
        default={
            Requirement.USER_GIVES_IMAGE: 1.0,
            Requirement.USER_SHARES_MUSIC: 2.0,
            Requirement.ASKS_FOR_MUSIC: 1.0,
            Requirement.ASKS_FOR_IMAGE: 1.0,
        }
    )
    """Weights; the paper weights shared music up, because models tend to leave it out."""
    min_words: int = Field(default=8, ge=1)
    max_words: int = Field(default=120, ge=1)


class DialoguesConfig(Config):
    """Scenarios into dialogues, and the rules a dialogue keeps; figure 7."""

    count: int | None = Field(default=None, ge=1)
    """Of the scenarios, the first so many; None: all."""
    demonstrations: Path = Path("configs/synthesis/dialogues.toml")
    demonstrations_per_call: int = Field(default=3, ge=1)
    calls_per_unit: int = Field(default=50, ge=1)
    min_rounds: int = Field(default=2, ge=1)
    max_rounds: int = Field(default=3, ge=1)
    min_words: int = Field(default=5, ge=0)
    max_words: int = Field(default=15, ge=1)
    """Of an utterance without its media."""
    words_slack: int = Field(default=0, ge=0)
    """Words by which an utterance may miss either bound; models count badly."""
    max_images: int = Field(default=2, ge=0)
    max_music: int = Field(default=1, ge=0)
    min_description_words: int = Field(default=3, ge=1)
    max_description_words: int = Field(default=60, ge=1)
    languages: tuple[str, ...] = ("en",)
    """A dialogue in another language is rejected, as py3langid hears it; empty: not asked."""
    demonstration_similarity: float = Field(default=0.6, gt=0, le=1)
    """From which a dialogue is a copy of a demonstration that it was shown."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """From which a dialogue is a near copy of an earlier one."""


class TextConfig(Config):
    """The text half: what decides the dialogues, and how the work runs."""

    output: Path
    seed: int = 0
    llm: LlmConfig = LlmConfig()
    topics: TopicsConfig = TopicsConfig()
    scenarios: ScenariosConfig = ScenariosConfig()
    dialogues: DialoguesConfig = DialoguesConfig()
    famous_names: Path | None = None
    """More names that no description may hold, one a line; our own list is always used."""
    run_share: float = Field(default=0.5, gt=0, le=1)
    """Rejected share of a stage's inputs from which the run stops."""
    workers: int = Field(default=2, ge=0)
    """Ray workers; 0: this process, without Ray. They decide no byte of the output."""
    address: str = ""
    """Of a running Ray cluster; empty: this machine."""


def text_json(config: TextConfig) -> str:
    """The text half of a config, for workers and as a key."""
    return config.model_dump_json(include=set(TextConfig.model_fields))


class SynthesisConfig(TextConfig):
    """The whole file."""

    media: CorpusMediaConfig | None = None
    """Dialogues into a corpus, in ``OUTPUT/corpus``; None: the text stages only."""
