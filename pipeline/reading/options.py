"""What the options of every corpus reader have in common."""

from __future__ import annotations

from configs.load import Config


class CorpusOptions(Config):
    """Base of a reader's ``Options``; every key has a default."""

    split: str = "train"
    """Set from the config's own ``split``."""
