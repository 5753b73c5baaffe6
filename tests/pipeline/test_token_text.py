"""Token text read back leniently: spaces and broken-off ends are forgiven, wrong tokens are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import TextTokenizer
from pipeline.token_text import find_first_between, find_last_between, read_codes, spell_token_ids
from shards.anygpt_jsonl import BLOCKS
from shards.errors import SampleError
from shards.vocabulary import Vocabulary

NOTE, FACE = "\U0001f3b6", "\U0001f5e3\ufe0f"


@given(data=st.data(), name=st.sampled_from(sorted(BLOCKS)), spaced=st.booleans())
def test_codes_come_back_whatever_the_spaces(data: st.DataObject, name: str, spaced: bool):
    block = BLOCKS[name]
    frame = st.lists(st.integers(0, block.codebook_size - 1), min_size=block.levels, max_size=block.levels)
    codes = np.array(data.draw(st.lists(frame, min_size=1, max_size=6)), np.uint16)
    text = block.to_text(codes)
    text = text.replace(">", "> ") if spaced else text
    assert np.array_equal(read_codes(block, f"before 12 {text} after 34"), codes)


def test_a_broken_last_frame_is_dropped():
    text = "<somu>" + "".join(f"<{NOTE}{index}>" for index in (1, 2050, 4099, 6148, 5, 2054)) + "<eomu>"
    assert read_codes(BLOCKS["music"], text).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("speech", "<sosp>7 8 9<eosp>", "token_text_malformed"),
        ("speech", "<sosp><\U0001f5e31><eosp>", "token_text_malformed"),
        ("speech", f"<sosp><{FACE}1024><eosp>", "token_text_malformed"),
        ("speech", "<sosp><eosp>", "token_text_malformed"),
        ("speech", "no medium at all", "token_text_malformed"),
        ("music", f"<somu><{NOTE}1><{NOTE}2050><eomu>", "token_text_malformed"),
        ("music", "<somu>" + f"<{NOTE}1>" * 4 + "<eomu>", "levels_out_of_order"),
    ],
)
def test_what_is_no_medium_has_a_reason(name: str, text: str, reason: str):
    """Upstream collects any digits and takes the level from the place (anygpt-compat U-23)."""
    with pytest.raises(SampleError) as raised:
        read_codes(BLOCKS[name], text)
    assert raised.value.reason == reason


def test_an_id_of_no_block_is_refused(vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
    with pytest.raises(SampleError, match=f"below {vocabulary.size}, found {vocabulary.size}"):
        spell_token_ids(np.array([1, vocabulary.size]), vocabulary, text_tokenizer)


def test_tags_are_found_from_the_end_or_loosely_from_the_front():
    text = "<a>one<b> mid <a>two<b> end"
    assert find_last_between(text, "<a>", "<b>") == "two"
    assert find_first_between(text, "<a>", "<b>") == "one"
    assert find_last_between("<b><a>", "<a>", "<b>") is None
    assert find_last_between("nothing", "<a>", "<b>") is None
    assert find_first_between("nothing", "<a>", "<b>") == "nothing"
    assert find_first_between("x <a>tail", "<a>", "<b>") == "tail"
