"""What a model wrote, read back: whole frames are saved, everything else is counted or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.written_codes import codes_of_ids
from shards.errors import SampleError
from shards.vocabulary import MediaBlock

MUSIC = MediaBlock("music", "m", "<somu>", "<eomu>", codebook_size=5, levels=4, first_id=100)
frames = st.lists(st.tuples(*[st.integers(0, 4)] * 4), max_size=8)


@given(frames)
def test_what_is_in_order_comes_back_under_either_policy(codes: list[tuple[int, ...]]):
    array = np.array(codes, np.uint16).reshape(-1, 4)
    ids = MUSIC.to_token_ids(array)
    for policy in ("reject", "repair"):
        found, dropped = codes_of_ids(ids, MUSIC, policy=policy)
        assert np.array_equal(found, array) and dropped == 0


@given(frames.filter(bool), st.data())
def test_a_stray_id_costs_at_most_the_frame_it_is_in(codes: list[tuple[int, ...]], data: st.DataObject):
    array = np.array(codes, np.uint16).reshape(-1, 4)
    ids = MUSIC.to_token_ids(array)
    at = data.draw(st.integers(0, len(ids)))
    # Text, a marker, or an id of a level that cannot stand here; the frame's own next level would be a different frame.
    wrong = (at + 2) % 4
    stray = data.draw(st.sampled_from([3, MUSIC.start_id, 100 + 5 * wrong]))
    found, dropped = codes_of_ids(np.insert(ids, at, stray), MUSIC, policy="repair")
    expected = array if at % 4 == 0 else np.delete(array, at // 4, axis=0)
    assert np.array_equal(found, expected)
    assert found.size + dropped == len(ids) + 1


@given(frames.filter(bool), st.integers(1, 3))
def test_a_frame_that_was_broken_off_is_dropped(codes: list[tuple[int, ...]], missing: int):
    array = np.array(codes, np.uint16).reshape(-1, 4)
    found, dropped = codes_of_ids(MUSIC.to_token_ids(array)[:-missing], MUSIC, policy="repair")
    assert np.array_equal(found, array[:-1]) and dropped == 4 - missing


@given(st.lists(st.integers(0, 130), max_size=30))
def test_repair_never_fails_and_counts_every_id(ids: list[int]):
    found, dropped = codes_of_ids(np.array(ids, np.int64), MUSIC, policy="repair")
    assert found.shape[1] == 4 and found.dtype == np.uint16
    assert found.size + dropped == len(ids) and (found < 5).all()


@pytest.mark.parametrize("ids", [[100], [100, 105, 110, 110], [100, 105, 110, 7], [105, 100, 110, 115]])
def test_reject_refuses_what_repair_would_mend(ids: list[int]):
    with pytest.raises(SampleError) as found:
        codes_of_ids(np.array(ids), MUSIC, policy="reject")
    assert found.value.reason == "levels_out_of_order"
