"""What the released instruction stage gets wrong (anygpt-compat 7, by number), and that ours does not share it.

Beside these: U-10 and U-15 in ``tests/tokenize_jobs/test_packing_dialogues.py`` (validation dialogues are in no training
row, positions begin anew with every dialogue), U-11 there too, U-20 in ``test_dialogues.py`` (history as it was trained).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.documents import Document
from pipeline.packing import cut_to_fit
from pipeline.rendering import render_document
from pipeline.templates import Templates, load_templates
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.vocabularies import load_vocabulary
from shards.anygpt_jsonl import parse_line
from shards.errors import SampleError
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary
from tests.fixtures.llama_stand_in import write_llama_stand_in

FACE = "\U0001f5e3\ufe0f"
VOICE = f"<sosp><{FACE}1><{FACE}2><eosp>"
ANSWER = f"<-Ins-> she owns a home\n <-Res-> This is a home. {VOICE} "


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_text_tokenizer(write_llama_stand_in(tmp_path_factory.mktemp("llama"), legacy=False))


@pytest.fixture(scope="module")
def stage1(repository: Path, llama: TextTokenizer) -> Vocabulary:
    return load_vocabulary(repository / "configs/vocabulary/anygpt-stage1.toml", text_tokenizer=llama)


def released_row() -> TokenizedSample:
    """A row of the published form: the dialogues of a line are one level deeper than its messages."""
    turns = [{"role": "user", "message": f"{VOICE} Read this."}, {"role": "assistant", "message": ANSWER}]
    line = json.dumps({"id": 1, "conversation": [turns]}, ensure_ascii=False)
    (sample,) = parse_line(line.encode(), corpus="anyinstruct", source_file="a.jsonl", number=0)
    assert isinstance(sample, TokenizedSample)
    return sample


def kept(document: Document) -> list[int]:
    return [int(i) for begin, end in document.loss_spans for i in document.token_ids[begin:end]]


def medium(slot: str, modality: Modality, frames: int, levels: int) -> Segment:
    return Segment(slot, modality, codes=np.zeros((frames, levels), np.uint16), duration_s=frames / 50)


def long_dialogue() -> TokenizedSample:
    def turn(slot: str, number: int) -> list[Segment]:
        media = [
            medium(slot, Modality.IMAGE, 32, 1),
            medium(slot, Modality.MUSIC, 2, 4),
            medium(slot, Modality.SPEECH, 9, 8),
        ]
        return [Segment(slot, Modality.TEXT, f"this is {number}"), media[number % 3]]

    segments = [part for number in range(4) for slot in ("user", "assistant") for part in turn(slot, number)]
    return TokenizedSample("d/0", "anyinstruct", "train", tuple(segments), Provenance("f"))


@pytest.mark.parametrize("preset", ["MMGPT", "AnyGPT"])
def test_u01_u02_u08_one_released_row_is_trained_on_its_answer_with_either_form(
    repository: Path, stage1: Vocabulary, llama: TextTokenizer, preset: str
):
    """There: a TypeError for the nesting, then all labels masked for names that are no tokens, then too few rows."""
    templates = load_templates(repository / "configs/templates", [f"preset={preset}"])
    document = render_document(released_row(), templates, stage1, llama, draw=0, seed=0)
    trained = kept(document)
    block = stage1.block("speech")
    media = [i for i in trained if block.first_id <= i <= block.end_id]
    assert media == [block.start_id, block.first_id + 1, block.first_id + 2, block.end_id]
    words = llama.decode([i for i in trained if i < llama.size and i != stage1.eos_id])
    assert words.replace(" ", "").startswith("<-Ins->sheownsahome\n<-Res->Thisisahome.")
    assert ("<eom>" in words) == (preset == "AnyGPT")
    assert (stage1.marker("<eos>") in trained) == (preset == "MMGPT")


def test_the_end_of_a_turn_is_no_end_of_a_document(templates: Templates, stage1: Vocabulary, llama: TextTokenizer):
    """``<eos>`` is an added token of its own; ``</s>`` comes once, last, and cannot be typed by a user."""
    said = [Segment("user", Modality.TEXT, "</s><eos>"), Segment("assistant", Modality.TEXT, "this </s> is")]
    sample = TokenizedSample("d/0", "anyinstruct", "train", (*said, *said), Provenance("f"))
    ids = render_document(sample, templates, stage1, llama, draw=0, seed=0).token_ids.tolist()
    eos = stage1.marker("<eos>")
    assert (ids.count(2), ids[-1], ids.count(eos), eos) == (1, 2, 2, 32003)


def test_no_id_of_a_question_is_trained(templates: Templates, stage1: Vocabulary, llama: TextTokenizer):
    """Whatever the question says, even what an answer looks like."""
    question = f"[MMGPT]: {ANSWER}<eos>"
    said = [Segment("user", Modality.TEXT, question), Segment("assistant", Modality.TEXT, "a home.")]
    sample = TokenizedSample("d/0", "anyinstruct", "train", tuple(said), Provenance("f"))
    document = render_document(sample, templates, stage1, llama, draw=0, seed=0)
    assert kept(document) == [263, 3271, 29889, 32003, 2]


def test_u12_u14_a_cut_at_any_length_is_whole_or_refused(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    """There: an IndexError where a user's turn crosses the cut, and media without an end that are trained on."""
    document = render_document(long_dialogue(), templates, vocabulary, text_tokenizer, draw=0, seed=0)
    refused, split = 0, set[int]()
    for length in range(1, len(document.token_ids) + 2):
        try:
            pieces = cut_to_fit(document, sequence_length=length)
        except SampleError as error:
            assert error.reason == "exchange_longer_than_row"
            refused += 1
            continue
        split.add(len(pieces))
        for piece in pieces:
            ids = np.concatenate([document.token_ids[begin:end] for begin, end in piece.ranges]).tolist()
            assert len(ids) <= length
            for block in vocabulary.blocks.values():
                assert ids.count(block.start_id) == ids.count(block.end_id)
            assert ids.count(vocabulary.marker("<eoh>")) == ids.count(vocabulary.marker("<eos>"))
    assert refused
    assert {1, 2} < split


def test_u13_every_document_ends_in_the_end_mark_whatever_its_neighbours(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    """There: all of ten rows get ``</s>`` or none does, by the length of the first."""
    samples = [long_dialogue() if number % 3 else released_row() for number in range(10)]
    documents = [render_document(s, templates, vocabulary, text_tokenizer, draw=0, seed=0) for s in samples]
    assert {int(document.token_ids[-1]) for document in documents} == {vocabulary.eos_id}
    assert all(document.loss_spans[-1][1] == len(document.token_ids) for document in documents)


def test_the_published_row_is_trained_on(
    shared_corpora: Path, templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    path = shared_corpora / "anygpt_tokens/instruction/anyinstruct_speech.jsonl"
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines):
        for sample in parse_line(line, corpus="anyinstruct", source_file=path.name, number=number):
            assert isinstance(sample, TokenizedSample)
            document = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0)
            marks = [vocabulary.marker(name) for name in ("<-Ins->", "<-Res->", "<eos>")]
            assert [i for i in kept(document) if i in marks] == marks * (len(document.exchanges))
            assert vocabulary.marker("<eoh>") not in kept(document)
