"""Commands that make or look at things without a cluster: each one loads its config, plans, runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.load import load_config, parse_args
from pipeline.text_training import TextConfig, describe_vocabulary, make_text_tokenizer, text_plan
from shards.errors import AnyGPTError


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
