"""How dialogues become media: which plug makes which medium, who speaks, and how the work is cut.

Each of ``pictures``, ``music`` and ``speech`` is a table whose ``plug`` says where its media come from: ``offline``,
``http`` (an endpoint) or ``local`` (weights on this machine; not for speech).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.load import Config


class OfflinePictures(Config):
    """The shapes of the sample corpora; how much two of the same caption differ."""

    plug: Literal["offline"] = "offline"
    jitter_px: float = Field(default=1.0, ge=0, le=4)
    jitter_scale: float = Field(default=0.015, ge=0, le=0.05)
    jitter_shade: int = Field(default=5, ge=0, le=12)


class OfflineMusic(Config):
    """The additive synthesis of the sample corpora."""

    plug: Literal["offline"] = "offline"
    jitter_gain_db: float = Field(default=1.0, ge=0, le=3)


class OfflineSpeech(Config):
    """espeak-ng."""

    plug: Literal["offline"] = "offline"


class Endpoint(Config):
    """A server that makes media, and how it is asked."""

    plug: Literal["http"]
    base_url: str
    """With its version, as clients write it: ``https://HOST/v1``."""
    model: str = ""
    api_key_variable: str = ""
    """The environment variable that holds the key; empty: none is sent. A key is never written into a config."""
    timeout_s: float = Field(default=120.0, gt=0)
    max_tries: int = Field(default=5, ge=1)
    """Of one medium, the first included; then it is rejected."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Before the second try, doubled before each further one; an endpoint's Retry-After is honoured where it is longer."""
    max_backoff_s: float = Field(default=60.0, gt=0)
    concurrency: int = Field(default=8, ge=1)
    """Requests of one worker under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Of one worker; None: no limit."""
    max_bytes: int = Field(default=64 << 20, ge=1024)
    """Longer answers are cut off and rejected."""
    usd_per_item: float = Field(default=0.0, ge=0)
    """What a request costs at most, whatever comes of it."""
    max_usd: float | None = Field(default=None, ge=0)
    """Spent by all runs into one output together; a request that might exceed it is not made, and the run stops."""
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict[str, "str | int | float | bool"])
    """Further fields of the request's body, e.g. ``quality = "hd"``."""

    @model_validator(mode="after")
    def _cap_has_a_price(self) -> Endpoint:
        if self.max_usd is not None and not self.usd_per_item:
            raise ValueError("max_usd: expected a price to count with, found none; set usd_per_item")
        return self


class HttpPictures(Endpoint):
    """OpenAI's images: POST ``/images/generations``."""

    size: str = "1024x1024"
    response_format: Literal["b64_json", "url", ""] = "b64_json"
    """What is asked for; empty: nothing, for models that know no such field."""


class HttpMusic(Endpoint):
    """Any server that takes JSON and gives a sound, as its body or as base64 in a field of JSON."""

    path: str = "/generate"
    text_field: str = "prompt"
    seconds_field: str = "duration"
    answer_field: str = "audio"


class HttpSpeech(Endpoint):
    """OpenAI's speech: POST ``/audio/speech``; the voices are those that ``voices.names`` lists."""


class LocalPictures(Config):
    """A pipeline of diffusers, from a folder."""

    plug: Literal["local"]
    path: Path
    steps: int = Field(default=30, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    size_px: int = Field(default=512, ge=8, multiple_of=8)
    """As it is painted; what is written has 224."""
    batch_size: int = Field(default=8, ge=1)
    device: str = "cuda"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


class LocalMusic(Config):
    """MusicGen by transformers, from a folder."""

    plug: Literal["local"]
    path: Path
    guidance: float = Field(default=3.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=250, ge=1)
    batch_size: int = Field(default=8, ge=1)
    device: str = "cuda"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


PicturesPlug = Annotated[OfflinePictures | HttpPictures | LocalPictures, Field(discriminator="plug")]
MusicPlug = Annotated[OfflineMusic | HttpMusic | LocalMusic, Field(discriminator="plug")]
SpeechPlug = Annotated[OfflineSpeech | HttpSpeech, Field(discriminator="plug")]


class VoicesConfig(Config):
    """Who speaks; one voice and one speed for each side of a dialogue."""

    names: tuple[str, ...] = ()
    """Empty: the 39 of :mod:`synthesis.voices`, which espeak-ng knows. An endpoint needs its own names."""
    assistant: str = ""
    """The one voice of the assistant; empty: a voice a dialogue, as the user has."""
    slowest: float = Field(default=0.85, ge=0.5, le=2.0)
    fastest: float = Field(default=1.2, ge=0.5, le=2.0)

    @model_validator(mode="after")
    def _speeds_are_a_range(self) -> VoicesConfig:
        if self.slowest > self.fastest:
            raise ValueError(f"expected slowest <= fastest, found {self.slowest:g} and {self.fastest:g}")
        return self


class ProvenanceConfig(Config):
    """What the data card says that no count can tell."""

    name: str = "AnyInstruct, synthesized"
    licence: str = ""
    """Of the corpus as a whole, as its makers decide; media of an endpoint have terms of their own."""
    text_source: str = ""
    """What wrote the dialogues: a model and its terms; or the instruction sets and their licences."""
    notes: str = ""


class CorpusMediaConfig(Config):
    """Dialogues into an AnyInstruct corpus."""

    seed: int = 0
    pictures: PicturesPlug = OfflinePictures()
    music: MusicPlug = OfflineMusic()
    speech: SpeechPlug = OfflineSpeech()
    voices: VoicesConfig = VoicesConfig()
    music_s: float = Field(default=5.0, ge=0.5, le=30, multiple_of=0.02)
    """Of every piece of music: a window of Table 1; the tiny route takes 2 s."""
    spoken_share: float = Field(default=1.0, ge=0, le=1)
    """Of the dialogues, those whose words are also said; the paper has all."""
    spoken_rounds: int = Field(default=0, ge=0)
    """Of such a dialogue, the first so many rounds are spoken; 0: all."""
    max_spoken_words: int = Field(default=0, ge=0)
    """A round in which either side says more words than so many stays written; 0: no limit."""
    unit_dialogues: int = Field(default=50, ge=1)
    """Dialogues of one unit of work."""
    run_share: float = Field(default=0.5, gt=0, le=1)
    """Rejected share of the dialogues from which the run stops."""
    retry_rejects: bool = False
    """Do units again in which an endpoint was out of reach; what it answered then is kept."""
    workers: int = Field(default=2, ge=0)
    """Ray workers; 0: this process, without Ray. They decide no byte of the output."""
    worker_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or a fraction of one, that a worker takes; for weights on this machine."""
    address: str = ""
    """Of a running Ray cluster; empty: this machine."""
    provenance: ProvenanceConfig = ProvenanceConfig()

    @model_validator(mode="after")
    def _voices_are_known(self) -> CorpusMediaConfig:
        from synthesis.voices import espeak_voices

        wanted = {*self.voices.names, *([self.voices.assistant] if self.voices.assistant else [])}
        if self.speech.plug == "offline":
            unknown = sorted(wanted - set(espeak_voices()))
            if unknown:
                raise ValueError(
                    f"voices: expected names that espeak-ng has here (american-f1 ...), found {unknown[0]!r}"
                )
        elif not self.voices.names:
            raise ValueError("voices.names: expected the names of the endpoint's voices, found none")
        return self
