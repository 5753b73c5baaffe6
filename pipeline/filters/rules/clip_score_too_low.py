"""Picture and caption have little in common, as a model finds that the config plugs in.

The plug is a function, ``clip_plug = "module:function"``; :mod:`pipeline.filters.clip_scores` calls it with whole batches
and notes its scores as ``clip_score``, before this rule looks. :mod:`pipeline.filters.clip_plug` has one for a CLIP folder.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipeline.filters.view import PICTURES, RuleConfig, View, outside


class Keys(RuleConfig):
    """Of this rule."""

    min_clip_score: float | None = None
    """Scores of models differ: look at some before choosing."""
    clip_plug: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    """``module:function``; without ``min_clip_score`` scores are noted and nothing is left out."""
    clip_model: str = ""
    """What the plug is told to use; a folder of weights for ours."""
    clip_batch: int = Field(default=32, ge=1)
    """Pairs of one call."""

    @model_validator(mode="after")
    def _has_plug(self) -> Self:
        if self.min_clip_score is not None and self.clip_plug is None:
            raise ValueError('min_clip_score needs clip_plug, such as "pipeline.filters.clip_plug:score"')
        return self


def leaves_out(view: View, config: Keys) -> bool:
    """Whether its score is too low."""
    return outside(view.numbers.get("clip_score"), view, config, least=config.min_clip_score, of=PICTURES)
