"""``anygpt-generate``: what it prints, and with what it exits."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.generate_cli import main
from shards.modality import Modality
from tests.fixtures.tiny_tasks import tiny_model


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    config = tiny_model().config
    capsys.readouterr()  # what saving a model makes libraries say
    code = main([str(config), *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_task_prints_its_answer_and_prints_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("text|image|a red circle", "--set", f"output={tmp_path}")
    code, out, _ = run(capsys, *arguments)
    path = Path(out.strip())
    assert code == 0 and path.is_file() and path.suffix == ".png" and path.name.startswith("a_red_circle-")
    assert run(capsys, *arguments)[:2] == (0, out)
    code, out, _ = run(capsys, f"image|text|{path}", "--set", f"output={tmp_path}")
    assert code == 0 and out.strip() and not Path(out.strip()).exists()


def test_a_file_of_tasks_ends_with_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tasks = tmp_path / "tasks.txt"
    tasks.write_text("text|image|one\ntext|image|two\nimage|text|absent.png\n", encoding="utf-8")
    arguments = ("--tasks", str(tasks), "--set", f"output={tmp_path / 'out'}")
    code, out, err = run(capsys, *arguments, "--limit", "2")
    assert (code, err) == (0, "") and out.startswith("2 answered, 0 answered before, 0 failed; ")
    code, out, err = run(capsys, *arguments)
    assert code == 1 and out.startswith("0 answered, 2 answered before, 1 failed; ")
    assert "tasks.txt, line 3: media_missing: absent.png: expected a file, found none" in err


def test_a_dry_run_prints_config_and_plan_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = ("text|image|one", "text|image|two", f"music|text|{tiny_model().files[Modality.MUSIC]}")
    code, out, _ = run(capsys, *lines, "--dry-run", "--set", f"output={tmp_path / 'out'}")
    assert code == 0 and '"seed":' in out
    assert out.strip().endswith("3 tasks, 0 answered before; to answer: 1 music_to_text, 2 text_to_image")
    assert not (tmp_path / "out").exists()


def test_tasks_and_options_stand_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = ("--set", f"output={tmp_path / 'out'}")
    orders = [("text|image|a", "text|image|b", *output), (*output, "text|image|a", "text|image|b")]
    orders.append(("text|image|a", *output, "--limit", "2", "text|image|b", "--dry-run"))
    said = [run(capsys, *order, *(() if "--dry-run" in order else ("--dry-run",))) for order in orders]
    assert said[0][0] == 0 and said[0] == said[1] == said[2]
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "text|image|a", "--set")
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a task, found none"),
        (["a red circle"], "task 1: expected SOURCE|TARGET|INPUT"),
        (["text|image|x", "audio|text|x"], "task 2: expected one of text, image, speech, music, found audio"),
        (["--tasks", "absent.txt"], "absent.txt: expected a file of tasks, found none"),
        (["text|image|x", "--set", "sed=1"], "unknown key 'sed'; did you mean 'seed'?"),
        (["text|image|x", "--set", "codecs.image=absent.toml"], "absent.toml"),
        (["text|image|x", "--set", "device=tpu9"], "expected auto, cpu, cuda"),
    ],
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.startswith("anygpt-generate: ") and message in err


def test_a_model_that_is_not_there_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("--set", f"model={tmp_path / 'none'}", "--set", f"output={tmp_path / 'out'}")
    code, _, err = run(capsys, "text|image|x", *arguments)
    assert code == 1 and "finish anygpt-train first" in err
