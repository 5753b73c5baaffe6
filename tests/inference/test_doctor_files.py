"""Looking at weight files: every usual fault of a file has a name."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference.doctor_files import examine_file, examine_weight_file, fault_of, safetensors_shapes, sha256_of
from pipeline.tokenizers.codecs import WeightFile

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1230000000\n"


def weight_file(path: Path | None, *, required: bool = True) -> WeightFile:
    return WeightFile("checkpoint", path, "encode", "a.pt of some/where", required)


def cut(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def torch_file(path: Path) -> Path:
    torch.save({"weight": torch.arange(5000.0)}, path)
    return path


def tensor_file(path: Path) -> Path:
    save_file({"weight": torch.arange(5000.0), "bias": torch.zeros(2, 3)}, path)
    return path


def test_a_whole_file_is_ok_and_its_digest_is_that_of_its_bytes(tmp_path: Path):
    for path in (torch_file(tmp_path / "a.pt"), tensor_file(tmp_path / "a.safetensors")):
        finding = examine_weight_file(weight_file(path))
        assert finding.status == "ok" and finding.note == "" and not finding.stops
        assert finding.size == path.stat().st_size
        assert finding.parts[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)


def test_progress_reaches_the_end_of_the_file(tmp_path: Path):
    path, told = tmp_path / "large.bin", list[tuple[int, int]]()
    path.write_bytes(bytes((5 << 20) + 3))
    sha256_of(path, lambda _, done, total: told.append((done, total)))
    assert len(told) == 2 and told[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ckpt.dev", b"", "empty file"),
        ("ckpt.dev", POINTER.encode(), "git-lfs pointer"),
        ("ckpt.dev", b"../.git/annex/objects/xx/SHA256E-s12--00.dev\n", "git-annex pointer"),
        ("ckpt.dev", b"\n <!DOCTYPE html><html><body>Sign in</body>", "web page"),
        ("model.safetensors", b"<html>Not found</html>", "web page"),
        ("model.safetensors", b"\x00" * 64, "no safetensors file"),
        ("model.safetensors", b"hi", "no safetensors file"),
        ("config.json", b'{"n_q": 8', "no JSON"),
        ("config.json", b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in fault_of(path)
    finding = examine_weight_file(weight_file(path))
    assert finding.status == "wrong" and finding.stops and words in finding.note


@pytest.mark.parametrize("keep", [3000, 12_000, -1])
def test_a_cut_download_is_named(tmp_path: Path, keep: int):
    assert "cut" in fault_of(cut(torch_file(tmp_path / "a.pt"), keep))
    assert "cut" in fault_of(cut(tensor_file(tmp_path / "a.safetensors"), keep))


def test_bytes_behind_the_end_are_named(tmp_path: Path):
    path = tensor_file(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes() + b"xx")
    assert "something was added" in fault_of(path)


def test_a_file_that_is_not_there_is_missing_and_where_is_said(tmp_path: Path):
    (tmp_path / "other.pt").touch()
    finding = examine_weight_file(weight_file(tmp_path / "ckpt.dev"))
    assert finding.status == "missing" and finding.path == tmp_path / "ckpt.dev" and "other.pt" in finding.note
    assert "no folder" in examine_weight_file(weight_file(tmp_path / "no" / "ckpt.dev")).note
    assert "options.checkpoint" in examine_weight_file(weight_file(None)).note
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    assert "leads nowhere" in examine_weight_file(weight_file(tmp_path / "link.pt")).note


def test_only_a_required_file_stops_a_codec_by_being_missing(tmp_path: Path):
    assert examine_weight_file(weight_file(tmp_path / "no.pt")).stops
    assert not examine_weight_file(weight_file(tmp_path / "no.pt", required=False)).stops


def test_folders_are_looked_into(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    assert examine_weight_file(weight_file(folder)).status == "wrong"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    tensor_file(folder / "unet" / "weights.safetensors")
    finding = examine_weight_file(weight_file(folder))
    assert finding.status == "ok"
    assert [part.name for part in finding.parts] == ["config.json", "unet/weights.safetensors"]
    assert finding.size == sum(part.size for part in finding.parts) > 20_000
    (folder / "unet" / "weights.safetensors").write_text(POINTER, encoding="utf-8")
    finding = examine_weight_file(weight_file(folder))
    assert finding.status == "wrong" and "unet/weights.safetensors: a git-lfs pointer" in finding.note


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path):
    (tmp_path / "ckpt.dev").mkdir()
    finding = examine_weight_file(weight_file(tmp_path / "ckpt.dev"))
    assert finding.status == "wrong" and "folder in place of a file" in finding.note


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    """Root reads everything, so the system's answer is made up."""
    path = torch_file(tmp_path / "a.pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "permissions" in examine_file(path, "a.pt").note


def test_shapes_are_read_from_the_header(tmp_path: Path):
    assert safetensors_shapes(tensor_file(tmp_path / "a.safetensors")) == {"weight": (5000,), "bias": (2, 3)}
