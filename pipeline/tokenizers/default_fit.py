"""Codecs that a corpus config can have made: the embedded default works from a fresh clone in any order of commands.

``fit = "configs/tokenizers/compact.toml"`` in a corpus config says how its codec files come to be when they are not
there; the fit in turn may name the sample corpora to render first. Published weights have no such key: they are found
or they are an error.
"""

from __future__ import annotations

from collections.abc import Callable

from configs.load import load_config
from pipeline.corpus import CorpusConfig


def ensure_codecs(config: CorpusConfig, *, say: Callable[[str], None]) -> bool:
    """Fit the codecs of a corpus config if its files are missing and it says how.

    Args:
        say: gets one line per step.

    Returns:
        Whether anything was fitted.

    Raises:
        ConfigError: a config it names is missing or wrong.
    """
    missing = {path for path in config.tokenizers.values() if not path.is_file()}
    if not missing or config.fit is None:
        return False
    # Seconds of imports, which a corpus that has its codecs should not have to wait for.
    from pipeline.tokenizers.fit import FitConfig, plan_fit, run_fit

    fit = load_config(config.fit, FitConfig)
    if fit.output not in missing:
        return False
    say(f"{fit.output} is not there yet; fitting it as {config.fit} says")
    if fit.sample_corpora is not None:
        from pipeline.sample_corpora.build import build, plan_build
        from pipeline.sample_corpora.config import SampleCorporaConfig

        plan = plan_build(load_config(fit.sample_corpora, SampleCorporaConfig), limit=None)
        build(plan, show_progress=False)
    run_fit(plan_fit(fit), say=say)
    return True
