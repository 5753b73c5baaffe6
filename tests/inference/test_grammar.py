"""The grammar as a machine: every walk through it ends, in time, in something that can be decoded."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.grammar import (
    TEXT_STOPS,
    AnswerGrammar,
    FreeGrammar,
    LengthBudget,
    Stop,
    TurnGrammar,
    accepts,
    walk,
)
from shards.errors import ConfigError
from shards.vocabulary import Modality, lay_out

MEDIA = [
    {"name": "image", "prefix": "i", "start": "<soim>", "end": "<eoim>", "codebook_size": 64, "levels": 1},
    {"name": "speech", "prefix": "s", "start": "<sosp>", "end": "<eosp>", "codebook_size": 16, "levels": 1},
    {"name": "music", "prefix": "m", "start": "<somu>", "end": "<eomu>", "codebook_size": 8, "levels": 4},
]
VOCABULARY = lay_out("test", text_size=40, markers=["[Human]", "[MMGPT]", "<eoh>", "<eos>"], media=MEDIA)
EOS = VOCABULARY.marker("<eos>")
SOUNDS = [Modality.SPEECH, Modality.MUSIC]
BUDGETS = {
    Modality.IMAGE: LengthBudget(32, 32),
    Modality.SPEECH: LengthBudget(2, 5),
    Modality.MUSIC: LengthBudget(1, 3),
}


def walk_at_random(grammar, seed: int) -> list[int]:
    """An answer that takes any allowed id with equal chance, its end included."""
    rng, state, ids = np.random.default_rng(seed), grammar.start(), []
    while not state.ended:
        ids.append(int(rng.choice(grammar.rules[grammar.rule(state)].ids)))
        state = grammar.step(state, ids[-1])
    return ids


def take_apart(ids: list[int]) -> tuple[list[int], list[tuple[str, np.ndarray]]]:
    """Words, and codes of each medium, as a reader would who knows no grammar."""
    words, media = [], []
    while ids:
        name = next((name for name, block in VOCABULARY.blocks.items() if block.start_id == ids[0]), None)
        if name is None:
            words.append(ids[0])
            ids = ids[1:]
            continue
        stop = ids.index(VOCABULARY.block(name).end_id)
        media.append((name, VOCABULARY.block(name).to_codes(np.array(ids[1:stop]))))
        ids = ids[stop + 1 :]
    return words, media


@given(st.sampled_from(SOUNDS), st.integers(0, 6), st.integers(0, 6), st.integers(0, 10**6))
def test_a_sound_is_whole_frames_in_level_order_within_its_budget(modality, least, more, seed):
    grammar = AnswerGrammar(VOCABULARY, modality, LengthBudget(least, least + more))
    *ids, end = walk_at_random(grammar, seed)
    assert end == VOCABULARY.block(modality).end_id
    assert least <= len(VOCABULARY.block(modality).to_codes(np.array(ids, np.int64))) <= least + more
    assert len(ids) + 1 <= grammar.max_ids


@given(st.integers(0, 10**6), st.integers(1, 90))
def test_a_picture_has_32_codes_whatever_budget_it_is_given(seed, most):
    grammar = AnswerGrammar(VOCABULARY, Modality.IMAGE, LengthBudget(1, most))
    ids = walk_at_random(grammar, seed)
    assert VOCABULARY.block("image").to_codes(np.array(ids[:-1])).shape == (32, 1)
    assert len(ids) == grammar.max_ids


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 10**6))
def test_a_text_does_not_end_before_it_may_and_ends_when_it_must(least, more, seed):
    """``min_new_tokens`` works; in the released code it had no effect."""
    ids = walk_at_random(AnswerGrammar(VOCABULARY, Modality.TEXT, LengthBudget(least, least + more)), seed)
    assert least <= len(ids) - 1 <= least + more
    assert ids[-1] in (EOS, VOCABULARY.eos_id) and all(2 < one < VOCABULARY.text_size for one in ids[:-1])


turns = st.builds(
    lambda room, least, required, at_medium: TurnGrammar(
        VOCABULARY,
        BUDGETS,
        max_ids=room,
        min_ids=min(least, room),
        required=required,
        stop_on=TEXT_STOPS | ({Stop.MEDIUM} if at_medium else set()),
    ),
    st.integers(1, 60),
    st.integers(1, 20),
    st.sampled_from([None, *BUDGETS]),
    st.booleans(),
)


@given(turns, st.integers(0, 10**6))
def test_a_turn_holds_whole_media_and_the_one_it_must(grammar, seed):
    ids = walk_at_random(grammar, seed)
    words, media = take_apart([one for one in ids if one not in grammar.end_ids])
    assert len(ids) <= grammar.max_ids and accepts(grammar, ids)
    assert all(2 < word < VOCABULARY.text_size for word in words)
    for name, codes in media:
        assert BUDGETS[Modality(name)].least <= len(codes) <= BUDGETS[Modality(name)].most


@given(turns, st.integers(0, 10**6))
def test_a_turn_must_end_only_where_its_words_or_its_room_are_used_up(grammar, seed):
    """Media are not counted as words: a long sound does not end what is said."""
    ids = walk_at_random(grammar, seed)
    words, media = take_apart([one for one in ids if one not in grammar.end_ids])
    allowed = set(grammar.rules[grammar.rule(walk(grammar, ids[:-1]))].ids.tolist())
    if ids[-1] in grammar.end_ids and allowed <= grammar.end_ids:
        assert len(words) == grammar.max_text_ids or len(ids) == grammar.max_ids
        assert media or len(words) == grammar.max_text_ids


def test_after_a_sound_longer_than_all_words_may_be_there_are_words_and_more_media():
    grammar = TurnGrammar(VOCABULARY, BUDGETS, max_ids=8)
    image, speech = (VOCABULARY.block(name) for name in ("image", "speech"))
    spoken = [5, speech.start_id, *[speech.first_id] * 4, speech.end_id]
    for media in range(1, 6):
        allowed = set(np.flatnonzero(grammar.allowed(spoken * media)).tolist())
        assert {7, EOS} <= allowed
        # One picture is what there is room for, whatever else the room is used for.
        assert (image.start_id in allowed) == (7 * media + 34 + 1 <= grammar.max_ids)
    assert not accepts(grammar, [*spoken * 3, image.start_id])


def test_a_turn_without_media_is_text_and_no_rule_of_it_is_empty():
    grammar = TurnGrammar(VOCABULARY, {}, max_ids=3)
    assert all(len(rule.ids) for rule in grammar.rules)
    assert accepts(grammar, [5, 6, 7, EOS]) and not accepts(grammar, [EOS]) and grammar.max_ids == 4


@given(st.sampled_from(list(BUDGETS)), st.integers(1, 60), st.integers(0, 10**6))
def test_a_turn_that_must_hold_a_medium_holds_it(required, room, seed):
    """Even one that has used up its words before it came to it."""
    ids = walk_at_random(TurnGrammar(VOCABULARY, BUDGETS, max_ids=room, required=required), seed)
    assert required in [name for name, _ in take_apart(ids[:-1])[1]]


@given(st.integers(1, 60), st.integers(0, 10**6))
def test_a_turn_can_end_with_its_first_medium(room, seed):
    grammar = TurnGrammar(VOCABULARY, BUDGETS, max_ids=room, stop_on=frozenset({Stop.MEDIUM, Stop.ASSISTANT_END}))
    ids = walk_at_random(grammar, seed)
    if ids[-1] != EOS:
        assert len(take_apart(ids)[1]) == 1 and ids[-1] in {block.end_id for block in VOCABULARY.blocks.values()}


@given(turns, st.integers(0, 10**6))
def test_what_is_allowed_after_an_answer_is_what_its_state_allows(grammar, seed):
    """The mask of an answer read from its beginning, and the rule of the state carried along, are the same."""
    ids, state = walk_at_random(grammar, seed), grammar.start()
    for place, token_id in enumerate(ids):
        allowed = np.flatnonzero(grammar.allowed(ids[:place]))
        assert allowed.tolist() == grammar.rules[grammar.rule(state)].ids.tolist()
        state = grammar.step(state, token_id)
    assert state == walk(grammar, ids)


@given(turns, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_id_that_no_rule_allows_is_not_accepted(grammar, seed, place, other):
    ids = walk_at_random(grammar, seed)
    place %= len(ids)
    allowed = grammar.rules[grammar.rule(walk(grammar, ids[:place]))].ids
    wrong = np.setdiff1d(np.arange(VOCABULARY.size), allowed)
    assert not accepts(grammar, [*ids[:place], int(wrong[other % len(wrong)]), *ids[place + 1 :]])
    assert not accepts(grammar, ids[:-1]) and not accepts(grammar, [*ids, 5])


def test_the_table_of_rules_does_not_grow_with_the_budgets():
    """Nor does a state: what one id costs does not depend on how long an answer is."""
    short, long = (TurnGrammar(VOCABULARY, BUDGETS, max_ids=room) for room in (5, 50_000))
    assert len(short.rules) == len(long.rules) == 3 + 3 + 6 + 2 * 4 + 1
    state = walk(long, itertools.repeat(7, 40_000))
    assert state == (40_000, -1, 0, True, False, 40_000)


@pytest.mark.parametrize(("stop", "end"), [(Stop.ASSISTANT_END, EOS), (Stop.SEQUENCE_END, VOCABULARY.eos_id)])
def test_a_text_stops_on_what_is_asked(stop, end):
    for grammar in (
        AnswerGrammar(VOCABULARY, Modality.TEXT, LengthBudget(1, 9), stop_on=frozenset({stop})),
        TurnGrammar(VOCABULARY, BUDGETS, max_ids=9, stop_on=frozenset({stop})),
    ):
        assert grammar.end_ids == {end}
        assert {walk_at_random(grammar, seed)[-1] for seed in range(20)} == {end}


def test_what_makes_no_grammar_is_told():
    with pytest.raises(ConfigError, match="a text needs one"):
        AnswerGrammar(VOCABULARY, Modality.TEXT, LengthBudget(1, 2), stop_on=frozenset({Stop.MEDIUM}))
    with pytest.raises(ConfigError, match="expected the required image"):
        TurnGrammar(VOCABULARY, {}, max_ids=9, required=Modality.IMAGE)
    with pytest.raises(ConfigError, match="least <= most"):
        LengthBudget(3, 2)
    with pytest.raises(ConfigError, match="min_ids <= max_ids"):
        TurnGrammar(VOCABULARY, {}, max_ids=3, min_ids=4)


def test_free_means_free():
    grammar = FreeGrammar(VOCABULARY, Modality.MUSIC, max_ids=5, end_ids=[EOS])
    assert accepts(grammar, [VOCABULARY.block("music").end_id, 0, 1, 2, 3])
    assert accepts(grammar, [9, EOS]) and not accepts(grammar, [9, EOS, 9])
