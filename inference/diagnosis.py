"""What a doctor says, and how things are tried: nothing that a broken file does may end the conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from inference.doctor_files import FileFinding, Progress, Status, examine_weight_file
from pipeline.tokenizers.codecs import WeightFile
from shards.errors import AnyGPTError

Result = TypeVar("Result")
_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        what: a word for it, e.g. ``loads``.
        note: what was found.
    """

    status: Status
    what: str
    note: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found about one codec, vocoder or model.

    Attributes:
        title: e.g. ``speech: speechtokenizer``.
        source: the config or file that named it.
        setting: device and precision; empty if nothing was to be computed.
        fingerprint: of the loaded codec, as in the manifests of its shards; empty if it did not load.
        ignored_keys: tensors of the files that nothing uses.
    """

    title: str
    source: Path
    setting: str
    files: tuple[FileFinding, ...]
    checks: tuple[Check, ...]
    fingerprint: str = ""
    ignored_keys: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        """Nothing required is missing and nothing is wrong."""
        return not any(file.stops for file in self.files) and all(
            check.status in ("ok", "skipped") for check in self.checks
        )


@dataclass(frozen=True, slots=True)
class Examination:
    """How thorough to be.

    Attributes:
        run: also send a sample through.
        sha256: also take digests.
        progress: told how far a digest is.
    """

    run: bool = True
    sha256: bool = True
    progress: Progress | None = None

    def files(self, files: Sequence[WeightFile]) -> tuple[FileFinding, ...]:
        """Look at each file."""
        return tuple(examine_weight_file(file, sha256=self.sha256, progress=self.progress) for file in files)


def attempt(what: str, action: Callable[[], Result]) -> tuple[Result | None, Check]:
    """What an action gives, or the reason it does not, as a check."""
    try:
        return action(), Check("ok", what, "")
    except AnyGPTError as error:
        return None, Check("wrong", what, str(error))
    except Exception as error:  # noqa: BLE001 - what a broken file makes a library raise is what people came to hear
        first = (str(error).strip().splitlines() or ["no message"])[0][:_SHOWN]
        return None, Check("wrong", what, f"{type(error).__name__}: {first}")
