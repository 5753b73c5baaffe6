"""Fit the ``compact`` family on any corpora, and measure it on others.

The same corpora, config and code give the same file, byte for byte. The file remembers for each modality what it was
fitted on; what has not changed is kept, and a finished fit is not repeated. Quality is measured on the held-out corpora
of the config and written beside the file, ``NAME.report.json``::

    image_psnr_db                        decoded against true pictures
    speech_mel, music_mel                log-mel distance in dB, decoded against true sound
    speech_mel_shuffled, ...             the same figure for decoded sound against another item's: what chance gives
    speech_mel_level1                    from level 1 alone, as the language model writes it
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field, model_validator

from configs.load import Config, load_config
from pipeline.corpus import CorpusConfig
from pipeline.tokenizers import compact_image, compact_music, compact_speech
from pipeline.tokenizers.base import Medium, Picture, Wave
from pipeline.tokenizers.chosen_media import ChosenMedia, choose_media, source_facts
from pipeline.tokenizers.compact import MediaCodec, Tensors, load_codec, read_family_info, read_tensors, save_family
from pipeline.tokenizers.quality import log_mel_distance, psnr_db
from shards.errors import TokenizerError
from shards.manifest import fingerprint
from shards.vocabulary import Modality
from shards.writer import commit_bytes

FIT_VERSION = 1
"""Raised whenever the same media would give other tensors or another report."""

_KEYS = "fit_keys"
_BEST_PSNR_DB = 99.0


class ModalityFitConfig(Config):
    """What one modality's codec is fitted and measured on."""

    corpora: tuple[Path, ...] = Field(min_length=1)
    """Corpus configs to draw from."""
    items: int = Field(600, ge=1)
    heldout: tuple[Path, ...] = ()
    """Corpus configs to measure on; none: no figures for this modality."""
    heldout_items: int = Field(48, ge=2)
    """At least two, for the shuffled pairing."""
    max_s: float = Field(10.0, gt=0)
    """Longer sounds are cut to this."""


class FitConfig(Config):
    """The file behind ``anygpt-fit CONFIG``; a section for each modality that shall have a codec."""

    output: Path
    """The family file, e.g. ``compact.safetensors``."""
    sample_corpora: Path | None = None
    """Config of the sample corpora, if these are what is fitted on; a command that needs the codecs renders them first."""
    seed: int = 0
    image: ModalityFitConfig | None = None
    speech: ModalityFitConfig | None = None
    music: ModalityFitConfig | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> FitConfig:
        if not self.sections():
            raise ValueError("expected one of the sections [image], [speech], [music]")
        return self

    def sections(self) -> dict[Modality, ModalityFitConfig]:
        """The modalities to fit."""
        named = {Modality.IMAGE: self.image, Modality.SPEECH: self.speech, Modality.MUSIC: self.music}
        return {modality: section for modality, section in named.items() if section is not None}

    def limited(self, limit: int | None) -> FitConfig:
        """The same fit on at most ``limit`` items a modality."""
        if limit is None:
            return self
        sections = {
            str(modality): section.model_copy(
                update={
                    "items": min(section.items, max(limit, 1)),
                    "heldout_items": min(section.heldout_items, max(limit, 2)),
                }
            )
            for modality, section in self.sections().items()
        }
        return self.model_copy(update=sections)


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What there is to do.

    Attributes:
        keys: by modality, what its codec is fitted and measured on, as a fingerprint.
        kept: modalities whose codec in the output file is the one wanted.
        is_done: nothing to do: the file and its report are there, for exactly these modalities.
    """

    config: FitConfig
    keys: Mapping[Modality, str]
    kept: tuple[Modality, ...]
    is_done: bool


def plan_fit(config: FitConfig) -> FitPlan:
    """Compare the output with what the config asks for.

    Raises:
        ConfigError, CorpusError: a corpus config, or the corpus itself, is not there.
    """
    keys = {modality: _key(config, modality, section) for modality, section in config.sections().items()}
    found = _keys_in_file(config.output)
    kept = tuple(modality for modality, key in keys.items() if found.get(str(modality)) == key)
    is_done = found == {str(modality): key for modality, key in keys.items()} and report_path(config.output).is_file()
    return FitPlan(config, keys, kept, is_done)


def run_fit(plan: FitPlan, *, say: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Fit what is not kept, write file and report, return the report.

    Args:
        say: gets one line per step.
    """
    config = plan.config
    if plan.is_done:
        return cast(dict[str, Any], json.loads(report_path(config.output).read_text(encoding="utf-8")))
    started = time.monotonic()
    tensors: dict[Modality, Tensors] = {}
    for modality, section in config.sections().items():
        if modality in plan.kept:
            say(f"{modality}: already fitted")
            tensors[modality] = read_tensors(config.output, modality)
        else:
            tensors[modality] = _fit_one(modality, section, config.seed, say)
    header = {"seed": config.seed, _KEYS: {str(modality): key for modality, key in plan.keys.items()}}
    header |= {str(name): section.model_dump(mode="json") for name, section in config.sections().items()}
    # Without its old report a new file is unfinished; measuring may be interrupted.
    report_path(config.output).unlink(missing_ok=True)
    info = save_family(config.output, tensors, config=header)
    report: dict[str, Any] = {}
    for modality, section in config.sections().items():
        report |= _measure_one(load_codec(config.output, modality), section, config.seed, say)
    report |= {"fingerprints": {str(modality): one for modality, one in info.fingerprints.items()}}
    report |= {"seconds": round(time.monotonic() - started, 1)}
    commit_bytes(report_path(config.output), (json.dumps(report, indent=1) + "\n").encode())
    return report


def report_path(output: Path) -> Path:
    """``compact.report.json`` beside ``compact.safetensors``."""
    return output.with_suffix(".report.json")


def measure(codec: MediaCodec, media: Sequence[Medium]) -> dict[str, float]:
    """Held-out figures of one codec, named as in the report.

    Args:
        media: two items at least; each item's shuffled partner is the one before it.
    """
    codes = codec.encode(media)
    decoded = codec.decode(codes)
    if codec.modality is Modality.IMAGE:
        pairs = zip(cast(Sequence[Picture], media), cast(Sequence[Picture], decoded), strict=True)
        # A picture that comes back exactly has no finite figure.
        return {"image_psnr_db": _mean([min(psnr_db(a, b), _BEST_PSNR_DB) for a, b in pairs])}
    name = f"{codec.modality}_mel"
    figures = {name: _distance(media, decoded, codec), f"{name}_shuffled": _distance(media, _turned(decoded), codec)}
    if codec.modality is Modality.SPEECH:
        first = codec.decode([one[:, :1] for one in codes])
        figures[f"{name}_level1"] = _distance(media, first, codec)
    return figures


def _fit_one(modality: Modality, section: ModalityFitConfig, seed: int, say: Callable[[str], None]) -> Tensors:
    started = time.monotonic()
    chosen = _draw(section.corpora, modality, section.items, section, seed)
    drawn = time.monotonic()
    say(f"{modality}: {_described(chosen)} from {len(section.corpora)} corpora in {drawn - started:.1f} s")
    tensors = _FITTERS[modality](chosen.media, seed)
    say(f"{modality}: fitted in {time.monotonic() - drawn:.1f} s")
    return tensors


def _measure_one(
    codec: MediaCodec, section: ModalityFitConfig, seed: int, say: Callable[[str], None]
) -> dict[str, float]:
    if not section.heldout:
        return {}
    chosen = _draw(section.heldout, codec.modality, section.heldout_items, section, seed)
    figures = {name: round(value, 3) for name, value in measure(codec, chosen.media).items()}
    say(f"{codec.modality}: on {len(chosen.media)} held-out items " + ", ".join(f"{k} {v}" for k, v in figures.items()))
    return figures


def _draw(paths: Sequence[Path], modality: Modality, count: int, section: ModalityFitConfig, seed: int) -> ChosenMedia:
    corpora = [load_config(path, CorpusConfig) for path in paths]
    return choose_media(corpora, modality, count, seed=seed, max_s=section.max_s)


def _described(chosen: ChosenMedia) -> str:
    undecodable = f" ({chosen.num_undecodable} more could not be decoded)" if chosen.num_undecodable else ""
    return f"{len(chosen.media):,} items{undecodable}"


def _fit_image(media: Sequence[Medium], _seed: int) -> Tensors:
    return compact_image.fit_image(np.stack(cast(Sequence[Picture], media)))


def _fit_speech(media: Sequence[Medium], seed: int) -> Tensors:
    return compact_speech.fit_speech(cast(Sequence[Wave], media), seed=seed)


def _fit_music(media: Sequence[Medium], seed: int) -> Tensors:
    return compact_music.fit_music(cast(Sequence[Wave], media), seed=seed)


_FITTERS: Mapping[Modality, Callable[[Sequence[Medium], int], Tensors]] = {
    Modality.IMAGE: _fit_image,
    Modality.SPEECH: _fit_speech,
    Modality.MUSIC: _fit_music,
}
_CODE_VERSIONS: Mapping[Modality, int] = {
    Modality.IMAGE: compact_image.CODE_VERSION,
    Modality.SPEECH: compact_speech.CODE_VERSION,
    Modality.MUSIC: compact_music.CODE_VERSION,
}


def _key(config: FitConfig, modality: Modality, section: ModalityFitConfig) -> str:
    """Everything that decides a modality's tensors and figures: config, code, and the state of the corpora."""
    corpora = [load_config(path, CorpusConfig) for path in (*section.corpora, *section.heldout)]
    read = {"corpus", "split", "name", "options", "media", "windows", "filters"}
    facts = {
        "versions": [FIT_VERSION, _CODE_VERSIONS[modality]],
        "seed": config.seed,
        "section": section.model_dump(mode="json", exclude={"corpora", "heldout"}),
        "num_heldout": len(section.heldout),
        "corpora": [corpus.model_dump(mode="json", include=read) for corpus in corpora],
        "sources": [source_facts(corpus) for corpus in corpora],
    }
    return fingerprint(facts)


def _keys_in_file(output: Path) -> dict[str, str]:
    """Keys by modality of an earlier fit; empty if there is no file that this code can go on from."""
    try:
        return dict(read_family_info(output).config.get(_KEYS, {}))
    except TokenizerError:
        return {}


def _distance(truth: Sequence[Medium], decoded: Sequence[Medium], codec: MediaCodec) -> float:
    pairs = zip(truth, decoded, strict=True)
    return _mean([log_mel_distance(cast(Wave, a), cast(Wave, b), codec.sample_rate_hz) for a, b in pairs])


def _turned(media: Sequence[Medium]) -> list[Medium]:
    return [media[-1], *media[:-1]]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
