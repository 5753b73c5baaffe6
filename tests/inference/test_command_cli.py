"""What the three commands share: numbers that mean nothing are refused, and libraries are silent."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from inference import chat_cli, generate_cli, web_cli
from inference.command_cli import open_in_silence, run_command
from inference.config import InferenceConfig
from shards.errors import DatasetError
from tests.fixtures.tiny_tasks import tiny_config, tiny_model


@pytest.mark.parametrize("main", [chat_cli.main, generate_cli.main, web_cli.main])
def test_a_limit_below_nothing_is_refused(main, capsys: pytest.CaptureFixture[str]):
    """``anygpt-generate --limit -1`` once left the last task out, and a chat ended in a traceback."""
    assert main([str(tiny_model().config), "--limit", "-1"]) == 2
    assert "--limit: expected a number from 0 on, found -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(DatasetError("cut"), 1, "anygpt-x: cut"), (OSError(28, "No space left"), 1, "No space left"), (None, 7, "")],
)
def test_errors_are_told_and_become_the_exit_status(error, code, told, capsys: pytest.CaptureFixture[str]):
    def run(config: InferenceConfig) -> int:
        assert config.model
        if error is not None:
            raise error
        return 7

    args = argparse.Namespace(config=Path(tiny_model().config), set=[], limit=None, dry_run=False)
    capsys.readouterr()
    assert run_command("anygpt-x", args, InferenceConfig, run) == code
    assert told in capsys.readouterr().err


def test_a_model_is_opened_in_silence(capfd: pytest.CaptureFixture[str]):
    tiny_model()
    capfd.readouterr()
    assert open_in_silence(tiny_config()).vocabulary.size
    assert capfd.readouterr() == ("", "")
