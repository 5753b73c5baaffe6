"""Table 1: the numbers of the paper, and what every line of it has in common."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from shards.modality import MEDIA, SOUNDS, Modality
from shards.rates import CODEBOOK_SIZES, FRAMES_PER_SECOND, IMAGE_CODES, media_fault, rate_fault
from shards.vocabulary import MediaBlock
from shards.vocabulary import Modality as FromVocabulary


def test_table_1_is_the_papers():
    """Image 32 codes of 8,192; speech 50 Hz of 1,024; music 50 Hz, 4 x 2,048; and EnCodec 24 kHz at 3 kbit/s: 75 Hz."""
    assert (IMAGE_CODES, CODEBOOK_SIZES[Modality.IMAGE]) == (32, 8192)
    assert FRAMES_PER_SECOND == {"speech": 50.0, "music": 50.0, "audio": 75.0}
    assert CODEBOOK_SIZES == {"image": 8192, "speech": 1024, "music": 2048, "audio": 1024}
    levels = {str(medium): (medium.rate.levels_at_rest, medium.rate.levels_read) for medium in MEDIA}
    assert levels == {"image": (1, 1), "speech": (8, 1), "music": (4, 4), "audio": (4, 4)}
    assert SOUNDS == ("speech", "music", "audio")


@pytest.mark.parametrize("modality", Modality)
def test_a_modality_is_its_string_wherever_it_goes(modality: Modality):
    class Holder(BaseModel):
        paths: dict[Modality, str]

    assert FromVocabulary is Modality
    assert Modality(str(modality)) is modality and modality == modality.value == f"{modality}"
    assert (
        hash(modality) == hash(str(modality)) and json.dumps({modality: modality}) == f'{{"{modality}": "{modality}"}}'
    )
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(modality, protocol)) is modality
    assert copy.deepcopy(modality) is modality
    held = Holder.model_validate({"paths": {str(modality): "x"}})
    assert next(iter(held.paths)) is modality and Holder.model_validate_json(held.model_dump_json()) == held


def test_text_has_no_rate():
    assert not Modality.TEXT.is_sound
    with pytest.raises(ValueError, match="text, which has no rate"):
        _ = Modality.TEXT.rate


@given(st.sampled_from(SOUNDS), st.integers(1, 10**7))
def test_every_started_frame_counts_and_no_other_number_of_codes_passes(modality: Modality, num_samples: int):
    rate = modality.rate
    frames = rate.frames_for(num_samples)
    assert (frames - 1) * rate.samples_per_frame < num_samples <= frames * rate.samples_per_frame
    if frames > 10**4:
        return
    levels, duration_s = rate.levels_at_rest, num_samples / rate.sample_rate_hz
    assert not rate_fault(modality, np.zeros(frames * levels, np.uint16), levels, duration_s)
    wrong = rate_fault(modality, np.zeros((frames + 2) * levels, np.uint16), levels, duration_s)
    assert f"not {rate.frame_rate_hz:g} per second" in wrong
    assert "without a duration" in rate_fault(modality, np.zeros(frames * levels, np.uint16), levels, None)


@given(st.sampled_from(MEDIA), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_medium_between_its_markers_is_no_fault_and_two_swapped_levels_are(
    modality: Modality, num_frames: int, seed: int
):
    rate = modality.rate
    num_frames = rate.num_frames or num_frames
    block = MediaBlock(str(modality), "x", "<s>", "<e>", rate.codebook_size, rate.levels_read, first_id=500)
    codes = np.random.default_rng(seed).integers(
        rate.codebook_size, size=(num_frames, rate.levels_read), dtype=np.uint16
    )
    ids = np.concatenate([[1, block.start_id], block.to_token_ids(codes), [block.end_id, 2]])
    assert media_fault(ids, block) == ""
    assert media_fault(np.delete(ids, 2), block) != "" or (rate.levels_read == 1 and not rate.num_frames)
    if rate.levels_read > 1:
        ids[[2, 3]] = ids[[3, 2]]
        assert "levels out of order" in media_fault(ids, block)


@pytest.mark.parametrize("modality", MEDIA)
def test_a_code_beyond_the_codebook_is_a_fault(modality: Modality):
    rate = modality.rate
    num_frames = rate.num_frames or 5
    codes = np.full(num_frames * rate.levels_at_rest, rate.codebook_size, np.uint16)
    duration_s = num_frames / rate.frame_rate_hz if rate.is_sound else None
    assert f"codebook of {rate.codebook_size}" in rate_fault(modality, codes, rate.levels_at_rest, duration_s)
    assert rate_fault(modality, codes - 1, rate.levels_at_rest, duration_s) == ""
