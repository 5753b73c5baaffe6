"""Tasks are answered once, whatever happens in between, and the same alone, in a batch and again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from inference.generate import Answer, Failure, Plan, answer_tasks, instruction_for, plan_tasks
from inference.results import RESULTS_NAME, append_results, mend_results, read_results
from inference.runtime import Runtime
from inference.tasks import Task, parse_task
from shards.errors import ConfigError, DatasetError
from shards.modality import Modality
from tests.fixtures.tiny_tasks import tiny_config, tiny_model, tiny_runtime

MEDIA = (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)


def tasks_of_every_direction() -> list[Task]:
    files = tiny_model().files
    lines = [f"text|{m}|a red circle, {m}" for m in MEDIA] + [f"{m}|text|{files[m]}" for m in MEDIA]
    return [parse_task(line, where=line) for line in (*lines, "text|text|what is a circle?")]


def planned(output: Path, *overrides: str, tasks: list[Task] | None = None) -> Plan:
    return plan_tasks(tasks or tasks_of_every_direction(), tiny_config(f"output={output}", *overrides))


def answered(plan: Plan) -> list[Answer | Failure]:
    return list(answer_tasks(plan, lambda: runtime_of(plan)))


def runtime_of(plan: Plan) -> Runtime:
    """The one that is open already, told this run's settings."""
    opened = tiny_runtime()
    return Runtime(plan.config, opened.loaded, opened.templates, opened.decoding)


def never() -> Runtime:
    raise AssertionError("a model was opened for nothing")


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def ids_by_input(output: Path) -> dict[str, list[int]]:
    return {row["input"] + row["target"]: row["token_ids"] for row in read_results(output / RESULTS_NAME)}


def test_every_direction_gives_a_file_that_opens(tmp_path: Path):
    answers = answered(planned(tmp_path / "out"))
    assert len(answers) == 7
    for answer in answers:
        assert isinstance(answer, Answer)
        row, target = answer.row, Modality(answer.row["target"])
        assert answer.path.parent == tmp_path / "out" / str(target)
        if target is Modality.TEXT:
            assert answer.path.read_text(encoding="utf-8") == f"{answer.text}\n"
        elif target is Modality.IMAGE:
            assert np.asarray(Image.open(answer.path)).shape == (224, 224, 3) and len(row["token_ids"]) == 32
        else:
            found = soundfile.info(answer.path)
            assert found.samplerate == target.rate.sample_rate_hz
            assert found.duration == pytest.approx(row["duration_s"], abs=1e-3)
            assert found.frames == len(row["token_ids"]) // target.rate.levels_read * target.rate.samples_per_frame
    asked = {row["input"]: row["instruction"] for row in read_results(tmp_path / "out" / RESULTS_NAME)}
    assert asked["what is a circle?"] == "" and asked["a red circle, image"]


def test_a_second_run_does_nothing(tmp_path: Path):
    first = answered(planned(tmp_path))
    before = content(tmp_path)
    again = planned(tmp_path)
    assert not again.pending and len(again.done) == len(first)
    assert list(answer_tasks(again, never)) == [] and content(tmp_path) == before


def test_answers_do_not_depend_on_batches_order_or_company(tmp_path: Path):
    tasks = [parse_task(f"text|image|circle number {n}") for n in range(6)]
    answered(planned(tmp_path / "one", "batch_size=1", tasks=tasks))
    answered(planned(tmp_path / "all", "batch_size=64", tasks=tasks[::-1]))
    answered(planned(tmp_path / "last", tasks=tasks[-1:]))
    assert ids_by_input(tmp_path / "one") == ids_by_input(tmp_path / "all")
    assert ids_by_input(tmp_path / "last").items() <= ids_by_input(tmp_path / "one").items()
    files = {path: data for path, data in content(tmp_path / "one").items() if path != RESULTS_NAME}
    assert files == {path: data for path, data in content(tmp_path / "all").items() if path != RESULTS_NAME}


def test_other_settings_answer_anew_beside_the_earlier_answers(tmp_path: Path):
    task = [parse_task("text|image|a circle")]
    for overrides in ([], ["seed=1"], ["instruction=Draw this."], ["dtype=bfloat16"], ["seed=1"], ["batch_size=2"]):
        answered(planned(tmp_path, *overrides, tasks=task))
    rows = read_results(tmp_path / RESULTS_NAME)
    assert len(rows) == 4 and len({row["file"] for row in rows}) == 4
    assert rows[2]["instruction"] == "Draw this." and rows[2]["key"] != rows[0]["key"]


def test_what_is_asked_twice_is_answered_twice(tmp_path: Path):
    twice = [parse_task("text|image|a circle")] * 2
    rows = [answer.row for answer in answered(planned(tmp_path, tasks=twice)) if isinstance(answer, Answer)]
    assert rows[1]["key"] == f"{rows[0]['key']}-2" and rows[0]["file"] != rows[1]["file"]


def test_half_a_line_is_cut_off_and_its_task_answered_again(tmp_path: Path):
    answered(planned(tmp_path))
    whole = (tmp_path / RESULTS_NAME).read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (lines[-1][:-1], lines[-1][:40], b"{"):
        (tmp_path / RESULTS_NAME).write_bytes(b"".join(lines[:-1]) + left)
        assert len(answered(planned(tmp_path))) == 1
        assert (tmp_path / RESULTS_NAME).read_bytes() == whole


def test_a_file_that_cannot_be_used_fails_alone_and_is_tried_again(tmp_path: Path):
    absent = tmp_path / "later.png"
    lines = [f"image|text|{absent}", f"image|text|{tiny_model().files[Modality.IMAGE]}", f"image|text|{__file__}"]
    tasks = [parse_task(line, where=line) for line in lines]
    failed = [one for one in answered(planned(tmp_path / "out", tasks=tasks)) if isinstance(one, Failure)]
    assert [one.error.reason for one in failed] == ["media_missing", "media_unreadable"]
    Image.new("RGB", (64, 64), "red").save(absent)
    again = planned(tmp_path / "out", tasks=tasks)
    assert [task.path for _, task in again.pending] == [absent, Path(__file__)]


def test_a_prompt_longer_than_the_model_fails_alone(tmp_path: Path):
    tasks = [parse_task("text|image|" + "circle " * 600), parse_task("text|image|a circle")]
    long, short = answered(planned(tmp_path, tasks=tasks))
    assert isinstance(long, Failure) and long.error.reason == "prompt_too_long" and "shorten" in str(long.error)
    assert isinstance(short, Answer)


def test_what_a_config_lacks_is_told_before_a_model_is_opened(tmp_path: Path):
    config = tiny_config(f"output={tmp_path}").model_copy(update={"codecs": {}})
    with pytest.raises(ConfigError, match=r"here: text\|image needs codecs.image, found none in the config"):
        plan_tasks([parse_task("text|image|x", where="here")], config)
    voice = tiny_model().files[Modality.SPEECH]
    with pytest.raises(ConfigError, match="a voice prompt needs a vocoder"):
        plan_tasks([parse_task(f"text|speech|hello|{voice}")], tiny_config(f"output={tmp_path}"))


def test_two_runs_do_not_write_to_one_output(tmp_path: Path):
    plan = planned(tmp_path)
    first = answer_tasks(plan, lambda: runtime_of(plan))
    next(first)
    with pytest.raises(DatasetError, match="expected no other run to write there"):
        answered(planned(tmp_path))
    late = planned(tmp_path)
    assert len([*first]) == 6
    assert len(list(answer_tasks(late, never))) == len(late.pending), "answered since it was planned: told, not asked"
    assert len(read_results(tmp_path / RESULTS_NAME)) == 7


def test_the_instruction_follows_from_key_and_seed():
    pool = [f"Sentence {n}." for n in range(100)]
    drawn = [instruction_for(f"key {n}", "text_to_image", pool, seed=0) for n in range(200)]
    assert drawn == [instruction_for(f"key {n}", "text_to_image", pool, seed=0) for n in range(200)]
    assert len(set(drawn)) > 70 and drawn != [instruction_for(f"key {n}", "", pool, seed=1) for n in range(200)]


def test_lines_are_whole_or_not_there(tmp_path: Path):
    path = tmp_path / RESULTS_NAME
    rows = [{"key": f"{n}", "settings": "s", "text": "two\nlines\u2028\ud83d"} for n in range(3)]
    append_results(path, rows[:1])
    append_results(path, rows[1:])
    assert read_results(path) == rows
    with path.open("ab") as file:
        file.write(b'{"key": "3"')
    assert read_results(path) == rows
    mend_results(path)
    append_results(path, rows[:1])
    assert read_results(path) == [*rows, rows[0]]
    path.write_text('{"no": "key"}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"results.jsonl, line 1: expected a result"):
        read_results(path)


def test_a_killed_run_loses_at_most_its_batch_and_is_continued(tmp_path: Path):
    """Killed again and again at whatever it is doing, then left alone: every task once, the files of a calm run."""
    tasks = [parse_task(f"text|image|circle number {n}") for n in range(24)]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    answered(planned(calm, "batch_size=2", tasks=tasks))
    for kill in range(6):
        there = len(read_results(killed / RESULTS_NAME))
        child = in_a_process(lambda: answered(planned(killed, "batch_size=2", tasks=tasks)))
        wait_for_lines(killed / RESULTS_NAME, there + 2)
        time.sleep(kill * 0.007)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(read_results(killed / RESULTS_NAME)) >= there + 2
    left = planned(killed, "batch_size=2", tasks=tasks)
    assert left.pending, "or nothing was tried"
    answered(left)
    keys = [row["key"] for row in read_results(killed / RESULTS_NAME)]
    assert len(keys) == len(set(keys)) == 24
    assert content(killed) == content(calm)


def in_a_process(action: Callable[[], object]) -> int:
    """Do something in a copy of this process, which has all that takes long to open; its id."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return child


def wait_for_lines(path: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(read_results(path)) < count:
        assert time.monotonic() < until, f"expected {count} results within a minute"
        time.sleep(0.001)


def test_results_say_what_was_asked_and_what_came(tmp_path: Path):
    line = json.loads(json.dumps(answered(planned(tmp_path))[0].row))
    assert {"key", "settings", "source", "target", "input", "instruction", "file", "token_ids"} <= set(line)
