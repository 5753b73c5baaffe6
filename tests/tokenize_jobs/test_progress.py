"""What a running job shows: a bar on a terminal, lines elsewhere, figures on Ray's dashboard."""

from __future__ import annotations

import io
import json

import ray

from shards.ledger import Entry
from tokenize_jobs.live_metrics import record_unit
from tokenize_jobs.progress import INTERVAL_S, Progress


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_off_a_terminal_there_is_a_line_every_half_minute_and_one_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, 10, stream=stream, clock=clock) as progress:
        for _ in range(20):
            clock.now += 5.0
            progress.unit(inputs=10, tokens=320, busy_s=4.0, wait_s=1.0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 100 // int(INTERVAL_S) + 1
    last = lines[-1]
    assert last["event"] == "tokenize_progress"
    assert (last["done"], last["units"], last["left_s"], last["busy_share"]) == (30, 100, 350, 0.8)
    assert (last["units_per_s"], last["samples_per_s"], last["tokens_per_s"]) == (0.2, 2.0, 64.0)


def test_a_slow_start_does_not_spoil_the_forecast():
    """Starting Ray and loading codecs took a minute; every unit takes one second."""
    clock = Clock()
    progress = Progress(11, stream=io.StringIO(), clock=clock).__enter__()
    clock.now += 60.0
    progress.unit(inputs=1, tokens=32)
    for _ in range(5):
        clock.now += 1.0
        progress.unit(inputs=1, tokens=32)
    assert progress.figures()["left_s"] == 5


def test_before_the_first_unit_nothing_is_claimed():
    with Progress(3, stream=(stream := io.StringIO()), clock=Clock()) as progress:
        figures = progress.figures()
    assert (figures["units_per_s"], figures["left_s"], figures["busy_share"]) == (None, None, None)
    assert stream.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_with_rates_and_the_busy_share():
    clock, stream = Clock(), Terminal()
    with Progress(10, 4, stream=stream, clock=clock) as progress:
        for _ in range(6):
            clock.now += 1.0
            progress.unit(inputs=100, tokens=3200, busy_s=9.0, wait_s=1.0)
    shown = stream.getvalue()
    assert "10/10" in shown
    assert "3,200 tokens/s, 100 samples/s, busy 90%" in shown


UNIT = Entry(
    "unit-000000", "f" * 16, "00000.tar", 9, 0, 12, 12, 9,
    filtered={"unsafe": 1}, rejected={"image_broken": 2, "none": 0}, tokens={"image": 288, "speech": 0},
)  # fmt: skip
EMPTY = Entry("unit-000001", "f" * 16, "00000.tar", 9, 12, 12, 0, 0)


def test_outside_of_ray_nothing_is_recorded(no_ray_here: None):
    assert record_unit("pairs", UNIT, encode_s=1.5, wait_s=0.5) is False


def test_in_a_real_actor_every_figure_is_recorded_any_number_of_times(ray_of_this_process: None):
    @ray.remote
    class Encoder:
        def done(self, unit: Entry, encode_s: float) -> bool:
            return record_unit("pairs", unit, encode_s=encode_s, wait_s=0.5)

    encoder = Encoder.remote()
    units = ((UNIT, 1.5), (UNIT, 1.5), (EMPTY, 0.0))
    assert ray.get([encoder.done.remote(*unit) for unit in units]) == [True, True, True]
