"""Learning rate as a function of the step: linear warm-up, then half a cosine.

Stateless, so that a resumed run cannot be off by one. Steps count from 1; the first step already learns, the last one
has exactly the final value, and beyond it nothing rises again. (Of the usual schedulers, one starts with two steps at
zero, one rises again after the end, and one forgets its value on load.)
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, warmup: float = 0.03, final: float = 0.0) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: from 1 to ``steps``; later ones get ``final``.
        warmup: part of ``steps`` over which the rate rises linearly to ``peak``.
        final: at ``steps``.
    """
    if step < 1:
        raise ValueError(f"expected a step from 1 on, found {step}")
    warmup_steps = round(warmup * steps)
    if step <= warmup_steps:
        return peak * (step / warmup_steps)
    if step >= steps:
        return final
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
