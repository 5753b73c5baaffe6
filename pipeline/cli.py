"""Commands that make or look at things without a cluster: each one loads its config, plans, runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.load import load_config, parse_args
from pipeline.text_training import TextConfig, describe_vocabulary, make_text_tokenizer, text_plan
from pipeline.tokenizers.fit import FitConfig, plan_fit, run_fit
from shards.errors import AnyGPTError


def fit(argv: Sequence[str] | None = None) -> int:
    """``anygpt-fit CONFIG``: fit the compact codecs and measure them on held-out items; the same again does nothing."""
    args = parse_args("anygpt-fit", "Fit the compact codecs on any corpora, and measure them on held-out items.", argv)
    try:
        config = load_config(args.config, FitConfig, args.set).limited(args.limit)
        plan = plan_fit(config)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            for modality in plan.keys:
                print(f"{modality}: {'already fitted' if modality in plan.kept else 'to be fitted'}")
            return 0
        report = run_fit(plan, say=lambda line: print(line, flush=True))
    except AnyGPTError as error:
        print(f"anygpt-fit: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{config.output}: {'nothing to do' if plan.is_done else 'fitted in {} s'.format(report['seconds'])}")
    return 0


def text(argv: Sequence[str] | None = None) -> int:
    """``anygpt-text CONFIG``: train the small text tokenizer and number the vocabulary; the same again does nothing."""
    args = parse_args("anygpt-text", "Train the text tokenizer on sample shards and templates.", argv)
    try:
        config = load_config(args.config, TextConfig, args.set)
        if args.dry_run:
            print(config.model_dump_json(indent=1))
            print(text_plan(config))
            return 0
        vocabulary, worked = make_text_tokenizer(config)
    except AnyGPTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{config.output}: {'trained' if worked else 'nothing to do'}")
    print(describe_vocabulary(vocabulary))
    return 0
