"""A vocoder config: its speech codec first, then SoundStorm's own files, and one made-up voice said again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from inference.diagnosis import Check, Diagnosis, Examination, attempt
from inference.doctor_media import made_up_media
from inference.doctor_trials import TOLERATED, check_batch, check_medium, check_speed
from inference.vocoder import SoundStormVocoder, VocoderConfig, load_vocoder, weight_files
from pipeline.tokenizers.codecs import codec_weight_files, open_tokenizer
from pipeline.tokenizers.weights import choose_device
from shards.modality import Modality
from shards.vocabulary import Codes


def diagnose_vocoder(
    config: VocoderConfig, path: Path, examination: Examination, *, diagnose_codecs: Callable[[], list[Diagnosis]]
) -> Iterator[Diagnosis]:
    """The codec, then the vocoder, which is only tried with a codec that is well.

    Args:
        path: where the config was read.
        diagnose_codecs: looks at the config's speech codec.
    """
    setting = f"on {choose_device(config.device)}, precision {config.precision}"
    codecs = diagnose_codecs()
    yield from codecs
    own = weight_files(config)[: -len(codec_weight_files(config.codec))]
    files = examination.files(own)
    checks: list[Check] = []
    if any(file.stops for file in files) or not all(codec.is_well for codec in codecs):
        checks.append(Check("skipped", "loads", "a file it needs, or its codec, is missing or wrong; see above"))
    else:
        vocoder, check = attempt("loads", lambda: load_vocoder(config))
        if vocoder is None:
            checks.append(check)
        else:
            checks.append(Check("ok", "loads", "strictly: every tensor is there, of its shape"))
            checks += try_vocoder(vocoder, config) if examination.run else []
    yield Diagnosis("speech: soundstorm", path, setting, files, tuple(checks))


def try_vocoder(vocoder: SoundStormVocoder, config: VocoderConfig) -> list[Check]:
    """First-level codes of three made-up voices, filled alone and in a batch, and one of them made into sound."""
    spoken, check = attempt("codes", lambda: _first_levels(config.codec))
    if spoken is None:
        return [check]
    together, check = attempt("levels", lambda: vocoder.fill(spoken))
    if together is None:
        return [check]
    started = time.perf_counter()
    waves, check = attempt("sound", lambda: vocoder.decode(spoken[:1]))
    seconds = time.perf_counter() - started
    if waves is None:
        return [check]
    checks = [check_filled(together[0], spoken[0])]
    checks.append(check_medium(waves[0], together[0], Modality.SPEECH, "sound"))
    checks.append(check_speed("speed", waves[0], seconds, Modality.SPEECH))
    alone, check = attempt("batch", lambda: [vocoder.fill([codes])[0] for codes in spoken])
    checks.append(check if alone is None else check_batch(alone, together, tolerated=TOLERATED[config.precision]))
    voice = (
        "a random voice: no prompt is named" if vocoder.prompt is None else f"{len(vocoder.prompt)} frames of prompt"
    )
    return [*checks, Check("ok", "voice", voice)]


def check_filled(filled: Codes, spoken: Codes) -> Check:
    """Hold filled levels to Table 1, and the first of them to what was to be said."""
    rate = Modality.SPEECH.rate
    expected = (len(spoken), rate.levels_at_rest)
    if filled.shape != expected or int(filled.max()) >= rate.codebook_size:
        found = f"{filled.shape}, up to {int(filled.max())}"
        return Check("wrong", "levels", f"expected {expected} codes below {rate.codebook_size:,}, found {found}")
    if not np.array_equal(filled[:, :1], spoken):
        return Check("wrong", "levels", "the first level is not what was to be said")
    return Check("ok", "levels", f"{expected[1] - 1} levels filled for {expected[0]} frames; the first is as it was")


def _first_levels(codec: Path) -> list[Codes]:
    codes = open_tokenizer(codec, Modality.SPEECH).encode(made_up_media(Modality.SPEECH))
    return [one[:, :1] for one in codes]
