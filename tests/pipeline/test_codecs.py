"""What a tokenizer path means: every codec module keeps the contract, and a wrong name is told what was meant."""

import inspect
import json
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from pipeline.tokenizers.codecs import (
    CodecConfig,
    WeightFile,
    codec_names,
    codec_weight_files,
    open_detokenizer,
    open_tokenizer,
    open_tokenizers,
    read_codec_config,
    served_modalities,
)
from pipeline.tokenizers.compact import save_family
from pipeline.tokenizers.compact_image import fit_image
from pipeline.tokenizers.weights import CodecOptions
from shards.errors import ConfigError, TokenizerError
from shards.modality import MEDIA, Modality
from tests.fixtures.fitted_codecs import speech_tensors
from tests.fixtures.speechtokenizer_checkpoints import write_checkpoint

NAMES = codec_names()


def module_of(name: str) -> ModuleType:
    return import_module(f"pipeline.tokenizers.{name}")


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    path = tmp_path / "compact.safetensors"
    pictures = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3)).astype(np.uint8)
    save_family(path, {Modality.IMAGE: fit_image(pictures), Modality.SPEECH: speech_tensors()})
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A codec config of a tiny SpeechTokenizer in the published layout."""
    config, checkpoint, _ = write_checkpoint(tmp_path / "weights")
    path = tmp_path / "codec.toml"
    options = f"config = {json.dumps(str(config))}\ncheckpoint = {json.dumps(str(checkpoint))}\ndevice = 'cpu'"
    path.write_text(f'codec = "speechtokenizer"\n[options]\n{options}\n', encoding="utf-8")
    return path


# -- the contract of a codec module -----------------------------------------------------------------------------------


def test_there_are_codecs_and_their_names_are_sorted_files():
    assert {"seed2", "speechtokenizer", "encodec_32khz", "encodec_24khz"} <= set(NAMES) and sorted(NAMES) == NAMES
    assert "compact" not in NAMES and "codecs" not in NAMES


def test_every_medium_has_a_codec_of_published_weights():
    assert {module_of(name).MODALITY for name in NAMES} == set(MEDIA)


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_module_has_what_the_contract_asks_for(name: str):
    module = module_of(name)
    assert issubclass(module.Options, CodecOptions) and module.Options is not CodecOptions
    assert module.MODALITY in MEDIA
    assert all(callable(getattr(module, verb)) for verb in ("weight_files", "load", "load_detokenizer"))
    assert len((module.__doc__ or "").splitlines()) > 3


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_codec_is_documented_and_every_weight_file_is_an_option(name: str, repository: Path):
    module = module_of(name)
    kinds = [kind for kind in module.Options.__mro__ if issubclass(kind, CodecOptions)]
    text = "\n".join(inspect.getsource(kind) for kind in kinds)
    for option in module.Options.model_fields:
        after = text.partition(f"\n    {option}: ")[2]
        assert '"""' in "\n".join(after.splitlines()[:8]), f"{option} of {name} has no docstring"
    files = module.weight_files(shipped_options(name, repository))
    assert files and all(isinstance(file, WeightFile) for file in files)
    assert all(file.option in module.Options.model_fields for file in files)
    assert all(file.published_as and file.needed_for for file in files) and any(file.required for file in files)


@pytest.mark.parametrize("name", NAMES)
def test_without_its_weights_a_codec_names_option_and_path(name: str, repository: Path, monkeypatch, tmp_path: Path):
    options = shipped_options(name, repository)
    monkeypatch.chdir(tmp_path)
    module = module_of(name)
    for load in (module.load, module.load_detokenizer):
        with pytest.raises((ConfigError, TokenizerError), match=r"options\.\w+ = .*weights.*expected"):
            load(options)


def shipped_options(name: str, repository: Path) -> CodecOptions:
    for path in sorted((repository / "configs" / "tokenizers").glob("*.toml")):
        if f'codec = "{name}"' in path.read_text(encoding="utf-8"):
            return read_codec_config(path)[1]
    raise AssertionError(f"no config of {name} in configs/tokenizers")


# -- a path -----------------------------------------------------------------------------------------------------------


def test_a_compact_file_serves_its_modalities(compact: Path):
    assert served_modalities(compact) == [Modality.IMAGE, Modality.SPEECH]
    (file,) = codec_weight_files(compact)
    assert file.path == compact and file.required
    opened = open_tokenizers({Modality.IMAGE: compact, Modality.SPEECH: compact})
    assert all(isinstance(one, MediaTokenizer) and one.modality is modality for modality, one in opened.items())
    assert isinstance(open_detokenizer(compact, Modality.IMAGE), MediaDetokenizer)
    with pytest.raises(TokenizerError, match="music"):
        open_tokenizer(compact, Modality.MUSIC)


def test_a_config_serves_the_modality_of_its_codec(published: Path):
    assert served_modalities(published) == [Modality.SPEECH]
    assert [file.option for file in codec_weight_files(published)] == ["config", "checkpoint"]
    codec = open_tokenizer(published, Modality.SPEECH)
    assert isinstance(codec, MediaTokenizer) and len(codec.fingerprint) == 16
    assert isinstance(open_detokenizer(published, Modality.SPEECH), MediaDetokenizer)
    with pytest.raises(ConfigError, match="expected a codec for music, found one for speech"):
        open_tokenizer(published, Modality.MUSIC)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("codec=speechtokeniser", "did you mean 'speechtokenizer'"),
        ("codec=qqqq", "there are: .*seed2"),
        ("options.chekpoint=x", "unknown key 'chekpoint'; did you mean 'checkpoint'"),
        ("options.precision=bf16", "precision.*fp16"),
        ("options.batch_items=0", "batch_items"),
    ],
)
def test_a_wrong_name_is_told_what_was_meant(repository: Path, override: str, words: str):
    config = repository / "configs" / "tokenizers" / "speechtokenizer.toml"
    with pytest.raises(ConfigError, match=words):
        read_codec_config(config, (override,))


def test_options_are_empty_unless_given():
    assert CodecConfig(codec="seed2").options == {}


def test_a_path_with_nothing_there_is_wrong_usage(tmp_path: Path):
    with pytest.raises(ConfigError, match="anygpt-fit"):
        open_tokenizer(tmp_path / "none.safetensors", Modality.IMAGE)
    with pytest.raises(ConfigError, match=r"configs/tokenizers"):
        open_detokenizer(tmp_path / "none.toml", Modality.IMAGE)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_a_codec_is_opened_once_and_again_when_a_weight_file_is_another(published: Path, tmp_path: Path):
    first = open_tokenizer(published, Modality.SPEECH)
    assert open_tokenizer(published, Modality.SPEECH) is first
    write_checkpoint(tmp_path / "weights", seed=1)
    second = open_tokenizer(published, Modality.SPEECH)
    assert second is not first and second.fingerprint != first.fingerprint
    checkpoint = codec_weight_files(published)[1].path
    assert checkpoint is not None
    status = checkpoint.stat()
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = open_tokenizer(published, Modality.SPEECH)
    assert touched is not second and touched.fingerprint == second.fingerprint


def test_a_weight_file_that_vanishes_is_missed(published: Path):
    open_tokenizer(published, Modality.SPEECH)
    for file in codec_weight_files(published):
        assert file.path is not None
        file.path.unlink()
    with pytest.raises(TokenizerError, match="found nothing there"):
        open_tokenizer(published, Modality.SPEECH)
