"""The job: one worker or two write the same bytes, and so does a run that was killed and started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.ledger import read_entries
from synthesis.media import FOLDERS
from synthesis.media_config import CorpusMediaConfig
from synthesis.media_job import make_media
from tests.synthesis.synthetic_dialogues import draw_dialogue, write_dialogues

COUNT = 12
CONFIG = CorpusMediaConfig(music_s=1.0, unit_dialogues=3, workers=0, spoken_rounds=1)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the two that say how long it took and with how many workers."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("report.json", "synthesis.json")
    }


@pytest.fixture
def ray_of_this_process() -> Iterator[None]:
    """Two CPUs of a local Ray."""
    from tokenize_jobs.session import ray_session

    with ray_session(workers=2):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus made in one go in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_dialogues(folder, [draw_dialogue(number) for number in range(COUNT)])
    make_media(CONFIG, folder, folder / "corpus")
    return folder


def test_killed_at_any_moment_and_started_again_it_writes_the_same_and_makes_nothing_twice(
    undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL after some media, twice; whatever was there then has the same inode at the end: nobody made it again."""
    write_dialogues(tmp_path, [draw_dialogue(number) for number in range(COUNT)])
    corpus = tmp_path / "corpus"
    kept: dict[Path, int] = {}
    for wanted in (4, 25):
        # A fork has everything imported, so the moment of the kill is the work's and not the start's.
        run = multiprocessing.get_context("fork").Process(target=make_media, args=(CONFIG, tmp_path, corpus))
        run.start()
        while run.is_alive() and len(media_of(corpus)) < wanted:
            time.sleep(0.005)
        run.kill()
        run.join()
        assert run.exitcode == -signal.SIGKILL
        found = media_of(corpus)
        assert len(found) >= wanted
        assert all(found[path] == inode for path, inode in kept.items())
        kept = found
    assert len(list(read_entries(corpus))) < COUNT // 3, "killed too late to say anything"
    make_media(CONFIG, tmp_path, corpus)
    assert tree(corpus) == tree(undisturbed / "corpus")
    found = media_of(corpus)
    assert all(found[path] == inode for path, inode in kept.items())


def test_workers_on_ray_write_what_one_process_writes(
    undisturbed: Path, tmp_path: Path, ray_of_this_process: None
) -> None:
    write_dialogues(tmp_path, [draw_dialogue(number) for number in range(COUNT)])
    make_media(CONFIG.model_copy(update={"workers": 2}), tmp_path, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(undisturbed / "corpus")


def test_lines_that_were_lost_are_made_again_from_the_media_that_are_there(undisturbed: Path) -> None:
    before = tree(undisturbed / "corpus")
    inodes = media_of(undisturbed / "corpus")
    (undisturbed / "corpus" / "parts" / "unit-000001.jsonl").unlink()
    (undisturbed / "corpus" / "metadata.jsonl").unlink()
    make_media(CONFIG, undisturbed, undisturbed / "corpus")
    assert tree(undisturbed / "corpus") == before
    assert media_of(undisturbed / "corpus") == inodes


def media_of(corpus: Path) -> dict[Path, int]:
    """The media that are whole, with their inodes."""
    found: dict[Path, int] = {}
    for folder in FOLDERS.values():
        with_inodes = os.scandir(corpus / folder) if (corpus / folder).is_dir() else ()
        found |= {Path(one.path): one.inode() for one in with_inodes if not one.name.endswith(".tmp")}
    return found
