"""Damaged inputs: every line of the manifest ends as one reject with a named reason, or as a documented repair.

Inputs are read and decoded as stage A does it. ``tests/fixtures/damaged_outcomes.py`` says what becomes of every input of
every damaged file, by the manifest's own names. A second test holds the sums: every input of every file ends once, so
nothing else of a damaged file is lost.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.filters.apply import filter_decoded
from pipeline.filters.config import FilterConfig
from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.samples import Filtered, Reject
from pipeline.tokenization import DecodedSample, decode_samples
from shards.convert import import_jsonl
from tests.fixtures.damaged_outcomes import CLIPS, FOLDERS, IDS_OF_LINES, OK, TABLE, TOKEN_FILES, WAVS


class Ended:
    """What became of every input of a damaged corpus."""

    def __init__(self, root: Path, corpus: str, split: str = "train") -> None:
        config = CorpusConfig(corpus=corpus, root=root, output=Path("unused"), split=split)
        reader = load_corpus(config)
        sources = reader.sources()
        raw = [result for source in sources for result in reader.read(source)]
        decoded = decode_samples(raw, make_decoder(MediaConfig(), WindowConfig()))
        self.results = list(filter_decoded(decoded, FilterConfig()))
        self.num_items = sum(source.num_items for source in sources)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(r.sample_id, OK if isinstance(r, DecodedSample) else r.reason) for r in self.results]


@pytest.fixture(scope="module")
def damaged(shared_corpora: Path) -> Path:
    return shared_corpora / "damaged"


@pytest.fixture(scope="module")
def ended(damaged: Path) -> dict[str, list[tuple[str, str]]]:
    """Folder of the damaged corpora -> (sample id, outcome) of all of its inputs."""
    found: dict[str, list[tuple[str, str]]] = {}
    for folder in sorted(path.name for path in damaged.iterdir() if path.is_dir() and path.name != "anygpt_tokens"):
        found[folder] = Ended(damaged / folder, FOLDERS.get(folder, folder)).outcomes
    for split in ("dev", "test"):
        found["commonvoice"] += Ended(damaged / "commonvoice", "commonvoice", split).outcomes
    return found


def manifest(damaged: Path) -> list[str]:
    rows = csv.reader((damaged / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return [row[0] for row in rows][1:]


def test_the_table_is_about_every_line_of_the_manifest(damaged: Path):
    entries = manifest(damaged)
    assert len(entries) == 98
    assert set(entries) == set(TABLE) | set(TOKEN_FILES)


@pytest.mark.parametrize("entry", TABLE)
def test_an_entry_ends_as_the_table_says(entry: str, ended: dict[str, list[tuple[str, str]]]):
    outcomes = ended[entry.partition("/")[0]]
    for name, wanted in TABLE[entry].items():
        sample_id = IDS_OF_LINES[entry] + name if name.isdigit() else name
        # A key that comes twice has a second entry, checked on its own.
        assert (sample_id, wanted) in outcomes, [found for found in outcomes if found[0] == sample_id]


def test_nothing_ends_twice_and_nothing_else_is_lost(damaged: Path, ended: dict[str, list[tuple[str, str]]]):
    """The table names every input but the duplicates; each ends once, and the sums agree with what was counted."""
    named: dict[str, set[str]] = {}
    for entry, outcomes in TABLE.items():
        ids = {IDS_OF_LINES[entry] + name if name.isdigit() else name for name in outcomes}
        named.setdefault(entry.partition("/")[0], set()).update(ids)
    for folder, outcomes in ended.items():
        counts = Counter(sample_id for sample_id, _ in outcomes)
        assert set(counts) == named[folder]
        assert {sample_id for sample_id, count in counts.items() if count > 1} == (
            {"laion2b/00003/000030000"} if folder == "laion" else set()
        )
    assert ("laion2b/00003/000030000", "duplicate_key") in ended["laion"]


def test_inputs_are_samples_plus_filtered_plus_rejects(damaged: Path):
    for folder in (
        "laion",
        "journeydb",
        "mmc4",
        "mls",
        "commonvoice",
        "gigaspeech",
        "youtube_music",
        "musiccaps",
        "anyinstruct",
    ):
        run = Ended(damaged / folder, FOLDERS.get(folder, folder))
        kinds = Counter(type(result) for result in run.results)
        assert run.num_items == kinds[DecodedSample] + kinds[Filtered] + kinds[Reject]
        assert run.num_items > 0


@pytest.mark.parametrize("entry", TOKEN_FILES)
def test_damaged_lines_of_tokens_are_rejects(entry: str, damaged: Path, tmp_path: Path):
    total, good = TOKEN_FILES[entry]
    result = import_jsonl(damaged / entry, tmp_path / "dataset")
    assert (result.counts["inputs"], result.counts["written"]) == (total, good)


def test_sounds_without_a_row_can_be_decoded(damaged: Path):
    """Intact files that the manifest lists, but whose rows are missing or broken."""
    from pipeline.sounds import SoundConfig, decode_sound

    for name in (f"{WAVS}000006.flac", f"{WAVS}000008.flac", f"{CLIPS}651325.mp3"):
        assert len(decode_sound((damaged / name).read_bytes(), SoundConfig())) > 8000


def test_repairs_keep_what_they_should(damaged: Path):
    def caption(sample_id: str) -> str:
        (text,) = [s.text for s in laion_samples[sample_id].segments if not hasattr(s, "clip")]
        return text

    results = Ended(damaged / "laion", "laion2b").results
    laion_samples = {r.sample_id.removeprefix("laion2b/"): r for r in results if isinstance(r, DecodedSample)}
    assert caption("00000/000000012") == "a cat"
    assert caption("00000/000000013") == "a close up of a cat"
    assert caption("00000/000000014") == "a cat"
    assert caption("00000/000000023") == "a cup of coffee"
    assert caption("00000/000000026") == "a cat"
    assert caption("00003/000030000") == "a close up of a cat"
    assert "similarity" not in laion_samples["00000/000000024"].quality
    assert laion_samples["00000/000000024"].quality["width"] == 300.0
    assert laion_samples["00000/000000013"].quality == {}


def test_the_bombs_are_refused_by_their_headers(damaged: Path, tmp_path: Path):
    """A picture of 25,000 x 25,000 would be 1.9 GB in memory; a fresh process that refuses it stays far below."""
    with tarfile.open(damaged / "laion" / "00000.tar") as shard:
        for name in ("000000010.png", "000000011.png"):
            member = shard.extractfile(name)
            assert member is not None
            (tmp_path / name).write_bytes(member.read())
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.pictures import decode_picture; from shards.errors import SampleError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: decode_picture(path.read_bytes())\n"
        "    except SampleError as error: print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=root
    )
    *reasons, grown = done.stdout.split()
    assert reasons == ["image_too_large"] * 2
    # In KiB on Linux, in bytes on macOS.
    assert int(grown) / (1024 if sys.platform == "darwin" else 1) < 50_000


def test_nothing_is_written_anywhere(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Names such as ../evil.jpg and /abs_evil.jpg are looked at, never opened for writing."""
    opened: list[str] = []

    def audit(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(args[2], int) and args[2] & 3:
            opened.append(str(args[0]))

    watching = True
    sys.addaudithook(audit)
    monkeypatch.chdir(tmp_path)
    try:
        Ended(damaged / "laion", "laion2b")
        Ended(damaged / "journeydb", "journeydb")
    finally:
        watching = False
    assert [name for name in opened if name != "/dev/null" and "__pycache__" not in name] == []
    assert list(tmp_path.iterdir()) == []


def test_the_page_lists_every_reason_there_is(repository: Path):
    """docs/damaged-inputs.md against the code: whoever adds a reason adds its line."""
    page = (repository / "docs" / "damaged-inputs.md").read_text(encoding="utf-8")
    files = [*(repository / "pipeline").glob("reading/*.py"), *(repository / "pipeline").glob("corpora/*.py")]
    files += [repository / "pipeline" / f"{name}.py" for name in ("pictures", "sounds")]
    raised = re.compile(r'(?:SampleError\(\s*|problem = |problem=|reason = )"([a-z0-9_]+)"')
    reasons = {reason for path in files for reason in raised.findall(path.read_text(encoding="utf-8"))}
    assert len(reasons) > 40
    assert sorted(reason for reason in reasons if f"`{reason}`" not in page) == []
