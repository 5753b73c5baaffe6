"""A cap on the cost of media holds over workers, runs and kills; a request that might exceed it is never made."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ConfigError, DatasetError, SampleError
from shards.modality import Modality
from synthesis.calls import BudgetSpent
from synthesis.media import FOLDERS, MediaRequest
from synthesis.media_budget import MediaBudget, open_budget
from synthesis.media_config import CorpusMediaConfig, HttpPictures
from synthesis.media_http import HttpPlug
from synthesis.media_job import make_media
from tests.synthesis.media_server import hangs, picture, png_bytes, says, serve
from tests.synthesis.synthetic_dialogues import draw_dialogue, write_dialogues

QUICK: dict[str, Any] = {"plug": "http", "backoff_s": 0.01, "timeout_s": 60.0, "max_tries": 3}


def config(url: str, **settings: Any) -> CorpusMediaConfig:
    table = {**QUICK, "base_url": url, "usd_per_item": 0.04, **settings}
    return CorpusMediaConfig.model_validate({"pictures": table, "workers": 0, "spoken_share": 0.0, "music_s": 1.0})


def asked(*names: str) -> list[MediaRequest]:
    return [MediaRequest(Modality.IMAGE, "a dog", name, 7) for name in names]


def plug(url: str, output: Path, **settings: Any) -> tuple[HttpPlug, MediaBudget]:
    pictures = HttpPictures(base_url=url, **{**QUICK, "usd_per_item": 0.1, **settings})
    budget = open_budget(pictures, output, "pictures")
    return HttpPlug(pictures, budget=budget), budget


def test_a_run_stops_at_the_cap_and_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    """Three pictures for twelve cents; no further run asks for a fourth, until it may; and none is asked for twice."""
    write_dialogues(tmp_path, [draw_dialogue(number) for number in range(8)])
    corpus = tmp_path / "corpus"
    with serve(picture) as server:
        for _ in range(2):
            with pytest.raises(BudgetSpent, match=r"pictures\.max_usd = 0\.12: 3 media were asked for"):
                make_media(config(server.url, max_usd=0.12), tmp_path, corpus)
            assert len(server.calls) == 3
            assert len(list((corpus / FOLDERS[Modality.IMAGE]).iterdir())) == 3, "what was paid for is kept"
        report = make_media(config(server.url, max_usd=1.0), tmp_path, corpus)
        assert report["written"] == 8
        assert report["media"]["image"] == len(server.calls)
    assert MediaBudget(corpus / "spent/pictures", "pictures", 0.04, None).items == len(server.calls)


def test_a_killed_run_has_counted_what_it_asked_for(tmp_path: Path) -> None:
    """SIGKILL while two requests are under way: both count, and the next run asks for nothing."""
    write_dialogues(tmp_path, [draw_dialogue(number) for number in range(8)])
    with serve(hangs(2.0)) as server:
        capped = config(server.url, max_usd=0.08, concurrency=2)
        arguments = (capped, tmp_path, tmp_path / "corpus")
        run = multiprocessing.get_context("fork").Process(target=make_media, args=arguments)
        run.start()
        while len(server.calls) < 2 and run.is_alive():
            time.sleep(0.01)
        run.kill()
        run.join()
        with pytest.raises(BudgetSpent):
            make_media(*arguments)
        assert len(server.calls) == 2


def _reserve_all(budget: MediaBudget, counted: Any) -> None:
    for _ in range(100):
        try:
            budget.reserve()
        except BudgetSpent:
            return
        with counted.get_lock():
            counted.value += 1


def test_workers_that_ask_at_once_cannot_pass_the_cap_together(tmp_path: Path) -> None:
    """Four processes take what they get; ten cents a piece, 2.5 dollars: 25 pieces, as decimals and not as floats."""
    fork = multiprocessing.get_context("fork")
    counted = fork.Value("i", 0)
    budget = MediaBudget(tmp_path / "spent/pictures", "pictures", 0.1, 2.5)
    workers = [fork.Process(target=_reserve_all, args=(budget, counted)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counted.value == budget.items == 25


def test_what_an_endpoint_refuses_is_free_and_what_it_may_have_made_is_not(tmp_path: Path) -> None:
    """429, 500, 401 and no connection cost nothing; a picture of one colour, garbage and a late answer do."""
    with serve(says({}, 429), says({}, 500), picture) as server:
        one, budget = plug(server.url, tmp_path / "refused")
        ((_, made),) = one.make(asked("a"))
        assert isinstance(made, np.ndarray)
        assert budget.items == 1
    with serve(says({}, 401)) as server:
        one, budget = plug(server.url, tmp_path / "key")
        with pytest.raises(ConfigError):
            list(one.make(asked("a")))
        assert budget.items == 0
    one, budget = plug(server.url, tmp_path / "nobody")
    ((_, made),) = one.make(asked("a"))
    assert isinstance(made, SampleError)
    assert (made.reason, budget.items) == ("call_no_connection", 0)
    with serve(says(b"garbage"), lambda: picture(png_bytes(plain=True)), hangs(1.5)) as server:
        one, budget = plug(server.url, tmp_path / "made", timeout_s=0.5)
        ((_, made),) = one.make(asked("a"))
        assert isinstance(made, SampleError)
        assert (made.reason, budget.items) == ("call_timeout", 3)


def test_what_is_under_way_when_the_cap_is_met_is_waited_for(tmp_path: Path) -> None:
    """Two are paid for, and both are given out before the run stops."""
    with serve(hangs(0.3)) as server:
        one, _ = plug(server.url, tmp_path, max_usd=0.2, concurrency=4)
        found: list[str] = []
        with pytest.raises(BudgetSpent):
            found.extend(request.key for request, _ in one.make(asked("a", "b", "c", "d")))
    assert len(found) == len(server.calls) == 2


def test_a_count_that_is_none_and_a_cap_without_a_price_are_errors(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_bytes(b"plenty")
    with pytest.raises(DatasetError, match="plenty"):
        MediaBudget(tmp_path / "pictures", "pictures", 0.1, 1.0).reserve()
    with pytest.raises(ValueError, match="usd_per_item"):
        HttpPictures(base_url="http://localhost/v1", plug="http", max_usd=1.0)
