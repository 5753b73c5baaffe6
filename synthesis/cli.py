"""``anygpt-synthesize CONFIG``: topics, scenarios, dialogues, then their media; or instruction sets, spoken.

The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from configs.load import load_config, parse_args, read_toml
from shards.errors import AnyGPTError, ConfigError
from shards.output_lock import only_writer
from synthesis.calls import CallCounts
from synthesis.config import SynthesisConfig
from synthesis.dialogues import DIALOGUES_FOLDER
from synthesis.jobs_plan import describe_plan
from synthesis.jobs_run import run_text
from synthesis.media_config import CorpusMediaConfig
from synthesis.media_job import make_media
from synthesis.spoken import SpeakConfig, speak_instructions


def main(argv: Sequence[str] | None = None) -> int:
    """Write dialogues, make their media, or say what there is to do.

    A config with the key ``files`` names instruction sets, which are spoken as they are (:mod:`synthesis.spoken`).
    ``--limit N`` takes the first N scenarios and their dialogues. ``--retry-rejects`` asks again what got no answer.
    """
    args = parse_args("anygpt-synthesize", "Synthesize dialogues with pictures, music and speech.", argv, add=_add)
    try:
        if "files" in read_toml(args.config):
            return _speak(load_config(args.config, SpeakConfig, args.set), args)
        config = limited(load_config(args.config, SynthesisConfig, args.set), args.limit)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            print(describe_plan(config))
            return 0
        _synthesize(config, args)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(config.output)
    return 0


def _synthesize(config: SynthesisConfig, args: argparse.Namespace) -> None:
    """The text stages, then the media, in one session of Ray where both need one."""
    config.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as session:
        with only_writer(config.output):
            reports = run_text(config, retry=args.retry_rejects, session=session)
            print(format_reports(reports))
        if config.media is not None:
            media = _again(config.media, args)
            report = make_media(media, config.output / DIALOGUES_FOLDER, config.output / "corpus")
            print(format_reports({"corpus": report}))


def _speak(config: SpeakConfig, args: argparse.Namespace) -> int:
    """Instruction sets into a corpus of spoken dialogues."""
    if args.limit is not None:
        raise ConfigError(
            "--limit: expected scenarios to take the first of, found instruction sets; give shorter files"
        )
    if args.dry_run:
        print(config.model_dump_json(indent=1))
        return 0
    report = speak_instructions(config.model_copy(update={"media": _again(config.media, args)}))
    print(format_reports({"corpus": report}))
    print(config.output)
    return 0


def _again(media: CorpusMediaConfig, args: argparse.Namespace) -> CorpusMediaConfig:
    return media.model_copy(update={"retry_rejects": media.retry_rejects or args.retry_rejects})


def limited(config: SynthesisConfig, limit: int | None) -> SynthesisConfig:
    """The config for the first so many scenarios."""
    if limit is None:
        return config
    scenarios = config.scenarios.model_copy(update={"count": min(limit, config.scenarios.count)})
    return config.model_copy(update={"scenarios": scenarios})


def format_reports(reports: Mapping[str, Any]) -> str:
    """Counts by stage, then reasons, as a table for a terminal."""
    lines = [f"{'stage':<12}{'inputs':>10}{'written':>10}{'filtered':>10}{'rejected':>10}"]
    reasons: list[str] = []
    for name, report in reports.items():
        if isinstance(report, CallCounts):
            reasons.append(
                f"calls: {report.answered:,} answered, {report.failed:,} failed, {report.from_store:,} known before"
            )
            continue
        sums = [sum(report[kind].values()) for kind in ("filtered", "rejected")]
        lines.append(f"{name:<12}{report['inputs']:>10,}{report['written']:>10,}{sums[0]:>10,}{sums[1]:>10,}")
        for kind in ("filtered", "rejected"):
            if report[kind]:
                counted = ", ".join(f"{reason} {count:,}" for reason, count in report[kind].items())
                reasons.append(f"{name}, {kind}: {counted}")
    return "\n".join([*lines, *reasons])


def _add(parser: Any) -> None:
    parser.add_argument("--retry-rejects", action="store_true", help="ask again what got no answer")


if __name__ == "__main__":
    raise SystemExit(main())
