"""An exported model folder: weights, vocabulary, and the text tokenizer beside them.

Reads: what ``anygpt-train`` writes to ``checkpoints/final`` (a Hugging Face folder plus ``vocabulary.json``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from pipeline.text import TextTokenizer, load_text_tokenizer
from shards.errors import CheckpointError, FingerprintMismatch
from shards.vocabulary import Vocabulary

VOCABULARY_NAME = "vocabulary.json"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with what its ids mean."""

    model: Any
    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer


def load_model(folder: Path, *, text_tokenizer: Path) -> LoadedModel:
    """Open an exported model.

    Raises:
        CheckpointError: no finished model in the folder.
        FingerprintMismatch: the text tokenizer is not the one the vocabulary was bound to.
    """
    path = folder / VOCABULARY_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected an exported model with {VOCABULARY_NAME}, found none; finish anygpt-train first"
        )
    vocabulary = Vocabulary.from_json(json.loads(path.read_text(encoding="utf-8")))
    tokenizer = load_text_tokenizer(text_tokenizer)
    if tokenizer.fingerprint != vocabulary.text_fingerprint:
        raise FingerprintMismatch(
            f"{text_tokenizer}: expected the text tokenizer {vocabulary.text_fingerprint} that {folder} was trained with, "
            f"found {tokenizer.fingerprint}; give the folder it was packed with"
        )
    model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype="float32")
    return LoadedModel(model.eval(), vocabulary, tokenizer)
