"""A route runs commands in order, stops at the first that fails, and keeps the figures of the walk that did the work."""

import sys

import pytest

from configs.load import validate
from evaluation.cli import route
from evaluation.route import RouteConfig, StageFailed, read_figures, walk


def routed(tmp_path, *scripts: str) -> RouteConfig:
    stages = [{"name": f"s{n}", "command": [sys.executable, "-c", script]} for n, script in enumerate(scripts)]
    return validate({"run": tmp_path / "run", "stages": stages}, RouteConfig, where="test")


def test_stages_run_in_order_and_are_measured(tmp_path):
    log = tmp_path / "log"
    config = routed(tmp_path, f"open({str(log)!r},'a').write('a')", f"open({str(log)!r},'a').write('b')")
    told: list[str] = []
    figures = walk(config, announce=told.append)
    assert log.read_text() == "ab" and list(figures) == ["s0", "s1"] and len(told) == 2
    assert all(stage.seconds >= 0 for stage in figures.values())


def test_the_memory_of_a_stage_is_that_of_its_whole_tree(tmp_path):
    grandchild = "import time; block = bytearray(200 << 20); time.sleep(1.5)"
    config = routed(tmp_path, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])")
    assert walk(config, announce=lambda _: None)["s0"].peak_rss_gib > 0.19


def test_walking_a_finished_route_again_changes_no_byte(tmp_path):
    config = routed(tmp_path, "import time; time.sleep(0.1)")
    walk(config, announce=lambda _: None)
    before = (tmp_path / "run" / "route.json").read_bytes()
    walk(config, announce=lambda _: None)
    assert (tmp_path / "run" / "route.json").read_bytes() == before


def test_a_changed_stage_is_measured_anew(tmp_path):
    walk(routed(tmp_path, "pass"), announce=lambda _: None)
    first = read_figures(tmp_path / "run")["s0"]
    walk(routed(tmp_path, "import time; time.sleep(0.3)"), announce=lambda _: None)
    assert read_figures(tmp_path / "run")["s0"].key != first.key


@pytest.mark.parametrize(("status", "exit_code"), [(1, 1), (2, 2), (7, 1)])
def test_a_failing_stage_stops_the_route_and_names_itself(tmp_path, status, exit_code):
    config = routed(tmp_path, f"raise SystemExit({status})", "raise SystemExit(9)")
    with pytest.raises(StageFailed, match="'s0'") as caught:
        walk(config, announce=lambda _: None)
    assert caught.value.exit_code == exit_code


def test_a_missing_route_is_wrong_usage(tmp_path, capsys):
    assert route([str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
