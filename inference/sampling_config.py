"""How ids are drawn, as a config says it; :mod:`inference.sampling` does it. Apart, for that imports torch."""

from __future__ import annotations

from pydantic import Field

from configs.load import Config


class SamplingConfig(Config):
    """How ids of one modality are drawn."""

    temperature: float = Field(default=1.0, ge=0.0)
    """0 takes the likeliest id; with beams, the likeliest hypotheses."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the likeliest so many; 0: among all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw among the likeliest whose probabilities reach this together."""
    repetition_penalty: float = Field(default=1.0, ge=1.0)
    """Logits of ids said before are divided by it, or multiplied where they are negative. Counted are the ids of this
    modality in this answer. ``transformers`` counts the prompt too, where a tune to vary or a voice to keep would be
    pushed away, and markers, so that a second picture would be unlikely to end."""
    num_beams: int = Field(default=1, ge=1)
    """Hypotheses of a text that are kept; a medium is always drawn id by id."""
    length_penalty: float = Field(default=1.0, ge=0.0)
    """Hypotheses are compared by their log-probability over their length to this power."""
