"""What a doctor would ask of published weights, before a night of tokenizing depends on them.

Reads: a corpus config (each of its tokenizers), a codec config, a compact file, a vocoder config, or a training config that
starts from a folder. For each codec: are the files there, whole, and weights at all (:mod:`inference.doctor_files`)? Do they
load strictly, key by key? Then one made-up sample goes through and back: is the rate that of Table 1, are the codes in
range, does a sample have the same codes alone and in a batch of three, and does what comes back have the right length?

Nothing here prints. What is wrong is a line of a :class:`Diagnosis`, never an exception: a broken file is what people came
to hear about. Only a config that is wrong itself raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load_config, read_toml
from inference.diagnosis import Check, Diagnosis, Examination, attempt
from inference.doctor_model import diagnose_start
from inference.doctor_trials import try_codec
from inference.doctor_vocoder import diagnose_vocoder
from inference.vocoder import VocoderConfig
from pipeline.tokenizers import compact
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from pipeline.tokenizers.codecs import WeightFile, codec_weight_files, read_codec_config
from pipeline.tokenizers.weights import CodecOptions, choose_device
from shards.errors import ConfigError, TokenizerError
from shards.modality import Modality
from tokenize_jobs.plan import TokenizeConfig

_CPU_STEPS = 2
"""Steps of painting a picture on a CPU: the question is whether it runs, and 20 steps take half an hour there."""


@dataclass(frozen=True, slots=True)
class CodecSubject:
    """A codec that is to be diagnosed.

    Attributes:
        modality: None for a compact file that cannot be read, so that nobody knows.
        options: None for a compact file, which has none.
    """

    modality: Modality | None
    name: str
    source: Path
    files: tuple[WeightFile, ...]
    options: CodecOptions | None
    load: Callable[[], MediaTokenizer]
    load_back: Callable[[], MediaDetokenizer]


def diagnose(path: Path, overrides: tuple[str, ...] = (), *, examination: Examination) -> Iterator[Diagnosis]:
    """One diagnosis for each codec, vocoder or model that a config names, each as soon as it is known.

    Raises:
        ConfigError: the config is wrong, names another that is, or asks for a device that is not there; all of it before
            the first diagnosis.
    """
    table = read_toml(path) if path.suffix == ".toml" else {"codec": ""}
    if "mixture" in table or "init" in table:
        # Before the vocoder's key: a training config of SoundStorm has a table of that name.
        return diagnose_start(path, overrides, examination)
    if "soundstorm" in table:
        return _vocoder(path, overrides, examination)
    if "corpus" in table:
        subjects = _corpus_subjects(path, overrides)
    elif "codec" in table:
        subjects = codec_subjects(path, overrides)
    else:
        raise ConfigError(
            f"{path}: expected a config of a corpus (key 'corpus'), codec ('codec'), vocoder ('soundstorm') or training "
            f"run ('mixture'), found the keys {', '.join(sorted(table)) or 'none'}; name one of those, or a compact file"
        )
    return (diagnose_codec(subject, examination) for subject in subjects)


def diagnose_codec(subject: CodecSubject, examination: Examination) -> Diagnosis:
    """Files, keys and one sample there and back."""
    files = examination.files(subject.files)
    title = subject.name if subject.modality is None else f"{subject.modality}: {subject.name}"
    setting = setting_of(subject.options)
    if any(file.stops for file in files if file.required):
        check = Check("skipped", "loads", "a file it needs is missing or wrong; see above")
        return Diagnosis(title, subject.source, setting, files, (check,))
    codec, check = attempt("loads", subject.load)
    if codec is None:
        return Diagnosis(title, subject.source, setting, files, (check,))
    checks = [Check("ok", "loads", "strictly: every tensor is there, of its shape")]
    if examination.run:
        absent = [f"{file.option} ({file.published_as})" for file in files if not file.required and file.status != "ok"]
        precision = "fp32" if subject.options is None else subject.options.precision
        checks += try_codec(codec, subject.load_back, precision=precision, absent=absent)
    ignored = tuple(getattr(codec, "ignored_keys", ()))
    return Diagnosis(title, subject.source, setting, files, tuple(checks), codec.fingerprint, ignored)


def setting_of(options: CodecOptions | None) -> str:
    """Device and precision in words."""
    if options is None:
        return "on cpu, in whole numbers"
    return f"on {choose_device(options.device)}, precision {options.precision}{', compiled' if options.compile else ''}"


def codec_subjects(path: Path, overrides: tuple[str, ...] = (), modality: Modality | None = None) -> list[CodecSubject]:
    """What a codec config or a compact file means: one codec, or one for each modality of a compact file.

    Args:
        modality: what it is wanted for; None: whatever it is.

    Raises:
        ConfigError: no such config, codec, option or device; or a codec of another modality.
    """
    if path.suffix != ".toml":
        return _compact_subjects(path, modality)
    module, options = read_codec_config(path, overrides)
    if modality is not None and module.MODALITY is not modality:
        raise ConfigError(f"tokenizers.{modality} = {path}: expected a codec for {modality}, found {module.MODALITY}")
    back_options: Any = options
    if choose_device(options.device).type == "cpu" and "steps" in type(options).model_fields:
        back_options = options.model_copy(update={"steps": min(_CPU_STEPS, getattr(options, "steps", _CPU_STEPS))})
    name = module.__name__.rpartition(".")[2]
    files = tuple(module.weight_files(options))
    return [
        CodecSubject(
            module.MODALITY,
            name,
            path,
            files,
            options,
            lambda: module.load(options),
            lambda: module.load_detokenizer(back_options),
        )
    ]


def _vocoder(path: Path, overrides: tuple[str, ...], examination: Examination) -> Iterator[Diagnosis]:
    config = load_config(path, VocoderConfig, overrides)
    choose_device(config.device)
    subjects = codec_subjects(config.codec, modality=Modality.SPEECH)

    def codecs() -> list[Diagnosis]:
        return [diagnose_codec(subject, examination) for subject in subjects]

    return diagnose_vocoder(config, path, examination, diagnose_codecs=codecs)


def _corpus_subjects(path: Path, overrides: tuple[str, ...]) -> list[CodecSubject]:
    config = load_config(path, TokenizeConfig, overrides)
    if not config.tokenizers:
        raise ConfigError(f"{path}: expected [tokenizers], found none: this corpus has no media, nothing to look at")
    return [
        subject for modality, codec in config.tokenizers.items() for subject in codec_subjects(codec, modality=modality)
    ]


def _compact_subjects(path: Path, modality: Modality | None) -> list[CodecSubject]:
    if modality is not None:
        return [_compact_subject(path, modality)]
    try:
        return [_compact_subject(path, one) for one in sorted(compact.read_family_info(path).fingerprints)]
    except (TokenizerError, OSError):
        # The reason is found again, and said, when it is examined.
        return [_compact_subject(path, None)]


def _compact_subject(path: Path, modality: Modality | None) -> CodecSubject:
    def load() -> compact.MediaCodec:
        if modality is None:
            compact.read_family_info(path)
            raise TokenizerError(f"{path}: expected codecs, found none")
        return compact.load_codec(path, modality)

    return CodecSubject(modality, "compact", path, tuple(codec_weight_files(path)), None, load, load)
