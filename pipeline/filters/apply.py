"""Filters: declared rules that leave sound inputs out, each counted under its own name.

A rule is one file in :mod:`pipeline.filters.rules`. Every rule is off until its key is set; a rule whose number a sample
does not have (no CLIP score, or NaN) keeps the sample, unless ``keep_unknown`` is false. Rules only say yes or no, so which
samples are kept does not depend on their order.

Rules run twice: on what a corpus says (:func:`filter_raw`, before any medium is decoded) and on what was measured
(:func:`filter_decoded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pipeline.filters.clip_scores import score_samples
from pipeline.filters.config import (
    DECODED_RULES,
    RAW_RULES,
    SCORED_RULES,
    FilterConfig,
    Rules,
    rule_name,
    rules_in_force,
)
from pipeline.filters.measurements import measure_sounds
from pipeline.filters.view import View, view_decoded, view_raw
from pipeline.samples import Filtered, RawSample
from pipeline.tokenization import Decoded, DecodedSample


def filter_raw(sample: RawSample, config: FilterConfig, *, rules: Rules = RAW_RULES) -> RawSample | Filtered:
    """Apply the rules that need no decoded medium.

    Raises:
        ConfigError: a list that a rule reads cannot be read.
    """
    asked = rules_in_force(config, rules)
    if not asked:
        return sample
    reason = _first_reason(view_raw(sample), config, asked)
    return sample if reason is None else _filtered(sample, reason)


def filter_decoded(
    items: Iterable[Decoded], config: FilterConfig, *, rules: Rules = DECODED_RULES
) -> Iterator[Decoded]:
    """Measure sounds, and apply the rules that need decoded media; what is no sample passes through.

    Samples leave with what was measured in ``quality`` (:mod:`pipeline.filters.measurements`).

    Raises:
        ConfigError: a list cannot be read, or the plug for CLIP scores is not what it should be.
    """
    judged = (_judge(item, config, rules) if isinstance(item, DecodedSample) else item for item in items)
    if config.clip_plug is None:
        return judged
    scored = score_samples(judged, config)
    return (_judge_scores(item, config) if isinstance(item, DecodedSample) else item for item in scored)


def measure(sample: DecodedSample) -> dict[str, float]:
    """What :func:`filter_decoded` finds out about a sample's sounds."""
    return measure_sounds(view_decoded(sample))


def _judge(sample: DecodedSample, config: FilterConfig, rules: Rules) -> Decoded:
    view = view_decoded(sample)
    view.numbers.update(measure_sounds(view))
    reason = _first_reason(view, config, rules_in_force(config, rules))
    return _filtered(sample, reason) if reason is not None else replace(sample, quality=_kept(view.numbers))


def _judge_scores(sample: DecodedSample, config: FilterConfig) -> Decoded:
    reason = _first_reason(view_decoded(sample), config, rules_in_force(config, SCORED_RULES))
    return sample if reason is None else _filtered(sample, reason)


def _first_reason(view: View, config: FilterConfig, rules: Rules) -> str | None:
    return next((rule_name(rule) for rule in rules if rule.leaves_out(view, config)), None)


def _kept(numbers: Mapping[str, float]) -> dict[str, float]:
    """All but the length, which the shard has from the codes."""
    return {name: number for name, number in numbers.items() if name != "speech_s"}


def _filtered(sample: RawSample | DecodedSample, reason: str) -> Filtered:
    message = f"left out by the filter {reason}"
    return Filtered(sample.sample_id, sample.corpus, reason, message, sample.provenance)
