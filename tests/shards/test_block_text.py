"""Codes and their token text: there and back for every index of every block, code point by code point."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.anygpt_jsonl import ANYGPT_MARKERS, ANYGPT_MEDIA
from shards.errors import SampleError
from shards.vocabulary import MediaBlock, lay_out

AUDIO = {
    "name": "audio",
    "prefix": "\U0001f442",
    "start": "<soau>",
    "end": "<eoau>",
    "codebook_size": 1024,
    "levels": 4,
}
RELEASED = lay_out("released", text_size=32000, markers=ANYGPT_MARKERS, media=[*ANYGPT_MEDIA, AUDIO])
BLOCKS = list(RELEASED.blocks.values())
CODE_POINTS = {"image": [0x1F440], "speech": [0x1F5E3, 0xFE0F], "music": [0x1F3B6], "audio": [0x1F442]}


def every_code(block: MediaBlock) -> np.ndarray:
    """(codebook_size, levels): each index of each level once."""
    return np.repeat(np.arange(block.codebook_size, dtype=np.uint16)[:, None], block.levels, axis=1)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_index_of_a_block_comes_back(block: MediaBlock):
    codes = every_code(block)
    text = block.to_text(codes)
    assert np.array_equal(block.from_text(text), codes)
    ids = block.to_token_ids(codes)
    assert sorted(ids.tolist()) == list(range(block.first_id, block.stop_id)), "every id once"
    assert np.array_equal(block.to_codes(ids), codes)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_token_is_its_prefix_and_a_plain_number(block: MediaBlock):
    text = block.to_text(every_code(block))
    tokens = text.removeprefix(block.start).removesuffix(block.end)[1:-1].split("><")
    prefix = "".join(map(chr, CODE_POINTS[block.name]))
    assert sorted(tokens) == sorted(f"{prefix}{index}" for index in range(block.num_codes))
    assert unicodedata.normalize("NFKC", text) == text, "the usual normal forms leave U+FE0F alone"


@given(data=st.data(), block=st.sampled_from(BLOCKS))
@settings(deadline=None)
def test_codes_ids_and_text_agree(data: st.DataObject, block: MediaBlock):
    frame = st.lists(st.integers(0, block.codebook_size - 1), min_size=block.levels, max_size=block.levels)
    codes = np.array(data.draw(st.lists(frame, min_size=1, max_size=9)), np.uint16)
    assert np.array_equal(block.to_codes(block.to_token_ids(codes)), codes)
    assert np.array_equal(block.from_text(block.to_text(codes)), codes)
    medium = RELEASED.media_token_ids(block.name, codes)
    assert (medium[0], medium[-1]) == (block.start_id, block.end_id)
    index = RELEASED.modality_index()[medium]
    assert {RELEASED.modality_names()[i] for i in index.tolist()} == {block.name}


@pytest.mark.parametrize(
    "text",
    [
        "<sosp><\U0001f5e3\ufe0f7><eosp>\n",
        " <sosp><\U0001f5e3\ufe0f7><eosp>",
        "<sosp><\U0001f5e37><eosp>",
        "<sosp><\U0001f5e3\ufe0f\ufe0f7><eosp>",
        "<sosp><\U0001f5e3\ufe0e7><eosp>",
        "<sosp><\U0001f5e3\ufe0f07><eosp>",
        "<sosp><\U0001f5e3\ufe0f-7><eosp>",
        "<sosp><\U0001f5e3\ufe0f+7><eosp>",
        "<sosp><\U0001f5e3\ufe0f٧><eosp>",
        "<sosp><\U0001f5e3\ufe0f7> <\U0001f5e3\ufe0f7><eosp>",
        "<sosp><\U0001f5e3\ufe0f1024><eosp>",
        "<sosp><\U0001f4407><eosp>",
        "<soim><\U0001f5e3\ufe0f7><eoim>",
        "<sosp><eosp>",
        "<sosp>",
        "",
    ],
)
def test_almost_the_token_text_of_speech_is_refused(text: str):
    with pytest.raises(SampleError) as raised:
        RELEASED.block("speech").from_text(text)
    assert raised.value.reason == "token_text_malformed"
