"""What the tests of templates, rendering and text share: shipped templates, a small tokenizer, its vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.templates import Templates, load_templates
from pipeline.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer
from pipeline.text_training import instruction_texts
from pipeline.vocabularies import load_vocabulary
from shards.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def templates(repository: Path) -> Templates:
    """The templates this repository ships."""
    return load_templates(repository / "configs" / "templates")


@pytest.fixture(scope="session")
def text_folder(templates: Templates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 600 ids, trained on the instructions, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("text")
    train_text_tokenizer(instruction_texts(templates), 600, folder, words=["red", "purple", "circle"])
    return folder


@pytest.fixture(scope="session")
def text_tokenizer(text_folder: Path) -> TextTokenizer:
    """The tokenizer of ``text_folder``."""
    return load_text_tokenizer(text_folder)


@pytest.fixture(scope="session")
def vocabulary(repository: Path, text_tokenizer: TextTokenizer) -> Vocabulary:
    """The tiny layout, numbered with that tokenizer."""
    return load_vocabulary(repository / "configs" / "vocabulary" / "tiny.toml", text_tokenizer=text_tokenizer)
