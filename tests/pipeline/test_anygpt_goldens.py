"""AnyGPT's own strings, as its public code returned them, against ours: code point by code point.

The fixtures are read where they lie: $PARITY_DIR, or ../shared/reference/parity beside the repository. Without them these
tests are skipped; test_rendering.py, test_dialogues.py and test_token_text.py cover the same forms with strings of our own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dialogues import Turn, chat_prompt_pieces, chat_request, conversation_pieces
from pipeline.pieces import write_text
from pipeline.rendering import custom_prompt_pieces, pair_pieces, prompt_pieces
from pipeline.templates import Templates, load_templates
from pipeline.token_text import find_first_between, find_last_between, read_codes
from pipeline.vocabularies import load_vocabulary
from shards.anygpt_jsonl import split_message
from shards.records import Segment
from shards.vocabulary import Codes, Modality, Vocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
PARITY = Path(os.environ.get("PARITY_DIR", REPOSITORY.parent / "shared" / "reference" / "parity"))


@pytest.fixture(scope="module", params=["goldens.json", "goldens.ascii.json"])
def goldens(request: pytest.FixtureRequest) -> dict[str, Any]:
    path = PARITY / "anygpt_strings" / request.param
    if not path.is_file():
        pytest.skip(
            f"no AnyGPT parity strings at {path.parent}; set PARITY_DIR to the folder that holds anygpt_strings/"
        )
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(REPOSITORY / "configs/vocabulary/anygpt-stage1.toml")


@pytest.fixture(scope="module")
def templates() -> Templates:
    return load_templates(REPOSITORY / "configs/templates")


def frames(codes: list[Any], layout: str = "sequence") -> Codes:
    """(frames, levels), from a flat list or from (levels, frames)."""
    array = np.array(codes, np.uint16)
    return array.T if layout == "levels x frames" else array.reshape(-1, 1)


def medium(text: str, modality: str, vocabulary: Vocabulary) -> Segment:
    return Segment(modality, Modality(modality), codes=vocabulary.block(modality).from_text(text))


def turns(messages: list[dict[str, str]], vocabulary: Vocabulary) -> list[Turn]:
    return [Turn(m["role"], split_message(m["message"], m["role"], vocabulary.blocks)) for m in messages]


def test_markers_are_the_same_strings(goldens: dict[str, Any], vocabulary: Vocabulary):
    for name, golden in goldens["markers"].items():
        block = vocabulary.block(name)
        assert [f"U+{ord(c):04X}" for c in block.prefix] == golden["prefix_code_points"]
        assert block.prefix.encode().hex() == golden["prefix_utf8_hex"]
        assert (block.start, block.end, block.num_codes) == (golden["start"], golden["end"], golden["vocab_size"])
    tiny = REPOSITORY / "configs/vocabulary/tiny.toml"
    markers = list(load_vocabulary(tiny, overrides=["text_size=1024"]).markers)
    assert markers == goldens["dialogue_markers"]["in_order_of_addition"]


def test_codes_become_the_same_string_and_come_back(goldens: dict[str, Any], vocabulary: Vocabulary):
    for golden in goldens["codes_to_string"]:
        codes = frames(golden["codes"], golden["layout"])
        block = vocabulary.block(golden["modality"])
        assert block.to_text(codes) == golden["expected"]
        assert np.array_equal(block.from_text(golden["expected"]), codes)


def test_music_is_flattened_frame_by_frame(goldens: dict[str, Any], vocabulary: Vocabulary):
    golden, block = goldens["music_flatten"], vocabulary.block("music")
    flat = block.to_token_ids(frames(golden["codes_levels_by_frames"], "levels x frames")) - block.first_id
    assert flat.tolist() == golden["expected_flat"]


def test_stage_one_strings_are_equal_in_both_directions(goldens: dict[str, Any], vocabulary: Vocabulary):
    for golden in goldens["stage1"]:
        modality = golden["modality"]
        direction = f"{modality}_to_text" if golden["direction"] == "x_to_text" else f"text_to_{modality}"
        pieces = pair_pieces(
            direction,
            instruction=goldens["instructions"][golden["direction"]][modality],
            text=golden["text"],
            medium=medium(golden["modality_string"], modality, vocabulary),
        )
        assert write_text(pieces, vocabulary) == golden["expected"]


def test_prompts_of_the_base_model_are_equal(goldens: dict[str, Any], vocabulary: Vocabulary):
    for golden in goldens["base_model_prompts"]:
        if golden["kind"] == "custom_instruction":
            pieces = custom_prompt_pieces(golden["input"])
        elif golden["kind"] == "x_to_text":
            modality = golden["modality"]
            instruction = goldens["instructions"]["x_to_text"][modality]
            asked = medium(golden["input"], modality, vocabulary)
            pieces = prompt_pieces(f"{modality}_to_text", instruction=instruction, medium=asked)
        else:
            modality = golden["to_modality"]
            instruction = goldens["instructions"]["text_to_x"][modality]
            pieces = prompt_pieces(f"text_to_{modality}", instruction=instruction, text=golden["input"])
        assert write_text(pieces, vocabulary) == golden["expected"]


def test_prompts_of_the_chat_model_are_equal(goldens: dict[str, Any], vocabulary: Vocabulary, templates: Templates):
    strings = {
        "image": goldens["codes_to_string"][0]["expected"],
        "image2": goldens["codes_to_string"][1]["expected"],
        "speech": goldens["codes_to_string"][2]["expected"],
        "music": goldens["codes_to_string"][3]["expected"],
    }
    for golden in goldens["chat_model_prompts"]:
        names = [*golden["images"], *golden["speech"], *golden["music"]]
        media = [medium(strings[name], name.removesuffix("2"), vocabulary) for name in names]
        turn = chat_request(golden["task"], golden["instruction"], media, templates.dialogue)
        pieces = chat_prompt_pieces([turn], templates.dialogue.presets["MMGPT"])
        assert write_text(pieces, vocabulary) == golden["expected"], golden["task"]


def test_stage_two_strings_are_equal_for_both_templates(
    goldens: dict[str, Any], vocabulary: Vocabulary, templates: Templates
):
    starts = {f"force_{name}_generation": block.start for name, block in vocabulary.blocks.items()}
    for golden in goldens["stage2"]:
        preset = templates.dialogue.presets[golden["template"]]
        assert preset.system == goldens["system_messages"][golden["template"]]
        conversation = turns(golden["messages"], vocabulary)
        if golden["use"] == "prompt":
            options = golden.get("options", {})
            forced = [start for option, start in starts.items() if options.get(option)]
            pieces = chat_prompt_pieces(
                conversation, preset, reply_prefix=options.get("force_res_prefix", ""), force_start="".join(forced)
            )
        else:
            pieces = conversation_pieces(conversation, preset)
        assert write_text(pieces, vocabulary) == golden["expected"]


def test_generated_text_gives_the_same_codes(goldens: dict[str, Any], vocabulary: Vocabulary):
    for golden in goldens["string_to_codes"]:
        block = vocabulary.block(golden["modality"])
        layout = "levels x frames" if block.levels > 1 else "sequence"
        for text in (golden["generated_text"], golden.get("inner", golden["generated_text"])):
            assert np.array_equal(read_codes(block, text), frames(golden["expected"], layout))


def test_tags_are_extracted_as_upstream_does(goldens: dict[str, Any]):
    for golden in goldens["extract_tags"]:
        tags = (golden["text"], golden["tag1"], golden["tag2"])
        assert find_last_between(*tags) == golden["expected_last_pair"]
        assert find_first_between(*tags) == golden["expected_first_pair_loose"]
