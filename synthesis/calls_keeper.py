"""The keeper that a config asks for: its store in ``OUTPUT/calls``, its writer by ``llm.kind``."""

from __future__ import annotations

from pathlib import Path

from synthesis.calls import CallKeeper
from synthesis.calls_endpoint import EndpointWriter
from synthesis.calls_store import AnswerStore
from synthesis.config import TextConfig
from synthesis.llm_rules import RulesWriter

CALLS_FOLDER = "calls"


def open_keeper(config: TextConfig) -> CallKeeper:
    """Open the store and the writer.

    Raises:
        ConfigError: the endpoint has no key, or its client is not installed.
        DatasetError: another process writes answers there.
    """
    store = AnswerStore(calls_folder(config))
    writer = RulesWriter(config) if config.llm.kind == "rules" else EndpointWriter(config.llm, store)
    return CallKeeper(writer, store, concurrency=config.llm.concurrency)


def calls_folder(config: TextConfig) -> Path:
    """Where the answers of an output are kept."""
    return config.output / CALLS_FOLDER
