"""Which texts are near copies of earlier ones, by exact Jaccard similarity of their runs of words.

Texts are compared in their order with what was kept before them, so the first of several copies stays, and the outcome
depends on the order alone. Words are compared without case and punctuation.

Candidates come from prefix filtering (Chaudhuri et al. 2006): with all pieces in one fixed order, rare ones first, two
sets whose similarity reaches t share a piece among the first ``n - ceil(t n) + 1`` of each. So nothing is missed, where
MinHash would miss some, and short texts out of the same building blocks, most of whose MinHash bands agree, cost little.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
# Of a product of floats that should be a whole number.
_ROUNDING = 1e-9


def normal_words(text: str) -> list[str]:
    """Words without case and punctuation."""
    return _WORD.findall(text.lower().replace("’", "'"))


def shingles(text: str, *, words: int) -> frozenset[str]:
    """Runs of so many words; a shorter text is one."""
    found = normal_words(text)
    return frozenset(" ".join(found[start : start + words]) for start in range(max(1, len(found) - words + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared pieces to all pieces; 1 for two empty sets."""
    shared = len(one & other)
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


def near_copies(texts: Sequence[str], *, threshold: float, words: int) -> Iterator[tuple[int, float] | None]:
    """For each text, None if it is kept, or the kept one before it that it is most like, and how much.

    Args:
        threshold: similarity from which on a text is a near copy.
        words: of a run.
    """
    sets = [shingles(text, words=words) for text in texts]
    common = Counter(piece for one in sets for piece in one)
    with_piece: defaultdict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(sets):
        rare_first = sorted(one, key=lambda piece: (common[piece], piece))
        prefix = rare_first[: len(one) - math.ceil(threshold * len(one) - _ROUNDING) + 1]
        candidates = {other for piece in prefix for other in with_piece[piece]}
        alike = max(
            ((jaccard(one, sets[other]), -other) for other in candidates if _may_reach(one, sets[other], threshold)),
            default=(0.0, 0),
        )
        if alike[0] >= threshold:
            yield -alike[1], alike[0]
            continue
        for piece in prefix:
            with_piece[piece].append(number)
        yield None


def most_alike(text: str, others: Iterable[str], *, words: int) -> float:
    """The highest similarity to any of a few texts; 0 without any."""
    found = shingles(text, words=words)
    return max((jaccard(found, shingles(other, words=words)) for other in others), default=0.0)


def _may_reach(one: frozenset[str], other: frozenset[str], threshold: float) -> bool:
    """Whether two sets are near enough in size."""
    small, large = sorted((len(one), len(other)))
    return small >= threshold * large - _ROUNDING
