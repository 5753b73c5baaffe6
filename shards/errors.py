"""One error tree: a message says what was expected, what was found, where, and what to do.

Commands turn these into exit codes: ``ConfigError`` is 2 (wrong usage or config), everything else is 1.
"""

from __future__ import annotations


class AnyGPTError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code = 1


class ConfigError(AnyGPTError):
    """A config file, a ``--set`` override or a command line is wrong; names file, key and fix."""

    exit_code = 2


class SampleError(AnyGPTError):
    """One sample cannot be used; the job goes on and the sample is written to the rejects.

    Attributes:
        reason: a short snake_case name that reports count by, e.g. ``image_truncated``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class CorpusError(AnyGPTError):
    """A corpus folder cannot be read at all: a missing root, or metadata no sample can be found without."""


class RejectBudgetExceeded(AnyGPTError):
    """More samples were rejected than the config allows; the unit is not committed."""


class DatasetError(AnyGPTError):
    """A dataset on disk is missing something or is not what its manifest says."""


class ChecksumMismatch(DatasetError):
    """The bytes of a shard are not the bytes that were written."""


class FingerprintMismatch(DatasetError):
    """Two things that must come from the same vocabulary, tokenizer or config do not."""


class TokenizerError(AnyGPTError):
    """A tokenizer file is missing, misshaped or of another version."""


class CheckpointError(AnyGPTError):
    """A checkpoint is torn, or belongs to another run."""
