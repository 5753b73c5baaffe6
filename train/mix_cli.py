"""``anygpt-mix CONFIG --plan``: what a mixture comes to in a run, before the run.

CONFIG is a training config, whose packed datasets are looked at by their manifests; or a file with shares, steps and sizes
(``configs/mixtures/paper-epochs.toml``), for which nothing need exist. The arithmetic is :mod:`shards.mix_plan`; the command
lives here because training configs do, and nothing in ``shards`` may know a config.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.load import Config, load_config, parse_args, read_toml
from shards.errors import AnyGPTError, ConfigError
from shards.mix_plan import Holding, MixPlan, format_plan, plan_mix
from train.config import TrainConfig
from train.mix_config import MixConfig, PhasedMixtureConfig, make_schedule, open_datasets

_USUAL_RANKS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan of a mixture; exit 0 done, 1 failed, 2 wrong usage or config."""
    description = (
        "What a mixture comes to: shares, tokens, epochs, first repeats, what ranks see. Reads manifests only."
    )
    args = parse_args("anygpt-mix", description, argv, add=_add_options)
    try:
        run = _read_run(args.config, args.set)
        plan = _plan(run, limit=args.limit, ranks=args.ranks)
    except AnyGPTError as error:
        print(f"anygpt-mix: {error}", file=sys.stderr)
        return error.exit_code
    if args.dry_run:
        print(run.config.model_dump_json(indent=1, by_alias=True))
    if args.json:
        print(json.dumps(asdict(plan) | {"tokens": plan.tokens, "slots": plan.slots}, indent=1))
    else:
        print(format_plan(plan, args.config.stem))
    return 0


@dataclass(frozen=True, slots=True)
class _Run:
    """What both kinds of config say."""

    config: Config
    mixture: PhasedMixtureConfig
    holdings: dict[str, Holding]
    steps: int
    batch_rows: int
    sequence_length: int
    seed: int
    where: str


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="print the plan; the one thing this command does")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="N", help="look at what each of N ranks reads")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def _read_run(path: Path, overrides: Sequence[str]) -> _Run:
    if "mixture" in read_toml(path):
        return _of_training(load_config(path, TrainConfig, overrides), str(path))
    config = load_config(path, MixConfig, overrides)
    packed = open_datasets(config, [n for n in config.names if n not in config.datasets], config.data, where=str(path))
    lengths = {config.sequence_length, *(dataset.sequence_length for dataset in packed.values())} - {None}
    if len(lengths) != 1:
        raise ConfigError(
            f"{path}: key 'sequence_length': expected one length of rows, found {sorted(filter(None, lengths))}"
        )
    length = next(filter(None, lengths))
    holdings = {name: Holding(dataset.num_rows, dataset.manifest.tokens) for name, dataset in packed.items()}
    holdings |= {name: size.holding(length) for name, size in config.datasets.items()}
    return _Run(config, config, holdings, config.steps, config.batch_rows, length, config.seed, str(path))


def _of_training(config: TrainConfig, where: str) -> _Run:
    mixture = load_config(config.mixture, PhasedMixtureConfig)
    packed = open_datasets(mixture, mixture.names, config.data, where=str(config.mixture))
    length = next(iter(packed.values())).sequence_length if packed else 0
    holdings = {name: Holding(dataset.num_rows, dataset.manifest.tokens) for name, dataset in packed.items()}
    return _Run(config, mixture, holdings, config.steps, config.batch_rows, length, config.seed, where)


def _plan(run: _Run, *, limit: int | None, ranks: Sequence[int] | None) -> MixPlan:
    steps = run.steps if limit is None else min(limit, run.steps)
    sizes = {name: holding.num_rows for name, holding in run.holdings.items()}
    try:
        # Caps are kept within the whole run, whatever part of it is shown.
        schedule = make_schedule(run.mixture, sizes, batch_rows=run.batch_rows, steps=run.steps, seed=run.seed)
        usual = max(count for count in range(1, _USUAL_RANKS + 1) if run.batch_rows % count == 0)
        return plan_mix(
            schedule,
            run.holdings,
            steps=steps,
            sequence_length=run.sequence_length,
            world_sizes=ranks or [usual],
        )
    except ConfigError as error:
        raise ConfigError(f"{run.where}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
