"""How answers are decoded: for each modality, how its ids are drawn and how many an answer may have.

A preset is a file in ``configs/decoding``: ``paper.toml`` (AnyGPT Table 9), ``released.toml`` (what the released code's
JSON files come to), ``greedy.toml``. One answer may hold several modalities; each of its ids is drawn as its own says.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from configs.load import Config, load_config
from inference.grammar import LengthBudget
from inference.sampling import SamplingConfig
from shards.vocabulary import Modality, Vocabulary


class ModalityDecoding(SamplingConfig):
    """One modality: how its ids are drawn, and how many there are. Markers are not counted."""

    min_new_tokens: int = Field(default=1, ge=1)
    """Fewest ids. An end marker is not allowed before."""
    max_new_tokens: int = Field(default=1000, ge=1)
    """Most ids. A sound of several levels has as many whole frames as fit; a picture always has its 32."""

    @model_validator(mode="after")
    def _fits(self) -> ModalityDecoding:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"expected min_new_tokens up to max_new_tokens {self.max_new_tokens}")
        return self


class DecodingConfig(Config):
    """A preset."""

    modality: dict[Modality, ModalityDecoding] = Field(default_factory=dict[Modality, ModalityDecoding])
    """A modality without a table is decoded as ``fallback`` says."""
    fallback: ModalityDecoding = ModalityDecoding()
    chat_text: ModalityDecoding | None = None
    """Text of a chat's turn, where it differs from text that is the whole answer."""

    def of(self, modality: Modality, *, chat: bool = False) -> ModalityDecoding:
        """What holds for a modality."""
        if chat and modality == Modality.TEXT and self.chat_text is not None:
            return self.chat_text
        return self.modality.get(modality, self.fallback)

    def sampling(self, *, chat: bool = False) -> dict[Modality, SamplingConfig]:
        """How ids of every modality are drawn: what ``generate`` takes."""
        return {modality: self.of(modality, chat=chat) for modality in Modality}

    def budget(self, modality: Modality, vocabulary: Vocabulary) -> LengthBudget:
        """Frames of a medium, or ids of a text, that an answer must and may have."""
        decoding = self.of(modality)
        if modality == Modality.TEXT:
            return LengthBudget(decoding.min_new_tokens, decoding.max_new_tokens)
        if not modality.is_sound:
            return LengthBudget(modality.rate.num_frames, modality.rate.num_frames)
        levels = vocabulary.block(modality).levels
        most = max(decoding.max_new_tokens // levels, 1)
        return LengthBudget(min(-(-decoding.min_new_tokens // levels), most), most)


def load_decoding(path: Path) -> DecodingConfig:
    """Read a preset.

    Raises:
        ConfigError: no such file, or a key or value that is none.
    """
    return load_config(path, DecodingConfig)
