"""One file for all compact codecs: what is saved is loaded, each modality stands for itself, and damage is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.sample_corpora.pictures import all_attributes, draw_variation, render_picture
from pipeline.tokenizers.base import MediaDetokenizer, MediaTokenizer
from pipeline.tokenizers.compact import (
    fingerprint,
    load_codec,
    read_family_info,
    read_tensors,
    save_family,
)
from pipeline.tokenizers.compact_image import CompactImage, fit_image
from shards.errors import TokenizerError
from shards.vocabulary import Modality
from tests.fixtures.fitted_codecs import music_codec, music_tensors, played, speech_codec, speech_tensors, spoken

MEDIA = (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    chosen = [all_attributes(held_out=False)[index] for index in range(0, 400, 20)]
    drawn = [draw_variation(rng, jitter_px=2, jitter_scale=0.03, jitter_shade=5) for _ in chosen]
    return np.stack([np.asarray(render_picture(one, how)) for one, how in zip(chosen, drawn, strict=True)])


@pytest.fixture(scope="module")
def tensors(pictures) -> dict[Modality, dict[str, np.ndarray]]:
    return {
        Modality.IMAGE: fit_image(pictures),
        Modality.SPEECH: speech_tensors(),
        Modality.MUSIC: music_tensors(),
    }


@pytest.fixture
def family(tensors, tmp_path: Path) -> Path:
    path = tmp_path / "compact.safetensors"
    save_family(path, tensors, config={"seed": 3})
    return path


def test_what_is_saved_is_loaded(family, tensors, pictures):
    clips = {Modality.IMAGE: list(pictures[:3]), Modality.SPEECH: spoken(2), Modality.MUSIC: [played(1)[0][1]]}
    fitted = {
        Modality.IMAGE: CompactImage(tensors[Modality.IMAGE]),
        Modality.SPEECH: speech_codec(),
        Modality.MUSIC: music_codec(),
    }
    info = read_family_info(family)
    assert info.config == {"seed": 3} and set(info.fingerprints) == set(MEDIA)
    for modality in MEDIA:
        codec = load_codec(family, modality)
        assert isinstance(codec, MediaTokenizer) and isinstance(codec, MediaDetokenizer)
        assert codec.modality is modality and codec.fingerprint == info.fingerprints[modality]
        assert len(codec.fingerprint) == 16 and int(codec.fingerprint, 16) >= 0
        expected = fitted[modality].encode(clips[modality])
        for one, other in zip(codec.encode(clips[modality]), expected, strict=True):
            assert np.array_equal(one, other)
        for one, other in zip(codec.decode(expected), fitted[modality].decode(expected), strict=True):
            assert np.array_equal(one, other)
        for name, tensor in read_tensors(family, modality).items():
            assert np.array_equal(tensor, tensors[modality][name])


def test_equal_tensors_give_equal_bytes(family, tensors, tmp_path):
    again = tmp_path / "again" / "compact.safetensors"
    turned = {modality: dict(reversed(tensors[modality].items())) for modality in reversed(MEDIA)}
    save_family(again, turned, config={"seed": 3})
    assert again.read_bytes() == family.read_bytes()


def test_one_file_holds_everything_under_three_prefixes(family):
    with safe_open(family, framework="numpy") as file:
        assert {name.split(".")[0] for name in file.keys()} == set(MEDIA)  # noqa: SIM118
        header = json.loads(file.metadata()["compact"])
    assert header["modalities"]["music"]["facts"]["hop"] == 640
    assert header["format_version"] == 1


def test_refitting_music_leaves_the_other_fingerprints(family, tensors, tmp_path):
    before = read_family_info(family).fingerprints
    changed = {name: tensor.copy() for name, tensor in tensors[Modality.MUSIC].items()}
    changed["level3"][7, 7] += 1
    path = tmp_path / "other.safetensors"
    after = save_family(path, {**tensors, Modality.MUSIC: changed}).fingerprints
    assert after[Modality.MUSIC] != before[Modality.MUSIC]
    assert {after[one] == before[one] for one in (Modality.IMAGE, Modality.SPEECH)} == {True}


def test_a_family_of_one_is_a_family(tensors, tmp_path):
    path = tmp_path / "speech.safetensors"
    info = save_family(path, {Modality.SPEECH: tensors[Modality.SPEECH]})
    assert load_codec(path, Modality.SPEECH).fingerprint == info.fingerprints[Modality.SPEECH]
    with pytest.raises(TokenizerError, match=r"codec for music, found speech.*\[music\]"):
        load_codec(path, Modality.MUSIC)


def test_what_cannot_be_loaded_is_named(family, tensors, tmp_path):
    with pytest.raises(TokenizerError, match="found nothing"):
        load_codec(tmp_path / "none.safetensors", Modality.IMAGE)
    with pytest.raises(TokenizerError, match="no compact codec"):
        load_codec(family, Modality.TEXT)
    with pytest.raises(TokenizerError, match="no compact codec"):
        fingerprint(Modality.TEXT, {})
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(family.read_bytes()[:1000])
    with pytest.raises(TokenizerError, match="expected a safetensors file"):
        load_codec(broken, Modality.IMAGE)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, foreign)
    with pytest.raises(TokenizerError, match="found other tensors"):
        load_codec(foreign, Modality.IMAGE)


def test_a_changed_tensor_is_noticed(family):
    data = bytearray(family.read_bytes())
    data[-1] ^= 1
    family.write_bytes(bytes(data))
    failures = 0
    for modality in MEDIA:
        try:
            load_codec(family, modality)
        except TokenizerError as error:
            failures += 1
            assert "changed after it was written" in str(error)
    assert failures == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(format_version=99), "format version 1, found 99"),
        (lambda header: header["modalities"]["speech"].update(code_version=0), "code version 0"),
        (lambda header: header["modalities"]["speech"]["facts"].update(hop=160), "fit it again"),
    ],
)
def test_a_file_of_another_code_is_refused(family, change, message):
    with safe_open(family, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["compact"])
    change(header)
    save_file(tensors, family, metadata={"compact": json.dumps(header)})
    with pytest.raises(TokenizerError, match=message):
        load_codec(family, Modality.SPEECH)


def test_tensors_of_the_wrong_form_are_not_saved(tensors, tmp_path):
    speech = tensors[Modality.SPEECH]
    without = {name: tensor for name, tensor in speech.items() if name != "level8"}
    with pytest.raises(TokenizerError, match="expected tensors"):
        save_family(tmp_path / "a", {Modality.SPEECH: without})
    with pytest.raises(TokenizerError, match=r"level8: expected shape \(1024, 80\), found \(1024, 79\)"):
        save_family(tmp_path / "a", {Modality.SPEECH: {**speech, "level8": speech["level8"][:, :79]}})
    assert not list(tmp_path.iterdir())
