"""From a fresh clone, tokenizing comes first if that is what one types: the default codecs are made when missing."""

import pytest

from configs.load import validate
from pipeline.corpus import CorpusConfig
from pipeline.tokenizers.compact import load_codec
from pipeline.tokenizers.default_fit import ensure_codecs
from shards.vocabulary import Modality
from tokenize_jobs.cli import tokenize

SAMPLE = """
output = "{folder}/sample"
[train]
laion2b = 12
laion_coco = 0
laion_aesthetics = 0
journeydb = 0
mmc4_core_ff = 0
mls = 0
commonvoice = 0
gigaspeech = 0
youtube_music = 0
musiccaps = 0
anyinstruct = 0
[heldout]
laion_coco = 0
mls = 0
youtube_music = 0
anyinstruct = 0
"""
FIT = """
output = "{folder}/codec.safetensors"
sample_corpora = "{folder}/sample.toml"
[image]
corpora = ["{folder}/corpus.toml"]
"""
CORPUS = (
    'corpus = "laion2b"\nroot = "{folder}/sample/laion2b"\noutput = "{folder}/tokenized"\nfit = "{folder}/fit.toml"\n'
    '[tokenizers]\nimage = "{folder}/codec.safetensors"\n'
)


@pytest.fixture
def folder(tmp_path):
    for name, text in (("sample", SAMPLE), ("fit", FIT), ("corpus", CORPUS)):
        (tmp_path / f"{name}.toml").write_text(text.replace("{folder}", str(tmp_path)), encoding="utf-8")
    return tmp_path


def corpus_config(folder, **changes) -> CorpusConfig:
    facts = {
        "corpus": "laion2b",
        "root": folder / "sample/laion2b",
        "output": folder / "tokenized",
        "fit": folder / "fit.toml",
        "tokenizers": {"image": folder / "codec.safetensors"},
    }
    return validate(facts | changes, CorpusConfig, where="test")


def test_missing_codecs_are_fitted_once(folder):
    said: list[str] = []
    assert ensure_codecs(corpus_config(folder), say=said.append)
    assert load_codec(folder / "codec.safetensors", Modality.IMAGE).fingerprint and said
    before = (folder / "codec.safetensors").read_bytes()
    assert not ensure_codecs(corpus_config(folder), say=said.append)
    assert (folder / "codec.safetensors").read_bytes() == before


def test_without_a_fit_a_missing_codec_stays_missing(folder):
    assert not ensure_codecs(corpus_config(folder, fit=None), say=lambda _line: None)
    assert not (folder / "codec.safetensors").exists()


def test_a_codec_the_fit_does_not_make_is_not_fitted(folder):
    other = {"image": folder / "published.safetensors"}
    assert not ensure_codecs(corpus_config(folder, tokenizers=other), say=lambda _line: None)


def test_a_missing_codec_file_is_wrong_usage(folder, capsys):
    ensure_codecs(corpus_config(folder), say=lambda _line: None)
    missing = f"tokenizers.image={folder}/none.safetensors"
    assert tokenize([str(folder / "corpus.toml"), "--set", missing]) == 2
    assert "tokenizers.image" in capsys.readouterr().err
