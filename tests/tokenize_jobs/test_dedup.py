"""Planted copies and leaks are found, each of them and nothing else; the bytes do not depend on who made them or when."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.leave_out import LeaveOut
from tokenize_jobs.dedup_cli import main

CAPTION = "photograph number {} of a series in which no two show the same thing, taken on a {} afternoon by {}"
WEATHER = ("rainy", "sunny", "windy", "misty", "quiet", "frosty", "golden")
PEOPLE = ("Ada", "Grace", "Alan", "Barbara", "Edsger")


@dataclass(frozen=True, slots=True)
class Item:
    key: str
    picture: bytes
    caption: str
    url: str = ""


def photo(seed: int, *, side: int = 256) -> Image.Image:
    noise = np.random.Generator(np.random.PCG64(seed)).integers(256, size=(9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def re_encoded(seed: int, *, side: int, quality: int) -> bytes:
    return jpeg(photo(seed).resize((side, side), Image.Resampling.LANCZOS), quality)


def caption(seed: int) -> str:
    """A long caption; no two are near each other."""
    words = np.random.Generator(np.random.PCG64(seed)).permutation([*WEATHER, *PEOPLE, *CAPTION.split()])
    return f"{seed} " + " ".join(words.tolist())


def original(seed: int, key: str) -> Item:
    return Item(key, jpeg(photo(seed)), caption(seed), f"http://pictures.example.org/photo_{seed}.jpg")


def write_corpus(root: Path, items: Iterable[Item]) -> Path:
    """An img2dataset folder of one tar."""
    root.mkdir(parents=True)
    with tarfile.open(root / "00000.tar", "w") as archive:
        for item in items:
            metadata = json.dumps({"url": item.url, "key": item.key}).encode()
            for ending, data in (("jpg", item.picture), ("txt", item.caption.encode()), ("json", metadata)):
                info = tarfile.TarInfo(f"{item.key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return root


def first_corpus() -> list[Item]:
    return [original(seed, f"00000{seed:04d}") for seed in range(30)]


def second_corpus() -> list[Item]:
    """12 of its own, and what was planted: see ``PLANTED``."""
    own = [original(seed, f"00000{seed:04d}") for seed in range(100, 112)]
    exact = [Item(f"00000100{n}", jpeg(photo(n)), caption(200 + n)) for n in range(3)]
    within = [Item(f"00000200{n}", jpeg(photo(100 + n)), caption(210 + n)) for n in range(2)]
    near = [
        Item(f"00000300{n}", re_encoded(10 + n, side=side, quality=quality), caption(220 + n))
        for n, (side, quality) in enumerate([(120, 90), (180, 70), (400, 60), (256, 50)])
    ]
    edited = [Item(f"00000400{n}", jpeg(photo(230 + n)), caption(20 + n).replace("no", "No -")) for n in range(3)]
    flat = [Item(f"00000500{n}", jpeg(Image.new("RGB", (99 + n, 99), "white")), caption(240 + n)) for n in range(3)]
    by_id = [
        Item(f"00000600{n}", jpeg(photo(250 + n)), caption(250 + n), f"http://coco.org/COCO_{n}.jpg") for n in range(2)
    ]
    by_text = [Item(f"00000700{n}", jpeg(photo(260 + n)), caption(260 + n)) for n in range(2)]
    by_media = [Item("000008000", jpeg(photo(270)), caption(270))]
    copy_of_leak = [Item("000009000", re_encoded(270, side=150, quality=80), caption(280))]
    return [*own, *exact, *within, *near, *edited, *flat, *by_id, *by_text, *by_media, *copy_of_leak]


PLANTED = {
    "duplicate_media": 3 + 2,
    "near_duplicate_picture": 4 + 1,
    "near_duplicate_text": 3,
    "leaked_id": 2,
    "leaked_text": 2,
    "leaked_media": 1,
}


def write_config(folder: Path, roots: dict[str, Path], *, more: str = "") -> Path:
    """A config of img2dataset corpora in the order given, 8 pictures a unit."""
    for name, root in roots.items():
        (folder / f"{name}.toml").write_text(
            f'corpus = "laion2b"\nname = "{name}"\nroot = "{root}"\noutput = "{folder / name}-out"\nunit_items = 8\n',
            encoding="utf-8",
        )
    corpora = ", ".join(f'"{folder / name}.toml"' for name in roots)
    path = folder / "dedup.toml"
    path.write_text(f'corpora = [{corpora}]\noutput = "{folder / "out"}"\nworkers = 0\n{more}', encoding="utf-8")
    return path


def write_lists(folder: Path) -> str:
    """Evaluation items: those planted, and some that are in no corpus."""
    ids = [f"COCO_{n}.jpg" for n in (0, 1, 77)]
    (folder / "ids.txt").write_text("\n".join(ids), encoding="utf-8")
    texts = [{"id": str(n), "text": caption(n).upper() + " !"} for n in (260, 261, 999)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    digests = [hashlib.sha256(data).hexdigest() for data in (jpeg(photo(270)), b"another file")]
    (folder / "media.csv").write_text("\n".join(["sha256", *digests]), encoding="utf-8")
    by = {"ids.txt": ["id"], "texts.jsonl": ["id", "text"], "media.csv": ["media"]}
    return "".join(
        f'[[decontaminate.lists]]\nname = "{name.split(".")[0]}"\nfile = "{folder / name}"\nby = {json.dumps(how)}\n'
        for name, how in by.items()
    )


TEXT = '[text]\non = true\nslots = ["caption"]\nmin_chars = 60\n'


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of two corpora with planted copies and leaks, already run in this process."""
    folder = tmp_path_factory.mktemp("planted")
    roots = {"first": write_corpus(folder / "a", first_corpus()), "second": write_corpus(folder / "b", second_corpus())}
    config = write_config(folder, roots, more=TEXT + write_lists(folder))
    assert main([str(config)]) == 0
    return config


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def left_out(output: Path) -> list[dict]:
    return pq.read_table(output / "left_out.parquet").to_pylist()


def test_what_was_planted_is_found_and_nothing_else(planted: Path):
    rows = left_out(planted.parent / "out")
    assert Counter(row["reason"] for row in rows) == PLANTED
    assert {row["corpus"] for row in rows} == {"second"}, "the corpus named first keeps its copies"
    report = json.loads((planted.parent / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["left_out"] == {"first": {}, "second": PLANTED}
    assert report["inputs"] == {"first": 30, "second": len(second_corpus())}


def test_every_row_says_what_it_is_a_copy_of(planted: Path):
    rows = {row["sample_id"].rpartition("/")[2]: row for row in left_out(planted.parent / "out")}
    of = {key: row["of"] for key, row in rows.items()}
    assert of["000001001"] == "first:laion2b/00000/000000001"
    assert of["000002001"] == "second:laion2b/00000/000000101"
    assert of["000003002"] == "first:laion2b/00000/000000012"
    assert of["000004000"] == "first:laion2b/00000/000000020"
    assert of["000006001"] == "ids:COCO_1.jpg"
    assert of["000007000"] == "texts:260"
    assert of["000008000"] == "media:1"
    assert of["000009000"] == "second:laion2b/00000/000008000", "a small copy of a leaked picture goes with it"
    assert rows["000001001"]["score"] == 1.0
    assert 0.9 < rows["000003002"]["score"] <= 1.0
    assert 0.8 <= rows["000004000"]["score"] <= 1.0


def test_tokenization_can_look_the_list_up(planted: Path):
    found = LeaveOut.load([planted.parent / "out"])
    rows = left_out(planted.parent / "out")
    assert len(found) == len(rows)
    assert all(found.reason(row["corpus"], row["sample_id"]) == row["reason"] for row in rows)
    assert found.reason("first", rows[0]["sample_id"]) is None


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one_process(planted: Path, tmp_path: Path, ray_of_this_process: None):
    assert main([str(planted), "--set", f"output={tmp_path / 'out'}", "--set", "workers=2"]) == 0
    assert tree(tmp_path / "out") == tree(planted.parent / "out")


def test_a_second_call_does_nothing_and_another_threshold_only_matches_again(planted: Path, tmp_path: Path):
    output = tmp_path / "out"
    assert main([str(planted), "--set", f"output={output}"]) == 0
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.*")}
    assert main([str(planted), "--set", f"output={output}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.*")} == stamps
    assert main([str(planted), "--set", f"output={output}", "--set", "text.threshold=0.7"]) == 0
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"left_out.parquet", "report.json"}


def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_with_the_same_bytes(planted: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        "import sys; from tokenize_jobs.dedup_cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    arguments = [str(planted), "--set", f"output={output}"]
    with subprocess.Popen([*command, *arguments], start_new_session=True, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while not list(output.rglob("unit-*.parquet")):
            assert running.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(running.pid, signal.SIGKILL)
    made = {path: path.stat().st_mtime_ns for path in output.rglob("unit-*.parquet")}
    assert not (output / "left_out.parquet").exists(), "it was killed too late to prove anything"
    torn = output / "signatures" / "first" / "unit-000001.parquet.node.1.tmp"
    torn.write_bytes(b"half a file")
    assert main(arguments) == 0
    assert tree(output) == tree(planted.parent / "out")
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was there was made again"


def test_a_torn_or_stale_signature_file_is_made_again(planted: Path, tmp_path: Path):
    output = tmp_path / "out"
    arguments = [str(planted), "--set", f"output={output}"]
    assert main([*arguments, "--set", "pictures.on=false"]) == 0
    (output / "signatures" / "first" / "unit-000002.parquet").write_bytes(b"PAR1 torn")
    assert main(arguments) == 0
    assert tree(output) == tree(planted.parent / "out")


def test_what_a_filter_leaves_out_is_nobody_s_original(tmp_path: Path):
    """Else both copies were gone: one by the filter, one as the copy of it."""
    picture = jpeg(photo(1))
    roots = {
        "first": write_corpus(tmp_path / "a", [Item("000000000", picture, "no")]),
        "second": write_corpus(tmp_path / "b", [Item("000000000", picture, caption(1))]),
    }
    config = write_config(tmp_path, roots)
    first = tmp_path / "first.toml"
    first.write_text(first.read_text(encoding="utf-8") + "[filters]\nmin_caption_chars = 5\n", encoding="utf-8")
    assert main([str(config)]) == 0
    assert left_out(tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["inputs"] == {
        "first": 0,
        "second": 1,
    }


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(planted: Path, tmp_path: Path, capsys):
    assert main([str(planted), "--dry-run", "--set", f"output={tmp_path / 'out'}"]) == 0
    assert "second" in (said := capsys.readouterr().out)
    assert "to be made" in said
    assert not (tmp_path / "out").exists()
    assert main([str(planted), "--dry-run"]) == 0
    assert "the list is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("roots.third=x", "roots.third: expected one of the corpora first, second"),
        ("pictures.max_distance=9", "pictures.max_distance"),
        ('decontaminate.lists=[{name="a", file="absent.txt", by=["id"]}]', "absent.txt"),
    ],
)
def test_a_wrong_config_is_refused(planted: Path, override: str, message: str, capsys):
    assert main([str(planted), "--set", override]) == 2
    assert message in capsys.readouterr().err


def test_the_clean_corpora_raise_no_alarm(shared_corpora: Path, repository: Path, tmp_path: Path):
    """Real pictures, speech and music: 135 samples, among which no medium is a copy of another."""
    config = repository / "configs" / "dedup" / "example.toml"
    names = [
        path.stem
        for path in sorted((repository / "configs" / "corpora").glob("*.toml"))
        if (shared_corpora / path.stem).is_dir()
    ]
    corpora = json.dumps([str(repository / "configs" / "corpora" / f"{name}.toml") for name in names])
    overrides = [f"corpora={corpora}", f"output={tmp_path / 'out'}", "workers=0"]
    overrides += [f"roots.{name}={shared_corpora / name}" for name in names]
    assert len(names) == 11
    assert main([str(config), *(word for override in overrides for word in ("--set", override))]) == 0
    assert left_out(tmp_path / "out") == []
