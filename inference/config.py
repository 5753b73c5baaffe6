"""What a file in ``configs/inference`` holds: a model, how it is spoken to, and the codecs both ways.

One file serves ``anygpt-generate``, ``anygpt-chat`` and the web page. Paths are relative to the working directory, as in
every config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from configs.load import Config
from pipeline.media import MediaConfig, WindowConfig
from shards.errors import ConfigError
from shards.modality import Modality

SPOKEN_OF = (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)
"""Media a model is asked for. The fourth block of the published vocabulary was never trained (anygpt-compat U-18)."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class InferenceConfig(Config):
    """A model that can be asked."""

    model: Path
    """A folder: ``checkpoints/final`` of a run, or a published AnyGPT checkpoint."""
    text_tokenizer: Path | None = None
    """Folder of the text tokenizer; None: the model's own folder."""
    layout: Path = Path("configs/vocabulary/anygpt-released.toml")
    """The strings to look for in a checkpoint without ``vocabulary.json``; which ids they have, its own files say."""
    templates: Path = Path("configs/templates")
    dialogue_preset: str | None = None
    """The form of a chat, a table of ``dialogue.toml``; None: the one that file chooses."""
    codecs: dict[Modality, Path] = Field(default_factory=dict[Modality, Path])
    """For ``image``, ``speech`` and ``music``: a fitted compact file, or a config in ``configs/tokenizers``."""
    vocoder: Path | None = None
    """A config in ``configs/vocoders``: fills the levels of speech that the model does not write, in a voice of choice."""
    decoding: Path = Path("configs/decoding/greedy.toml")
    output: Path = Path("runs/generated")
    device: str = "auto"
    dtype: Dtype = "auto"
    """Of the weights; auto: float32 on a CPU, bfloat16 on a GPU."""
    seed: int = Field(default=0, ge=0)
    instruction: str | None = None
    """Asked with instead of one drawn from the templates."""
    examples: tuple[str, ...] = ()
    """Things to say to this model, which the chats offer; a small one understands little else."""
    batch_size: int = Field(default=32, ge=1)
    """Tasks that are answered at once; an answer does not depend on it."""
    media: MediaConfig = MediaConfig()
    """How files are read."""
    windows: WindowConfig = WindowConfig()
    """Of music, the first window is heard, from its start."""

    @field_validator("codecs")
    @classmethod
    def _only_known(cls, codecs: dict[Modality, Path]) -> dict[Modality, Path]:
        if strange := sorted(set(codecs) - set(SPOKEN_OF)):
            raise ValueError(f"expected codecs for {', '.join(SPOKEN_OF)}, found one for {strange[0]}; leave it out")
        return codecs

    def codec(self, modality: Modality) -> Path:
        """The file of a codec.

        Raises:
            ConfigError: none is set, or no such file; names the key.
        """
        if modality not in self.codecs:
            raise ConfigError(
                f"codecs.{modality}: expected a codec, found none in the config; set it, e.g. "
                f"--set codecs.{modality}=data/tokenizers/compact.safetensors"
            )
        path = self.codecs[modality]
        if not path.exists():
            raise ConfigError(
                f"codecs.{modality} = {path}: expected a fitted codec or a config in configs/tokenizers, found nothing "
                f"there; fit one with anygpt-fit, or set codecs.{modality} to one that is there"
            )
        return path
