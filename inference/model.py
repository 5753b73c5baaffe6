"""A model folder: weights, what its ids mean, and its text tokenizer.

Reads: what ``anygpt-train`` writes to ``checkpoints/final`` (a Hugging Face folder plus ``vocabulary.json``), or a published
AnyGPT checkpoint, whose ids are read from its own tokenizer files (anygpt-compat 1.3: they are never assumed).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from configs.load import load_config
from pipeline.text import TextTokenizer, load_text_tokenizer
from pipeline.tokenizers.weights import choose_device
from pipeline.vocabularies import VocabularyLayout, vocabulary_from_checkpoint
from shards.errors import CheckpointError, ConfigError, FingerprintMismatch
from shards.tokenizer_files import has_tokenizer, read_json
from shards.vocabulary import Vocabulary

VOCABULARY_NAME = "vocabulary.json"
_SHOWN = 3
# What transformers, torch and pickle raise on files that are cut, or none of theirs.
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError)
# An export says itself what its ids mean; no string need be looked for.
_NO_STRINGS = VocabularyLayout(name="export", markers=(), media=())


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with what its ids mean."""

    model: Any
    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer


def load_model(
    folder: Path,
    *,
    text_tokenizer: Path | None = None,
    layout: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> LoadedModel:
    """Open a model.

    Args:
        text_tokenizer: a folder; None: the model's own.
        layout: strings to look for in a folder without ``vocabulary.json``; None refuses such a folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights; ``auto``: float32 on a CPU, bfloat16 on a GPU.

    Raises:
        CheckpointError: no finished model in the folder.
        FingerprintMismatch: the text tokenizer is not the one the vocabulary was bound to.
        DatasetError: a published folder whose added tokens are missing or not contiguous, or too few embedding rows.
        ConfigError: no such device, or a text tokenizer beside a published model, which has its own.
    """
    vocabulary, tokenizer = load_ids(folder, text_tokenizer=text_tokenizer, layout=layout)
    place = choose_device(device)
    chosen = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    model = _open_weights(folder, getattr(torch, chosen))
    return LoadedModel(model.to(place).eval(), vocabulary, tokenizer)


def _open_weights(folder: Path, dtype: torch.dtype) -> Any:
    """The network with every tensor from the folder: transformers makes up those it lacks, and says so in a log."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (*_DAMAGE, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: expected weights of a causal language model, found none that open: {error}; copy the folder again"
        ) from error
    model, found = loaded
    faults = sorted({*found["missing_keys"], *(str(one[0]) for one in found["mismatched_keys"])})
    if faults:
        raise CheckpointError(
            f"{folder}: expected every tensor that its config.json describes, found none that fits for "
            f"{', '.join(faults[:_SHOWN])}{' ...' if len(faults) > _SHOWN else ''}; copy the folder again"
        )
    return model


def load_ids(
    folder: Path, *, text_tokenizer: Path | None = None, layout: Path | None = None
) -> tuple[Vocabulary, TextTokenizer]:
    """What the ids of a model folder mean, without reading a weight; arguments and errors of :func:`load_model`."""
    is_export = (folder / VOCABULARY_NAME).is_file()
    if not is_export and (layout is None or not folder.is_dir()):
        raise CheckpointError(
            f"{folder}: expected an exported model with {VOCABULARY_NAME}, found none; finish anygpt-train first, "
            "or give the folder of an AnyGPT checkpoint (docs/published-weights.md)"
        )
    if is_export and text_tokenizer is not None:
        return _bound(folder, text_tokenizer)
    if text_tokenizer is not None:
        raise ConfigError(
            f"text_tokenizer = {text_tokenizer}: expected none beside the published model {folder}, whose own tokenizer "
            "says what its ids mean; leave the key out"
        )
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder}: expected the model's tokenizer (tokenizer.json or tokenizer.model), found neither; give "
            "text_tokenizer, or copy the checkpoint's folder again"
        )
    strings = _NO_STRINGS if layout is None else load_config(layout, VocabularyLayout)
    return vocabulary_from_checkpoint(
        folder, strings, num_embeddings=read_json(folder / "config.json").get("vocab_size")
    )


def _bound(folder: Path, text_tokenizer: Path) -> tuple[Vocabulary, TextTokenizer]:
    vocabulary = Vocabulary.from_json(read_json(folder / VOCABULARY_NAME))
    tokenizer = load_text_tokenizer(text_tokenizer)
    if tokenizer.fingerprint != vocabulary.text_fingerprint:
        raise FingerprintMismatch(
            f"{text_tokenizer}: expected the text tokenizer {vocabulary.text_fingerprint} that {folder} was trained with, "
            f"found {tokenizer.fingerprint}; give the folder it was packed with"
        )
    return vocabulary, tokenizer
