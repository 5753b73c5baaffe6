"""A LLaMA's sizes, as a config gives them and as a folder has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from train.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """A LLaMA's sizes."""

    vocabulary_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tied: bool

    @property
    def num_parameters(self) -> int:
        """Embeddings included."""
        head_dim = self.hidden_size // self.num_heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * head_dim * self.num_key_value_heads
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = (1 if self.tied else 2) * self.vocabulary_size * self.hidden_size
        return embeddings + self.num_layers * layer + self.hidden_size


LLAMA_2_7B = Shape(32_000, 4096, 32, 32, 32, 11_008, False)
"""Touvron et al. 2023, arXiv:2307.09288; what a run starts from when nothing else is said."""

SHAPE_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
}
"""Keys of ``[model]`` and what transformers' ``config.json`` calls them."""


def check_expected_shape(model: ModelConfig, found: dict[str, Any], path: Path) -> None:
    """Refuse a folder that is of another shape than ``[model]`` says.

    Args:
        found: the folder's ``config.json``.
        path: of that file.

    Raises:
        ConfigError: naming the key.
    """
    for key, name in SHAPE_KEYS.items():
        value = getattr(model, key)
        there = _there(found, name)
        if key in model.model_fields_set and value is not None and there != value:
            raise ConfigError(
                f"key 'model.{key}': expected the model of 'init.from' to have {value}, as the config says, found {there} "
                f"in {path}; give the folder that was meant, or correct or remove the key"
            )


def shape_of_model(model: ModelConfig, vocabulary_size: int) -> Shape:
    """Of a backbone made from ``[model]``."""
    heads = model.num_key_value_heads or model.num_heads
    sizes = (model.hidden_size, model.num_layers, model.num_heads, heads, model.intermediate_size)
    return Shape(vocabulary_size, *sizes, model.tie_embeddings)


def shape_of_folder(found: dict[str, Any], vocabulary_size: int) -> Shape:
    """Of the backbone in a folder, from its ``config.json``, grown to the vocabulary."""
    return Shape(
        max(vocabulary_size, found["vocab_size"]),
        found["hidden_size"],
        found["num_hidden_layers"],
        found["num_attention_heads"],
        _there(found, "num_key_value_heads"),
        found["intermediate_size"],
        _there(found, "tie_word_embeddings"),
    )


def padded(shape: Shape, multiple: int) -> Shape:
    """With as many rows of embedding and head as the next multiple."""
    return replace(shape, vocabulary_size=-(-shape.vocabulary_size // multiple) * multiple)


def _there(found: dict[str, Any], name: str) -> Any:
    if name == "num_key_value_heads":
        return found.get(name) or found["num_attention_heads"]
    return bool(found.get(name, False)) if name == "tie_word_embeddings" else found[name]
