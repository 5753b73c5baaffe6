"""Damaged inputs: every line of the manifest ends as one reject with a named reason, or as a documented repair.

Inputs are read and decoded as stage A does it. The table below says what becomes of every input of every damaged file,
by the manifest's own names; ``OK`` is a repair (or an input that was never damaged), and ``docs/damaged-inputs.md`` says
which. A second test holds the sums: every input of every file ends once, so nothing else of a damaged file is lost.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.filters import FilterConfig, filter_decoded
from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.samples import Filtered, Reject
from pipeline.tokenization import DecodedSample, decode_samples
from shards.convert import import_jsonl

OK = "ok"
JSONL = "train_anno_realease_repath.jsonl"
WAVS = "mls/mls_english/train/audio/2412/153948/2412_153948_"
CLIPS = "commonvoice/en/clips/common_voice_en_"
POD = "gigaspeech/audio/podcast/P0001/POD000000000"


def lines(*reasons: str) -> dict[str, str]:
    """Outcomes of lines 1, 2, ... of a file."""
    return {str(number): reason for number, reason in enumerate(reasons, start=1)}


def laion(key: int, reason: str) -> tuple[str, dict[str, str]]:
    return f"laion/00000.tar::{key:09d}", {f"laion2b/00000/{key:09d}": reason}


# Manifest entry -> what becomes of the inputs it is about. A key of digits is a line of that file; others are sample ids.
TABLE: dict[str, Mapping[str, str]] = {
    **dict(
        laion(key, reason)
        for key, reason in {
            0: "image_truncated",
            1: "media_empty",
            2: "image_too_small",
            3: "image_too_small",
            4: OK,
            5: OK,
            6: OK,
            7: OK,
            8: OK,
            9: OK,
            10: "image_too_large",
            11: "image_too_large",
            12: OK,
            13: OK,
            14: OK,
            15: OK,
            16: "media_missing",
            17: "image_unreadable",
            18: OK,
            19: "text_empty",
            20: "text_empty",
            21: "text_too_long",
            22: "text_missing",
            23: OK,
            24: OK,
            25: "special_tokens_in_text",
            26: OK,
            9999: OK,
        }.items()
    ),
    "laion/00000.tar": {"laion2b/00000/000009999": OK},
    "laion/00001.tar": {
        **{f"laion2b/00001/00001000{n}": OK for n in range(3)},
        "laion2b/00001/000010003": "archive_truncated",
    },
    "laion/00002.tar": {
        "laion2b/00002/../evil": "path_outside_archive",
        "laion2b/00002//abs_evil": "path_outside_archive",
        "laion2b/00002/sub/../../evil2": "path_outside_archive",
        "laion2b/00002/000020001": "member_not_a_file",
        "laion2b/00002/000020002": OK,
    },
    "laion/00003.tar": {"laion2b/00003/000030000": OK, "laion2b/00003/000030001": OK},
    "laion/00004.tar": {"laion2b/00004/item-0": "file_empty"},
    "laion/00005.tar": {"laion2b/00005/000050000": OK},
    "laion/00006.tar": {"laion2b/00006/000060000": OK},
    "laion/00006.parquet": {"laion2b/00006/000060000": OK},
    "laion/00006_stats.json": {"laion2b/00006/000060000": OK},
    "laion/00007.tar": {"laion2b/00007/000070000": OK, "laion2b/00007/000070001": OK},
    "journeydb/imgs/000/ok.jpg": {f"journeydb/{JSONL.removesuffix('.jsonl')}/1": OK},
    "journeydb/imgs/000/png_as.jpg": {f"journeydb/{JSONL.removesuffix('.jsonl')}/2": OK},
    "journeydb/imgs/000/cut.jpg": {f"journeydb/{JSONL.removesuffix('.jsonl')}/12": "image_truncated"},
    f"journeydb/{JSONL}": {
        **lines(OK, OK, "json_invalid"),
        # Line 4 is blank and no input.
        "5": "media_missing",
        "6": "text_missing",
        "7": "text_missing",
        "8": "path_outside_corpus",
        "9": "text_not_utf8",
        "10": "record_malformed",
        "11": OK,
        "12": "image_truncated",
        "13": "json_invalid",
    },
    "mmc4/images/aaaaaaaaaaaa.jpg": {"mmc4_core_ff/docs_no_face_shard_0_v3/1": OK},
    "mmc4/images/bbbbbbbbbbbb.jpg": {"mmc4_core_ff/docs_no_face_shard_0_v3/10": "media_empty"},
    "mmc4/docs_no_face_shard_0_v3.jsonl.gz": lines(
        OK,
        "picture_position_invalid",
        "picture_position_invalid",
        "media_missing",
        "path_outside_corpus",
        OK,
        "text_missing",
        "media_missing",
        "record_malformed",
        "media_empty",
        OK,
        "record_malformed",
        OK,
        "json_invalid",
    ),
    "mmc4/docs_no_face_shard_1_v3.jsonl.gz": lines(*[OK] * 214, "file_truncated"),
    "mmc4/docs_no_face_shard_2_v3.jsonl.gz": lines(OK),
    "mmc4/docs_no_face_shard_3_v3.jsonl.gz": lines(OK, OK),
    f"{WAVS}000000.flac": {"mls/english/train/1": OK},
    f"{WAVS}000001.flac": {"mls/english/train/2": "media_empty"},
    f"{WAVS}000002.flac": {"mls/english/train/3": "sound_truncated"},
    f"{WAVS}000003.flac": {"mls/english/train/4": "sound_truncated"},
    f"{WAVS}000004.flac": {"mls/english/train/5": OK},
    f"{WAVS}000005.flac": {"mls/english/train/6": OK},
    # No line names it, so it is no input.
    f"{WAVS}000006.flac": {},
    # Its line has no tab; the sound itself is read in test_sounds_without_a_row_can_be_decoded.
    f"{WAVS}000008.flac": {"mls/english/train/8": "record_malformed"},
    "mls/mls_english/train/transcripts.txt": lines(
        OK,
        "media_empty",
        "sound_truncated",
        "sound_truncated",
        OK,
        OK,
        "media_missing",
        "record_malformed",
        "record_malformed",
        "text_not_utf8",
        "id_malformed",
        "text_empty",
    ),
    # Never read: the cutting it describes is done.
    "mls/mls_english/train/segments.txt": {
        "mls/english/train/1": OK,
        "mls/english/train/5": OK,
        "mls/english/train/6": OK,
    },
    f"{CLIPS}1.mp3": {"commonvoice/en/train/2": OK},
    f"{CLIPS}2.mp3": {"commonvoice/en/train/3": "media_empty"},
    f"{CLIPS}3.mp3": {"commonvoice/en/train/4": "sound_unreadable"},
    f"{CLIPS}4.mp3": {"commonvoice/en/train/5": OK},
    f"{CLIPS}651325.mp3": {},
    f"{CLIPS}6.mp3": {"commonvoice/en/train/7": "sound_unreadable"},
    # The header is line 1 of the file.
    "commonvoice/en/train.tsv": {
        "2": OK,
        "3": "media_empty",
        "4": "sound_unreadable",
        "5": OK,
        "6": "media_missing",
        "7": "sound_unreadable",
        "8": OK,
        "9": "text_empty",
        "10": "path_outside_corpus",
        "11": "record_malformed",
        "12": "record_malformed",
        "13": OK,
    },
    "commonvoice/en/dev.tsv": {"commonvoice/en/dev/2": OK},
    "commonvoice/en/test.tsv": {"commonvoice/en/test/1": "header_malformed"},
    f"{POD}1.opus": {"gigaspeech/POD0000000001/POD0000000001_S0000000": OK},
    f"{POD}2.opus": {"gigaspeech/POD0000000002/POD0000000002_S0000000": "checksum_mismatch"},
    f"{POD}3.opus": {"gigaspeech/POD0000000003/POD0000000003_S0000000": "media_empty"},
    "gigaspeech/GigaSpeech.json": {
        **{
            f"gigaspeech/POD0000000001/POD0000000001_S000000{number}": reason
            for number, reason in enumerate(
                [
                    OK,
                    *["segment_times_invalid"] * 4,
                    OK,
                    "garbage_tag",
                    "unknown_tag",
                    "text_missing",
                    "sound_too_short",
                ]
            )
        },
        "gigaspeech/POD0000000002/POD0000000002_S0000000": "checksum_mismatch",
        "gigaspeech/POD0000000003/POD0000000003_S0000000": "media_empty",
        "gigaspeech/POD0000000004/POD0000000004_S0000000": "media_missing",
        "gigaspeech/GigaSpeech.json@4243": "duplicate_recording",
        "gigaspeech/POD0000000006/POD0000000006_S0000000": "path_outside_corpus",
        "gigaspeech/POD0000000007/POD0000000007_S0000000": "checksum_mismatch",
        "gigaspeech/GigaSpeech.json@6041": "record_malformed",
    },
    "gigaspeech/GigaSpeech_cut.json": {"gigaspeech/POD0000000001@12": "file_truncated"},
    "gigaspeech/GigaSpeech_null.json": {"gigaspeech/GigaSpeech_null.json@0": "metadata_malformed"},
    **{
        f"youtube_music/{name}.wav": {f"youtube_music/{name}": reason}
        for name, reason in {
            "nan_float": "sound_not_finite",
            "inf_float": "sound_not_finite",
            "zero_samples": "sound_empty",
            "header_cut": "sound_unreadable",
            "zero_bytes": "media_empty",
            "stereo_8k": OK,
            "mono_96k": OK,
            "six_channels": OK,
            "u8": OK,
            "silence": "sound_silent",
            "short_50ms": "sound_too_short",
            "size_ffffffff": OK,
            "mp3_as_wav": OK,
            "no_json": "metadata_missing",
            "bad_json": "json_invalid",
            "null_fields": "text_missing",
        }.items()
    },
    "youtube_music/no_audio.json": {"youtube_music/no_audio": "media_missing"},
    "youtube_music/bad_json.json": {"youtube_music/bad_json": "json_invalid"},
    "youtube_music/null_fields.json": {"youtube_music/null_fields": "text_missing"},
    "youtube_music/traversal.json": {"youtube_music/traversal": "path_outside_corpus"},
    "musiccaps/musiccaps-public.csv": lines(
        "segment_times_invalid", "media_missing", "media_missing", "text_empty", "record_malformed"
    ),
    "anyinstruct/metadata.jsonl": lines(
        "placeholder_unmatched",
        "placeholder_unmatched",
        "dialogue_empty",
        "role_unknown",
        "media_missing",
        "turns_out_of_order",
        "path_outside_corpus",
        "text_missing",
        "special_tokens_in_text",
        "json_invalid",
    ),
}
# These are lines of tokens: shards.convert imports them.
TOKEN_FILES = {
    "anygpt_tokens/pretrain/image/bad.jsonl": (10, 1),
    "anygpt_tokens/pretrain/speech/bad.jsonl": (6, 1),
    "anygpt_tokens/pretrain/music/bad.jsonl": (3, 0),
}
FOLDERS = {"laion": "laion2b", "mmc4": "mmc4_core_ff"}
IDS_OF_LINES = {
    f"journeydb/{JSONL}": f"journeydb/{JSONL.removesuffix('.jsonl')}/",
    "mls/mls_english/train/transcripts.txt": "mls/english/train/",
    "commonvoice/en/train.tsv": "commonvoice/en/train/",
    "musiccaps/musiccaps-public.csv": "musiccaps/",
    "anyinstruct/metadata.jsonl": "anyinstruct/metadata/",
    **{f"mmc4/docs_no_face_shard_{n}_v3.jsonl.gz": f"mmc4_core_ff/docs_no_face_shard_{n}_v3/" for n in range(4)},
}


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


def test_the_bombs_are_refused_by_their_headers(damaged: Path):
    """A picture of 25,000 x 25,000 would be 1.9 GB; reading the whole shard in a fresh process stays far below."""
    code = (
        "import resource, sys; from pathlib import Path; "
        "from pipeline.corpus import CorpusConfig, load_corpus; from pipeline.pictures import decode_picture; "
        "from shards.errors import SampleError; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "reader = load_corpus(CorpusConfig(corpus='laion2b', root=Path(sys.argv[1]), output=Path('unused'))); "
        "found = []\n"
        "for raw in reader.read(reader.sources()[0], start=10, stop=12):\n"
        "    try: decode_picture(raw.segments[0].data)\n"
        "    except SampleError as error: found.append(error.reason)\n"
        "assert found == ['image_too_large'] * 2, found\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(damaged / "laion")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    in_kib = 1 if sys.platform != "darwin" else 1024
    assert int(done.stdout) / in_kib < 50_000


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
