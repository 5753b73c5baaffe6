"""Random dialogues against an oracle that knows AnyGPT's strings and nothing of our code.

The oracle writes one string, as anygpt-compat 3.5 prints it, and gives it to the ``tokenizers`` library, whose model got
every marker and code as an added token in the order of anygpt-compat 1.2: that is how the released scripts come to ids.
Which ids count is then read off the ids by the one sentence of anygpt-compat 3.6: from behind ``[MMGPT]:`` up to and with
``<eos>``, and the final ``</s>``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from pipeline.rendering import render_document
from pipeline.templates import Templates, load_templates
from pipeline.text import TextTokenizer
from shards.records import Provenance, Segment, TokenizedSample
from shards.vocabulary import Modality, Vocabulary

SENTENCE = (
    "You are an AI assistant named {} who can understand and generate multimodal content, including text, speech, "
    "images and audio."
)
EYES, FACE, NOTES = "\U0001f440", "\U0001f5e3\ufe0f", "\U0001f3b6"
MARKERS = ["[Human]", "[MMGPT]", "<eoh>", "<eos>", "<-Res->", "<-Ins->"]
ADDED = [
    *MARKERS,
    *[f"<{EYES}{code}>" for code in range(8192)],
    *["<soim>", "<eoim>"],
    *[f"<{FACE}{code}>" for code in range(1024)],
    *["<sosp>", "<eosp>"],
    *[f"<{NOTES}{code}>" for code in range(8192)],
    *["<somu>", "<eomu>"],
]

Part = str | tuple[str, list[list[int]]]
"""Words, or a medium's name and its codes by frame."""
Turns = list[tuple[str, list[Part]]]

# Letters of one, two and four bytes, signs, digits, breaks; no sign an added token could be made of.
words = st.text(st.sampled_from("abé 0.,:?\n\U0001f600"), min_size=1, max_size=15).map(str.strip).filter(bool)
media = st.one_of(
    st.tuples(
        st.just("image"), st.lists(st.lists(st.integers(0, 8191), min_size=1, max_size=1), min_size=32, max_size=32)
    ),
    st.tuples(
        st.just("speech"), st.lists(st.lists(st.integers(0, 1023), min_size=8, max_size=8), min_size=1, max_size=6)
    ),
    st.tuples(
        st.just("music"), st.lists(st.lists(st.integers(0, 2047), min_size=4, max_size=4), min_size=1, max_size=4)
    ),
)
parts = st.lists(st.one_of(words, media), min_size=1, max_size=4)


@st.composite
def dialogues(draw: st.DrawFn) -> Turns:
    turns: Turns = []
    for _ in range(draw(st.integers(1, 5))):
        turns.append(("user", draw(parts)))
        heard = draw(st.sampled_from(["", "<-Ins-> what they said\n <-Res-> "]))
        reply = draw(parts)
        if heard:
            reply = [heard + reply[0], *reply[1:]] if isinstance(reply[0], str) else [heard.rstrip(), *reply]
        turns.append(("assistant", reply))
    return turns


def to_sample(turns: Turns) -> TokenizedSample:
    segments: list[Segment] = []
    for slot, told in turns:
        for part in told:
            if isinstance(part, str):
                segments.append(Segment(slot, Modality.TEXT, part))
            else:
                name, codes = part
                segments.append(Segment(slot, Modality(name), codes=np.array(codes, np.uint16), duration_s=0.1))
    return TokenizedSample("d/0", "anyinstruct", "train", tuple(segments), Provenance("f"))


def spelled(part: Part) -> str:
    """Speech gives its first level; music all four, frame by frame, level k from 2,048 k on."""
    if isinstance(part, str):
        return part
    name, codes = part
    if name == "image":
        return "<soim>" + "".join(f"<{EYES}{frame[0]}>" for frame in codes) + "<eoim>"
    if name == "speech":
        return "<sosp>" + "".join(f"<{FACE}{frame[0]}>" for frame in codes) + "<eosp>"
    ids = [frame[level] + 2048 * level for frame in codes for level in range(4)]
    return "<somu>" + "".join(f"<{NOTES}{index}>" for index in ids) + "<eomu>"


def string_of(turns: Turns, name: str, end: str) -> str:
    """``{system}\\n[Human]: {user}<eoh>\\n[X]: {assistant}{END}\\n[Human]: ...``"""
    said = [" ".join(spelled(part) for part in told) for _, told in turns]
    rounds = [
        f"[Human]: {user}<eoh>\n[{name}]: {reply}{end}" for user, reply in zip(said[::2], said[1::2], strict=True)
    ]
    return SENTENCE.format(name) + "\n" + "\n".join(rounds)


@pytest.fixture(scope="module")
def tokenizer(text_folder: Path) -> Tokenizer:
    found = Tokenizer.from_file(str(text_folder / "tokenizer.json"))
    found.add_tokens([AddedToken(string, normalized=False) for string in ADDED])
    return found


def marked(ids: list[int], tokenizer: Tokenizer) -> list[bool]:
    """Which ids count, going through them once."""
    assistant, end, colon = (tokenizer.token_to_id(text) for text in ("[MMGPT]", "<eos>", ":"))
    trained: list[bool] = []
    speaking = False
    for place, token_id in enumerate(ids):
        trained.append(speaking or place == len(ids) - 1)
        if token_id == colon and ids[place - 1] == assistant:
            speaking = True
        if token_id == end:
            speaking = False
    return trained


def spans_as_marks(spans: tuple[tuple[int, int], ...], length: int) -> list[bool]:
    return [any(begin <= place < end for begin, end in spans) for place in range(length)]


@settings(max_examples=60)
@given(turns=dialogues())
def test_ids_and_loss_are_those_of_the_oracle(
    templates: Templates, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, tokenizer: Tokenizer, turns: Turns
):
    document = render_document(to_sample(turns), templates, vocabulary, text_tokenizer, draw=0, seed=0)
    ids = [1, *tokenizer.encode(string_of(turns, "MMGPT", "<eos>"), add_special_tokens=False).ids, 2]
    assert document.token_ids.tolist() == ids
    assert spans_as_marks(document.loss_spans, len(ids)) == marked(ids, tokenizer)
    assert len(document.loss_spans) == len(turns) // 2


@settings(max_examples=60)
@given(turns=dialogues())
def test_the_spelled_names_of_the_other_form_move_no_loss(
    repository: Path, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, tokenizer: Tokenizer, turns: Turns
):
    """With ``[AnyGPT]`` and ``<eom>`` as text the released script masks every label (U-02): spans do not care."""
    templates = load_templates(repository / "configs/templates", ["preset=AnyGPT"])
    document = render_document(to_sample(turns), templates, vocabulary, text_tokenizer, draw=0, seed=0)
    string = string_of(turns, "AnyGPT", "<eom>")
    decoded = tokenizer.decode(document.token_ids.tolist()[1:-1], skip_special_tokens=False)
    assert decoded.replace(" ", "") == string.replace(" ", "")
    replies = [" ".join(spelled(part) for part in told) for slot, told in turns if slot == "assistant"]
    ends = [*[""] * (len(replies) - 1), "</s>"]
    kept = [document.token_ids[begin:end].tolist() for begin, end in document.loss_spans]
    found = [tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "") for ids in kept]
    assert found == [f"{reply}<eom>{end}".replace(" ", "") for reply, end in zip(replies, ends, strict=True)]
