"""Golden ids of anygpt-compat 1.4, and a dialogue by the same rules: both behaviours of ``legacy``, LLaMA's real ids.

Where LLaMA's own ``tokenizer.model`` is at hand (``$LLAMA_TOKENIZER_DIR``) it is used as well; else that half is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.pieces import write_token_ids
from pipeline.rendering import pair_pieces, render_document
from pipeline.templates import Templates
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.vocabularies import load_vocabulary
from shards.records import Provenance, Segment, TokenizedSample
from shards.tokenizer_files import extends
from shards.vocabulary import Modality, Vocabulary
from tests.fixtures.llama_stand_in import write_llama_stand_in

# Row 0 of laion-coco-caption.jsonl and what is known of row 6 of commonvoice.jsonl, as ids.
G1_IMAGE = [
    33740, 32684, 37475, 34968, 32684, 37898, 38393, 40036, 33775, 32684, 32684, 38536, 38393, 38398, 34518, 38724,
    34161, 37553, 37293, 34518, 37293, 38398, 37834, 34319, 38398, 38536, 37553, 36090, 34818, 33508, 39107, 37706,
]  # fmt: skip
G1_CAPTION = "The UK Seller Acoustic Guitar gig bag is shown."
G1_ASKED = [20355, 915, 445, 29889, 29871, 40196, *G1_IMAGE, 40197, 32002]
G1_TOLD = [450, 10261, 317, 4539, 7255, 18291, 293, 2088, 3673, 19340, 19548, 338, 4318, 29889, 32003, 2]
G2_ASKED = [7523, 445, 29889, 910, 338, 1881, 29901, 1183, 1914, 29879, 263, 3271, 297, 1532, 4885, 23729, 1458, 32002]
G2_SPEECH = [40889, 40876, 40222, 40222, *[40198] * 209, 40727, 40727, 41165]


@pytest.fixture(scope="module", params=["stand-in", "real"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "stand-in":
        return write_llama_stand_in(tmp_path_factory.mktemp("llama"), legacy=True)
    if not (real := os.environ.get("LLAMA_TOKENIZER_DIR")):
        pytest.skip("no LLaMA-2 tokenizer; set LLAMA_TOKENIZER_DIR to a folder with its tokenizer.model")
    return Path(real)


@pytest.fixture(scope="module", params=[False, True], ids=["legacy=false", "legacy=true"])
def llama(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("folder")
    shutil.copy(source / "tokenizer.model", folder)
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": request.param, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_text_tokenizer(folder)


@pytest.fixture
def stage1(repository: Path, llama: TextTokenizer) -> Vocabulary:
    return load_vocabulary(repository / "configs/vocabulary/anygpt-stage1.toml", text_tokenizer=llama)


def medium(slot: str, modality: Modality, ids: list[int], first_id: int) -> Segment:
    codes = (np.array(ids) - first_id).astype(np.uint16).reshape(-1, 1)
    return Segment(slot, modality, codes=codes, duration_s=len(ids) / 50)


def test_g1_a_picture_told_in_words(llama: TextTokenizer, stage1: Vocabulary):
    picture = medium("image", Modality.IMAGE, G1_IMAGE, 32004)
    pieces = pair_pieces("image_to_text", instruction="Describe this.", text=G1_CAPTION, medium=picture)
    if llama.dummy_space == "first":
        expected = [1, 29871, 32000, 29901, *G1_ASKED, 29871, 32001, 29901, *G1_TOLD]
    else:
        expected = [1, 32000, 584, *G1_ASKED, 259, 32001, 584, *G1_TOLD]
    assert len(expected) == (63 if llama.dummy_space == "first" else 62)
    assert write_token_ids(pieces, stage1, llama).token_ids.tolist() == expected


def test_g2_words_read_aloud(llama: TextTokenizer, stage1: Vocabulary):
    voice = medium("speech", Modality.SPEECH, G2_SPEECH, 40198)
    text = "she owns a home in wellington florida"
    pieces = pair_pieces("text_to_speech", instruction="Read this.", text=text, medium=voice)
    if llama.dummy_space == "first":
        expected = [1, 29871, 32000, 29901, *G2_ASKED, 29871, 32001, 29901, 29871, 41222, *G2_SPEECH, 41223, 32003, 2]
    else:
        expected = [1, 32000, 584, *G2_ASKED, 259, 32001, 584, 29871, 41222, *G2_SPEECH, 41223, 32003, 2]
    assert len(expected) == (246 if llama.dummy_space == "first" else 245)
    assert write_token_ids(pieces, stage1, llama).token_ids.tolist() == expected


def test_a_dialogue_by_the_same_rules(llama: TextTokenizer, stage1: Vocabulary, templates: Templates):
    """A line break behind a marker is one id, and two where every text gets a space; loss begins at the reply's space."""
    voice = medium("assistant", Modality.SPEECH, [40889], 40198)
    told = [
        ("system", "Read this."),
        ("user", "she owns a home"),
        ("assistant", ""),
        ("user", "this is"),
        ("assistant", "a home."),
    ]
    segments = [voice if not text else Segment(slot, Modality.TEXT, text) for slot, text in told]
    sample = TokenizedSample("d/0", "anyinstruct", "train", tuple(segments), Provenance("f"))
    document = render_document(sample, templates, stage1, llama, draw=0, seed=0)
    if llama.dummy_space == "first":
        colon, line = [29901], [13]
    else:
        colon, line = [584], [29871, 13]
    expected: list[tuple[list[int], bool]] = [
        ([1, 7523, 445, 29889, 13], False),
        ([32000, *colon, 1183, 1914, 29879, 263, 3271, 32002, *line, 32001, *colon], False),
        ([29871, 41222, 40889, 41223, 32003], True),
        ([*line, 32000, *colon, 445, 338, 32002, *line, 32001, *colon], False),
        ([263, 3271, 29889, 32003, 2], True),
    ]
    assert document.token_ids.tolist() == [token_id for ids, _ in expected for token_id in ids]
    kept = [document.token_ids[begin:end].tolist() for begin, end in document.loss_spans]
    assert kept == [ids for ids, trained in expected if trained]


def test_the_second_stage_adds_two_ids_and_moves_none(repository: Path, llama: TextTokenizer, stage1: Vocabulary):
    """anygpt-compat 1.2: ``<-Res->`` before ``<-Ins->``, 49,420 in all."""
    stage2 = load_vocabulary(repository / "configs/vocabulary/anygpt-stage2.toml", text_tokenizer=llama)
    assert stage2.markers == {**stage1.markers, "<-Res->": 49418, "<-Ins->": 49419}
    assert (stage2.size, stage2.blocks, stage2.dtype) == (49420, stage1.blocks, "uint16")
    assert extends(stage2, stage1) and not extends(stage1, stage2)


def test_a_spoken_question_is_answered_with_the_marks_of_the_second_stage(
    repository: Path, llama: TextTokenizer, templates: Templates
):
    """``<-Ins-> {transcript}\\n <-Res-> {reply}``, spaces as in every text behind an added token."""
    stage2 = load_vocabulary(repository / "configs/vocabulary/anygpt-stage2.toml", text_tokenizer=llama)
    voice = medium("user", Modality.SPEECH, [40889], 40198)
    told = [Segment("transcript", Modality.TEXT, "she is"), Segment("assistant", Modality.TEXT, "a home.")]
    sample = TokenizedSample("d/0", "anyinstruct", "train", (voice, *told), Provenance("f"))
    document = render_document(sample, templates, stage2, llama, draw=0, seed=0)
    ((begin, end),) = document.loss_spans
    # A line break and a space between "is" and the mark: 13 and a space of its own, whichever rule adds spaces.
    expected = [29871, 49419, 1183, 338, 13, 29871, 49418, 263, 3271, 29889, 32003, 2]
    if llama.dummy_space == "always":
        # Every text behind a token gets one more: "she" and "a" are words behind two spaces.
        expected = [29871, 49419, 29871, 1183, 338, 13, 29871, 49418, 29871, 263, 3271, 29889, 32003, 2]
    assert document.token_ids[begin:end].tolist() == expected
