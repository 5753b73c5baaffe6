"""The command: dialogues with their corpus by rules, instruction sets spoken, mistakes told."""

import json
from pathlib import Path

import pytest

from pipeline.corpora import anyinstruct
from pipeline.corpora.anyinstruct import Options
from pipeline.samples import RawMedia, RawSample
from synthesis.cli import main


def samples(corpus: Path) -> list[RawSample]:
    options = Options(speech="both")
    return [
        one
        for source in anyinstruct.sources(corpus, options)
        for one in anyinstruct.read(corpus, source, options)
        if isinstance(one, RawSample)
    ]


@pytest.mark.parametrize("name", ["offline", "tiny"])
def test_dialogues_are_written_and_get_their_media(
    name: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = repository / f"configs/synthesis/{name}.toml"
    command = [str(config), "--limit", "6", "--set", f"output={tmp_path / 'out'}"]
    command += ["--set", "workers=0", "--set", "media.workers=0"]
    assert main(command) == 0
    said = capsys.readouterr().out
    found = samples(tmp_path / "out" / "corpus")
    assert 0 < len(found) <= 6 and "corpus" in said
    assert any(isinstance(segment, RawMedia) for one in found for segment in one.segments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main(command) == 0, "the same again has nothing to do"
    made_again = [
        path for path, time in before.items() if path.suffix in {".jpg", ".wav"} and path.stat().st_mtime_ns != time
    ]
    assert not made_again and "known before" in capsys.readouterr().out


def test_instruction_sets_are_spoken_and_what_cannot_be_said_is_left_out(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    records = [
        {
            "instruction": "Tell me why the sky looks blue on a clear day.",
            "output": "Blue light is scattered the most by the air.",
        },
        {"instruction": "Print hello.", "output": "```python\nprint('hello')\n```"},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    output = tmp_path / "spoken"
    command = [str(repository / "configs/synthesis/spoken.toml"), "--set", f"output={output}"]
    command += ["--set", f'files=["{path}"]', "--set", "media.workers=0"]
    assert main(command) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert (report["inputs"], report["written"], sum(report["filtered"].values())) == (2, 1, 1)
    (one,) = samples(output)
    assert sum(isinstance(segment, RawMedia) for segment in one.segments) == 2
    assert main([*command, "--limit", "1"]) == 2
    assert "expected scenarios" in capsys.readouterr().err


def test_a_plan_asks_nothing(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = repository / "configs/synthesis/anyinstruct.toml"
    assert main([str(config), "--dry-run", "--set", f"output={tmp_path / 'out'}"]) == 0
    assert "USD" in capsys.readouterr().out and not (tmp_path / "out").exists()
