"""Prefix filtering finds what comparing each with each would find."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synthesis.similarity import jaccard, near_copies, shingles

TEXTS = st.lists(st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=8).map(" ".join), max_size=25)


@given(TEXTS, st.sampled_from([0.5, 0.6, 0.75, 0.8, 0.85, 1.0]), st.integers(1, 3))
def test_near_copies_are_those_of_comparing_all(texts: list[str], threshold: float, words: int):
    """A text is left out exactly when one that was kept before it is as alike as the threshold."""
    sets = [shingles(text, words=words) for text in texts]
    kept: list[int] = []
    for number, found in enumerate(near_copies(texts, threshold=threshold, words=words)):
        alike = [jaccard(sets[number], sets[other]) for other in kept]
        assert (found is not None) == any(one >= threshold for one in alike)
        if found is None:
            kept.append(number)
        else:
            assert found[0] in kept and found[1] == max(alike)


def test_case_and_punctuation_do_not_make_a_text_another():
    """What is compared are words."""
    assert list(near_copies(["A red star!", "a RED, star"], threshold=0.9, words=2)) == [None, (0, 1.0)]
