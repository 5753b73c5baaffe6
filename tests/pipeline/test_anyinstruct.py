"""From a line of AnyInstruct to what is trained: every reading of spoken turns, and the dialogues at the edge of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.dialogues import dialogue_pieces
from pipeline.pieces import write_text
from pipeline.reading.outcomes import Outcome
from pipeline.rendering import render_document
from pipeline.samples import RawSample, RawText
from pipeline.templates import Templates
from pipeline.text import TextTokenizer
from shards.records import Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary
from tests.fixtures.miniature_corpora import picture, sound, write

SHOWN = {
    Modality.IMAGE: ((32, 1), "<soim>" + "<\U0001f4400>" * 32 + "<eoim>"),
    Modality.SPEECH: ((2, 8), "<sosp>" + "<\U0001f5e3\ufe0f0>" * 2 + "<eosp>"),
    Modality.MUSIC: ((1, 4), "<somu>" + "".join(f"<\U0001f3b6{2048 * level}>" for level in range(4)) + "<eomu>"),
}


def message(role: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "message": text, "speech": None, "images": [], "music": [], **fields}


def read(root: Path, *chats: list[dict[str, Any]], speech: str = "text") -> list[Outcome]:
    write(root / "images_224" / "i.jpg", picture(1))
    write(root / "music" / "m.mp3", sound(1.2, 32_000, form="MP3"))
    write(root / "speech" / "u.wav", sound(0.5, 16_000, form="WAV"))
    write(root / "metadata.jsonl", "\n".join(json.dumps({"id": str(n), "chat": chat}) for n, chat in enumerate(chats)))
    config = CorpusConfig(corpus="anyinstruct", root=root, output=Path("unused"), options={"speech": speech})
    reader = load_corpus(config)
    return [result for source in reader.sources() for result in reader.read(source)]


def tokenized(result: Outcome) -> TokenizedSample:
    """The sample with codes of zeros, of the levels that are kept at rest."""
    assert isinstance(result, RawSample), result
    segments = [
        Segment(part.slot, Modality.TEXT, part.text)
        if isinstance(part, RawText)
        else Segment(part.slot, part.modality, codes=np.zeros(SHOWN[part.modality][0], np.uint16), duration_s=0.04)
        for part in result.segments
    ]
    return TokenizedSample(result.sample_id, result.corpus, result.split, tuple(segments), result.provenance)


IMAGE = {"images": [{"caption": "x", "image_file": "i.jpg"}]}
MUSIC = {"music": [{"caption": "y", "music_file": "m.mp3"}]}
SPOKEN = [
    message("USER", "What fits <image1> here?", speech="u.wav", **IMAGE),
    message("AnyGPT", "This: <music1>", speech="u.wav", **MUSIC),
    message("USER", "And now?"),
    message("AnyGPT", "Nothing."),
]


@pytest.mark.parametrize(
    ("speech", "first_user", "first_reply"),
    [
        ("text", "What fits {image} here?", "This: {music}"),
        ("speech", "{speech} {image}", "<-Ins-> What fits here?\n <-Res-> This: {music} {speech}"),
        ("both", "{speech} What fits {image} here?", "This: {music} {speech}"),
    ],
)
def test_every_reading_of_a_spoken_conversation_is_told_as_released(
    templates: Templates,
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    tmp_path: Path,
    speech: str,
    first_user: str,
    first_reply: str,
):
    (result,) = read(tmp_path, SPOKEN, speech=speech)
    sample = tokenized(result)
    shown = {str(modality): string for modality, (_, string) in SHOWN.items()}
    asked, replied = first_user.format(**shown), first_reply.format(**shown)
    assert write_text(dialogue_pieces(sample, templates.preset), vocabulary) == (
        f"{templates.preset.system}\n[Human]: {asked}<eoh>\n[MMGPT]: {replied}<eos>\n"
        "[Human]: And now?<eoh>\n[MMGPT]: Nothing.<eos>"
    )
    document = render_document(sample, templates, vocabulary, text_tokenizer, draw=0, seed=0)
    assert (document.direction, len(document.loss_spans)) == ("dialogue", 2)


def test_the_edges_of_a_dialogue(tmp_path: Path):
    """Keys may come in any order; a question at the end stays, for templates to leave out; a system message may be there."""
    ask, answer = message("USER", "hi"), message("AnyGPT", "yes")
    backwards = [dict(reversed(one.items())) for one in (ask, answer)]
    system = message("SYSTEM", "Be brief.")
    last = message("USER", "and <image1>?", speech="u.wav", **IMAGE)
    told = [
        *([ask, answer], backwards, [system, ask, answer], [ask, answer, last]),
        *(
            [ask],
            [],
            [system],
            [system, ask],
            [ask, ask, answer],
            [ask, answer, answer],
            [answer, ask],
            [ask, system, answer],
        ),
        [ask, message("AnyGPT", " ")],
    ]
    found = read(tmp_path, *told, speech="speech")
    slots = [[part.slot for part in result.segments] for result in found if isinstance(result, RawSample)]
    assert slots == [
        *(["user", "assistant"], ["user", "assistant"], ["system", "user", "assistant"]),
        ["user", "assistant", "user", "user", "user", "user"],
    ]
    assert [result.reason for result in found if not isinstance(result, RawSample)] == [
        *("turns_out_of_order", "dialogue_empty", "turns_out_of_order", "turns_out_of_order", "turns_out_of_order"),
        *("turns_out_of_order", "turns_out_of_order", "turns_out_of_order", "text_empty"),
    ]


def test_a_question_at_the_end_is_told_in_no_reading(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, tmp_path: Path
):
    last = message("USER", "and <image1>?", speech="u.wav", **IMAGE)
    for speech in ("text", "speech", "both"):
        whole, cut = (
            render_document(tokenized(result), templates, vocabulary, text_tokenizer, draw=0, seed=0)
            for result in read(tmp_path / speech, SPOKEN, [*SPOKEN, last], speech=speech)
        )
        assert cut.token_ids.tolist() == whole.token_ids.tolist()


def test_the_shared_conversations_are_trained_on(
    shared_corpora: Path, templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer
):
    root = shared_corpora / "anyinstruct"
    replies = [
        sum(turn["role"] == "AnyGPT" for turn in json.loads(line)["chat"])
        for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for speech in ("text", "speech", "both"):
        config = CorpusConfig(corpus="anyinstruct", root=root, output=Path("unused"), options={"speech": speech})
        reader = load_corpus(config)
        results = [result for source in reader.sources() for result in reader.read(source)]
        documents = [
            render_document(tokenized(result), templates, vocabulary, text_tokenizer, draw=0, seed=0)
            for result in results
        ]
        assert [len(document.loss_spans) for document in documents] == replies
        assert [len(document.exchanges) for document in documents] == replies
