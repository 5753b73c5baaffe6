"""A model that can be asked, with everything around it: vocabulary, templates, codecs both ways, decoding.

Codecs are opened when they are first needed, so a model that only draws needs no speech codec. One runtime serves any
number of answers and keeps nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.load import load_config
from inference.config import InferenceConfig
from inference.decoding import DecodingConfig, load_decoding
from inference.generation import Request, generate
from inference.grammar import AnswerGrammar, LengthBudget
from inference.media_in import decode_file
from inference.model import LoadedModel, load_model
from inference.vocoder import SoundStormVocoder, VocoderConfig, encode_prompt, load_vocoder, read_prompt
from pipeline.media import check_front_end
from pipeline.pieces import write_token_ids
from pipeline.rendering import custom_prompt_pieces, prompt_token_ids
from pipeline.templates import DialoguePreset, Templates, load_templates
from pipeline.text import TextTokenizer
from pipeline.tokenization import Clip, check_rate
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer, Medium
from pipeline.tokenizers.codecs import open_detokenizer, open_tokenizer
from shards.errors import ConfigError, SampleError
from shards.modality import Modality
from shards.records import Segment
from shards.vocabulary import Codes, TokenIds, Vocabulary

_END = 1


@dataclass(slots=True)
class Runtime:
    """An opened model; see :func:`open_runtime`."""

    config: InferenceConfig
    loaded: LoadedModel
    templates: Templates
    decoding: DecodingConfig
    _vocoder: SoundStormVocoder | None = field(default=None, repr=False)

    @property
    def model(self) -> Any:
        """The causal language model, in eval mode."""
        return self.loaded.model

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's ids mean."""
        return self.loaded.vocabulary

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Text to ids and back."""
        return self.loaded.text_tokenizer

    @property
    def preset(self) -> DialoguePreset:
        """The form of a chat."""
        return self.templates.preset

    @property
    def max_length(self) -> int:
        """Positions the model was made for; longer sequences rely on its rotary embedding."""
        return int(getattr(self.model.config, "max_position_embeddings", 0)) or 1 << 31

    def encode(self, path: Path, modality: Modality | None = None) -> Segment:
        """A file as codes; what it is, its content says.

        Args:
            modality: what it is asked about as; None: a picture.

        Raises:
            SampleError: not there, damaged, or something else than was said; names the file.
            ConfigError: no codec for it.
        """
        found, clip = decode_file(path, modality, media=self.config.media, windows=self.config.windows)
        return self.encode_clips(found, [clip])[0]

    def encode_clips(self, modality: Modality, clips: Sequence[Clip]) -> list[Segment]:
        """Decoded media as codes, held to Table 1."""
        codec = self.tokenizer(modality)
        codes = codec.encode([clip.medium for clip in clips]) if clips else []
        return [_segment(modality, clip, one) for clip, one in zip(clips, codes, strict=True)]

    def decode(self, modality: Modality, codes: Codes, *, voice: Path | None = None) -> Medium:
        """What codes look or sound like: (224, 224, 3) uint8, or (samples,) float32 at :meth:`sample_rate_hz`."""
        return self.decode_all(modality, [codes], voice=voice)[0]

    def decode_all(self, modality: Modality, codes: Sequence[Codes], *, voice: Path | None = None) -> list[Medium]:
        """:meth:`decode` for several at once.

        Args:
            voice: a sound file in whose voice speech is spoken; needs a vocoder.

        Raises:
            ConfigError: no codec, or a voice without a vocoder.
            TokenizerError: the voice is no sound.
        """
        if modality is Modality.SPEECH and (voice is not None or self.config.vocoder is not None):
            return self._speak(codes, None if voice is None else self.voice(voice))
        return self.detokenizer(modality).decode(codes) if codes else []

    def sample_rate_hz(self, modality: Modality) -> int:
        """Of the waves that :meth:`decode` gives; 0 for pictures."""
        if modality is Modality.SPEECH and self.config.vocoder is not None:
            return self._opened_vocoder().sample_rate_hz
        return self.detokenizer(modality).sample_rate_hz

    def tokenizer(self, modality: Modality) -> MediaTokenizer:
        """The codec in."""
        codec = open_tokenizer(self.config.codec(modality), modality)
        check_front_end(self.config.media, {modality: codec})
        return codec

    def detokenizer(self, modality: Modality) -> MediaDetokenizer:
        """The codec out, without a vocoder."""
        return open_detokenizer(self.config.codec(modality), modality)

    def voice(self, path: Path) -> Codes:
        """(frames, levels) codes of a voice prompt.

        Raises:
            ConfigError: no vocoder in the config.
            TokenizerError: no sound in that file.
        """
        if self.config.vocoder is None:
            raise ConfigError(
                f"voice prompt {path}: expected a vocoder to speak in its voice, found none in the config; set vocoder, "
                "e.g. --set vocoder=configs/vocoders/soundstorm.toml, or leave the voice out"
            )
        settings = load_config(self.config.vocoder, VocoderConfig)
        codec = open_tokenizer(settings.codec, Modality.SPEECH)
        return encode_prompt(codec, read_prompt(path, codec.sample_rate_hz, prompt_s=settings.prompt_s))

    def prompt_ids(
        self, direction: str, *, instruction: str, text: str | None = None, medium: Segment | None = None
    ) -> TokenIds:
        """(n,) ids of the prompt of a task, up to and with the start marker of the medium that is wanted.

        Exactly the first ids of the row that packing writes of the same sample.

        Args:
            direction: ``image_to_text`` and so on; ``text_to_text`` asks in the user's own words alone.
        """
        if direction == "text_to_text":
            pieces = custom_prompt_pieces(text or "")
            return write_token_ids(pieces, self.vocabulary, self.text_tokenizer, complete=False).token_ids
        return prompt_token_ids(
            direction, self.vocabulary, self.text_tokenizer, instruction=instruction, text=text, medium=medium
        )

    def budget(self, modality: Modality, num_prompt_ids: int) -> LengthBudget:
        """How long an answer to a prompt may be: as the preset says, and within the positions that are left.

        Raises:
            SampleError: ``prompt_too_long``: not even the shortest answer fits.
        """
        budget = self.decoding.budget(modality, self.vocabulary)
        levels = 1 if modality is Modality.TEXT else self.vocabulary.block(modality).levels
        least = max(budget.least, 1)
        most = min(budget.most, (self.max_length - num_prompt_ids - _END) // levels)
        if most < least:
            raise SampleError(
                "prompt_too_long",
                f"expected a prompt of at most {self.max_length - least * levels - _END} ids, which leaves room for an "
                f"answer in the {self.max_length} the model was made for, found {num_prompt_ids}; shorten what is asked",
            )
        return LengthBudget(budget.least, most)

    def answer(self, modality: Modality, requests: Sequence[Request]) -> list[list[int]]:
        """The ids of answers of one modality, markers left out, in the order of the requests.

        Raises:
            SampleError: a prompt that leaves no room; see :meth:`budget`.
        """
        budgets = [self.budget(modality, len(request.prompt_ids)) for request in requests]
        answers: dict[int, list[int]] = {}
        for budget in dict.fromkeys(budgets):
            places = [place for place, one in enumerate(budgets) if one == budget]
            generated = generate(
                self.model,
                [requests[place] for place in places],
                AnswerGrammar(self.vocabulary, modality, budget),
                self.decoding.of(modality),
                seed=self.config.seed,
                batch_size=self.config.batch_size,
            )
            answers |= dict(zip(places, generated, strict=True))
        return [answers[place] for place in range(len(requests))]

    def codes_of(self, modality: Modality, ids: Sequence[int]) -> Codes:
        """(frames, levels) codes of an answer."""
        return self.vocabulary.block(modality).to_codes(np.array(ids, np.int64))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of an answer, without white space around it."""
        return self.text_tokenizer.decode([one for one in ids if one < self.vocabulary.text_size]).strip()

    def _opened_vocoder(self) -> SoundStormVocoder:
        if self._vocoder is None:
            assert self.config.vocoder is not None
            self._vocoder = load_vocoder(self.config.vocoder)
        return self._vocoder

    def _speak(self, codes: Sequence[Codes], voice: Codes | None) -> list[Medium]:
        vocoder = self._opened_vocoder()
        usual = vocoder.prompt
        vocoder.prompt = usual if voice is None else voice
        try:
            return vocoder.decode(codes) if codes else []
        finally:
            vocoder.prompt = usual


def open_runtime(config: InferenceConfig) -> Runtime:
    """Load a model and read what is said around it; codecs are opened when they are needed.

    Raises:
        ConfigError: templates, decoding or device are wrong, or a chat form that there is not.
        CheckpointError, DatasetError, FingerprintMismatch, TokenizerError: as :func:`inference.model.load_model`.
    """
    decoding = load_decoding(config.decoding)
    overrides = () if config.dialogue_preset is None else (f"preset={config.dialogue_preset}",)
    templates = load_templates(config.templates, overrides)
    loaded = load_model(
        config.model,
        text_tokenizer=config.text_tokenizer,
        layout=config.layout,
        device=config.device,
        dtype=config.dtype,
    )
    return Runtime(config, loaded, templates, decoding)


def _segment(modality: Modality, clip: Clip, codes: Codes) -> Segment:
    check_rate(modality, codes, len(clip.medium))
    duration_s = len(clip.medium) / modality.rate.sample_rate_hz if modality.is_sound else None
    return Segment(str(modality), modality, codes=codes, duration_s=duration_s, media_sha256=clip.media_sha256)
