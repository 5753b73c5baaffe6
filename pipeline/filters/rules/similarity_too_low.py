"""CLIP finds that picture and text have little in common, says the corpus.

LAION's ``similarity`` (ViT-B/32) of the pair; of a document of MMC4, the ``matched_sim`` of its worst picture. For a corpus
without either see :mod:`pipeline.filters.rules.clip_score_too_low`.
"""

from __future__ import annotations

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_similarity: float | None = None


def leaves_out(view: View, config: Keys) -> bool:
    """Whether the number is too low."""
    return outside(view.numbers.get("similarity"), view, config, least=config.min_similarity, of=PICTURES)
