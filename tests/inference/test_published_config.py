"""``configs/inference/published.toml`` as it stands, on small weights in the published layouts, at the places it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from inference.generate_cli import main
from shards.modality import Modality
from tests.fixtures import tiny_chat
from tests.fixtures.tiny_inference import write_published
from tests.fixtures.tiny_unclip import write_unclip

# SEED-2's heads are not in its files; small weights have fewer than the published ones.
_SEED2 = """
base = "configs/tokenizers/seed2.toml"
[options]
config = "weights/seed2/config.json"
"""
_SHORT = """
base = "configs/decoding/paper.toml"
[modality.text]
max_new_tokens = 8
[modality.speech]
max_new_tokens = 25
[modality.music]
max_new_tokens = 100
"""


@pytest.fixture
def weights(tmp_path: Path, repository: Path, parity: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``configs`` and, as docs/published-weights.md says, ``weights``."""
    pytest.importorskip("diffusers", reason="painting needs the extra unclip")
    folder = tmp_path / "weights"
    for ours, theirs in (
        ("seed2", "seed2"), ("speechtokenizer", "speechtokenizer/snake"), ("soundstorm", "soundstorm"),
        ("encodec_32khz", "encodec32k/hf"),
    ):  # fmt: skip
        shutil.copytree(parity / theirs, folder / ours)
    sizes = json.loads((folder / "seed2" / "config.json").read_text(encoding="utf-8"))
    write_unclip(folder / "stable-diffusion-2-1-unclip", embedding=sizes["image_embed_dim"])
    (folder / "AnyGPT-base").mkdir()
    write_published(folder / "AnyGPT-base", num_rows=53_632)
    (tmp_path / "configs").symlink_to(repository / "configs")
    (tmp_path / "seed2.toml").write_text(_SEED2, encoding="utf-8")
    (tmp_path / "short.toml").write_text(_SHORT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_task_is_answered_with_published_layouts(weights: Path):
    files = tiny_chat.files()
    lines = [
        "text|image|a home",
        "text|speech|a home",
        f"text|speech|a home|{files[Modality.SPEECH]}",
        "text|music|a home",
    ]
    lines += [f"{source}|text|{file}" for source, file in files.items()]
    arguments = ["--set", "codecs.image=seed2.toml", "--set", "decoding=short.toml"]
    assert main(["configs/inference/published.toml", *lines, *arguments]) == 0
    rows = [json.loads(line) for line in Path("runs/generated/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(lines)
    by_line = {(row["source"], row["target"], row.get("voice_prompt")): row for row in rows}
    assert len(by_line) == len(lines)
    for row in rows:
        path = Path("runs/generated") / row["file"]
        if row["target"] == "text":
            assert path.is_file() and isinstance(row["text"], str)
        elif row["target"] == "image":
            assert Image.open(path).size == (224, 224) and len(row["token_ids"]) == 32
        else:
            assert soundfile.info(str(path)).samplerate == Modality(row["target"]).rate.sample_rate_hz
    voices = [row["voice_prompt"] for row in rows if "voice_prompt" in row]
    assert voices == [str(files[Modality.SPEECH])]
