"""``anygpt-inspect``: the right decoders are opened, and wrong ones are refused rather than used."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import inspect_cli
from pipeline.text import load_text_tokenizer
from pipeline.text_training import train_text_tokenizer
from pipeline.tokenizers.codecs import open_detokenizer
from pipeline.tokenizers.compact import load_codec, save_family
from pipeline.tokenizers.compact_image import fit_image
from pipeline.vocabularies import load_vocabulary
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.packed import FORMAT_VERSION, PackedRow, Placement, write_packed_shard
from shards.records import FORMAT_VERSION as SAMPLES_VERSION
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.vocabulary import Modality
from shards.writer import commit_table

CAPTION = "a red square on a blue background"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A text tokenizer, a picture codec, one packed row and one sample that both show a red square."""
    folder = tmp_path_factory.mktemp("made")
    train_text_tokenizer([CAPTION] * 2, 300, folder / "text")
    pictures = np.stack([_picture(shade) for shade in range(0, 200, 10)])
    save_family(folder / "codecs.safetensors", {Modality.IMAGE: fit_image(pictures)}, config={})
    codec = load_codec(folder / "codecs.safetensors", Modality.IMAGE)
    codes = codec.encode([pictures[0]])[0]
    text = load_text_tokenizer(folder / "text")
    vocabulary = load_vocabulary(repository / "configs/vocabulary/tiny.toml", text_tokenizer=text)
    ids = np.concatenate([[1], text.encode(CAPTION), vocabulary.media_token_ids("image", codes), [2]]).astype(np.int64)
    row = PackedRow(ids, len(ids), (0,), ((0, len(ids)),), (Placement("s", "c", 0, "x", 0, len(ids)),))
    entry = write_packed_shard(folder / "packed/a.arrow", [row], vocabulary=vocabulary, sequence_length=len(ids))
    tokenizers = {"image": codec.fingerprint}
    extra = {"sequence_length": len(ids), "sources": {"c": len(ids)}}
    write_manifest(
        folder / "packed",
        Manifest("packed", "one", "f", (entry,), FORMAT_VERSION, tokenizers, vocabulary, extra=extra),
    )
    segments = (Segment("caption", Modality.TEXT, text=CAPTION), Segment("image", Modality.IMAGE, codes=codes))
    path = folder / "samples" / "u.parquet"
    sha256 = commit_table(path, samples_to_table([TokenizedSample("s", "c", "train", segments, Provenance("f"))]))
    entry = ShardEntry(path.name, 1, path.stat().st_size, sha256, {"image": 32})
    write_manifest(folder / "samples", Manifest("samples", "c", "f", (entry,), SAMPLES_VERSION, tokenizers))
    return folder


def _picture(shade: int) -> np.ndarray:
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[..., 2] = 255 - shade
    picture[80:150, 80:150] = (220, shade // 2, 10)
    return picture


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without the usual tokenizers."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["packed", "samples"])
def test_text_is_readable_and_pictures_are_pictures(made: Path, tmp_path: Path, kind: str) -> None:
    given = ["--text-tokenizer", str(made / "text"), "--codecs", str(made / "codecs.safetensors")]
    assert inspect_cli.inspect([str(made / kind), "--output", str(tmp_path / "page.html"), *given]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert CAPTION in page
    data = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", page)[1])
    picture = np.array(Image.open(io.BytesIO(data))).astype(int)
    assert picture[115, 115, 0] > 150 > picture[115, 115, 2]
    assert picture[10, 10, 2] > 150 > picture[10, 10, 0]


def test_without_decoders_the_page_says_how_to_get_them(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli.inspect([str(made / "packed")]) == 0
    printed = capsys.readouterr().out
    assert "--text-tokenizer FOLDER" in printed
    assert "image: shown as codes; give the codecs with --codecs FILE" in printed
    assert (made / "packed.inspect.html").is_file()


def test_another_text_tokenizer_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_text_tokenizer(["other words"], 280, tmp_path / "other")
    assert inspect_cli.inspect([str(made / "packed"), "--text-tokenizer", str(tmp_path / "other")]) == 1
    assert "give the folder that anygpt-pack was given" in capsys.readouterr().err


def test_another_codec_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = np.stack([_picture(shade)[::-1] // 2 for shade in range(0, 200, 10)])
    save_family(tmp_path / "other.safetensors", {Modality.IMAGE: fit_image(other)}, config={})
    assert inspect_cli.inspect([str(made / "samples"), "--codecs", str(tmp_path / "other.safetensors")]) == 1
    assert "give the file they were made with" in capsys.readouterr().err


def test_of_several_codecs_the_fingerprint_decides(made: Path, tmp_path: Path) -> None:
    other = np.stack([_picture(shade)[::-1] // 2 for shade in range(0, 200, 10)])
    save_family(tmp_path / "other.safetensors", {Modality.IMAGE: fit_image(other)}, config={})
    config = tmp_path / "speech.toml"
    # Its weights are not there, and never missed: the dataset has no speech.
    config.write_text(
        'codec = "speechtokenizer"\noptions = {config = "absent.json", checkpoint = "absent.dev"}\n', encoding="utf-8"
    )
    given = [tmp_path / "other.safetensors", config, made / "codecs.safetensors"]
    found = inspect_cli.open_detokenizers(read_manifest(made / "samples"), given)
    assert list(found) == ["image"]
    assert found["image"] is open_detokenizer(made / "codecs.safetensors", Modality.IMAGE)


def test_a_codec_config_opens_the_way_back_of_its_codes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of published weights, whose fingerprint is known once its tokenizer is open."""
    config = tmp_path / "seed2.toml"
    config.write_text('codec = "seed2"\n', encoding="utf-8")
    codec = load_codec(made / "codecs.safetensors", Modality.IMAGE)
    monkeypatch.setattr(inspect_cli, "open_tokenizer", lambda path, modality: codec)
    monkeypatch.setattr(inspect_cli, "open_detokenizer", lambda path, modality: (path, modality))
    found = inspect_cli.open_detokenizers(read_manifest(made / "samples"), [config])
    assert found == {"image": (config, Modality.IMAGE)}


def test_a_folder_that_is_no_dataset_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli.inspect([str(tmp_path)]) == 1
    assert "found none; run the command that makes it" in capsys.readouterr().err


def test_one_sample_is_shown_where_it_is(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--sample", "s", "--samples", str(made / "samples"), "--output", str(tmp_path / "page.html")]
    assert inspect_cli.inspect([str(made / "packed"), *given]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert CAPTION in page
    assert 'class="document wanted"' in page
    assert inspect_cli.inspect([str(made / "packed"), "--sample", "t"]) == 1
    assert "expected the id 't', found none such, written or left out; the nearest are s" in capsys.readouterr().err


def test_rows_and_pages_are_chosen(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    for chosen in (["--row", "0"], ["--rows", "0:5"], ["--rows", ":1"], ["--page", "1", "--per-page", "3"]):
        assert inspect_cli.inspect([str(made / "packed"), *chosen, "--output", str(page)]) == 0
        assert "row 0 of 1" in page.read_text(encoding="utf-8")
    assert inspect_cli.inspect([str(made / "packed"), "--page", "2"]) == 2
    assert "expected rows from 0 to 0, found 20 to 39 asked for" in capsys.readouterr().err
    assert inspect_cli.inspect([str(made / "samples"), "--pages", "all"]) == 0
    assert f"{made / 'samples.inspect' / 'index.html'}: open it in a browser" in capsys.readouterr().out
    assert (made / "samples.inspect" / "page-0001.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "5:5"], "expected A below B"),
        (["--rows", "0"], "0: expected 1 or more"),
        (["--rows", "a:2"], "'a': expected a whole number"),
        (["--row", "-1"], "expected"),
        (["--sample", "s", "--row", "1"], "--sample finds its rows itself"),
        (["--samples", "x"], "give the ID"),
        (["--pages", "all", "--rows", "7"], "--pages all shows all rows"),
        (["--row", "1", "--page", "1"], "not allowed with"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        inspect_cli.inspect(["dataset", *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
