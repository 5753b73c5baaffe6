"""Tables with media: Parquet folders and plain folders, and files that are counted in several processes."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import BoundReader, CorpusConfig, load_corpus
from pipeline.reading.columns import ID, MEDIA, TEXT, Columns
from pipeline.reading.hf_parquet import media_of
from pipeline.reading.lines import count_lines
from pipeline.reading.listing import list_sources
from pipeline.reading.parquet_rows import count_rows, iter_rows
from pipeline.reading.tables import count_table, iter_table, row_values
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject, Source
from shards.errors import ConfigError, CorpusError, SampleError
from shards.storage import file_system, key_of, open_path
from tests.fixtures.miniature_corpora import folder as make_folder
from tests.fixtures.miniature_corpora import hf_pictures as make_pictures
from tests.fixtures.miniature_corpora import hf_speech as make_speech
from tests.fixtures.miniature_corpora import picture, sound, write, write_parquet
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server

COLUMNS = Columns({MEDIA: ("audio",), TEXT: ("text",), ID: ("id",)}, ("likes",))
FIELD = st.text(st.sampled_from("ab \",'\n\tè🐣"), max_size=8).map(str.strip)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def table(path: Path, num_rows: int, *, size: int = 20, **options: object) -> Path:
    """A Parquet file whose row n has the medium ``n`` repeated, and the text ``n``."""
    rows = [{"audio": {"bytes": bytes([n % 251]) * size, "path": f"{n}.wav"}, "text": str(n)} for n in range(num_rows)]
    schema = pa.schema([("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def reader_of(name: str, root: Path, split: str = "train", **options: object) -> BoundReader:
    return load_corpus(CorpusConfig(corpus=name, root=root, output=Path("unused"), split=split, options=options))


def samples(reader: BoundReader) -> list[RawSample]:
    found = [result for source in reader.sources() for result in reader.read(source)]
    return [result for result in found if isinstance(result, RawSample)]


def texts(reader: BoundReader) -> list[str]:
    return [s.text for sample in samples(reader) for s in sample.segments if isinstance(s, RawText)]


# Parquet -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(num_rows=st.integers(0, 60), group=st.integers(1, 40), start=st.integers(0, 70), length=st.integers(0, 70))
def test_a_slice_of_rows_is_that_slice_whatever_the_row_groups(
    scratch: Path, num_rows: int, group: int, start: int, length: int
):
    path = table(scratch / "slices.parquet", num_rows, row_group_size=group)
    assert count_rows(path, columns=COLUMNS) == num_rows
    rows = list(iter_rows(path, columns=COLUMNS, start=start, stop=start + length))
    assert [row.number for row in rows] == list(range(num_rows))[start : start + length]
    for row in rows:
        wanted = {"bytes": bytes([row.number]) * 20, "path": f"{row.number}.wav"}
        assert row.values == {MEDIA: wanted, TEXT: str(row.number)} and row.problem is None


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_damaged_row_group_costs_nothing_but_itself(scratch: Path, broken: int):
    path = table(scratch / "damaged.parquet", 90, size=200, row_group_size=30, compression="zstd")
    group = pq.ParquetFile(path).metadata.row_group(broken)
    at = group.column(2).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    rows = list(iter_rows(path, columns=COLUMNS))
    assert [row.number for row in rows] == list(range(90)) and count_rows(path, columns=COLUMNS) == 90
    lost = [row.number for row in rows if row.problem is not None]
    assert lost == list(range(30 * broken, 30 * broken + 30))
    assert {row.problem.reason for row in rows if row.problem is not None} == {"row_group_damaged"}
    inside = list(iter_rows(path, columns=COLUMNS, start=25, stop=65))
    assert [(row.number, row.problem is None) for row in inside] == [(n, n not in lost) for n in range(25, 65)]


def test_no_byte_of_the_footer_can_promise_what_is_not_there(scratch: Path):
    """Whatever the footer says, listing and reading agree; a count of rows that nobody checked would be believed.

    One of these bytes once ended the process: pyarrow raised where nobody could catch it.
    """
    path = table(scratch / "footer.parquet", 37, row_group_size=20)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    refused = 0
    for at in range(len(data) - 8 - footer, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x06]) + data[at + 1 :])
        rows = list(iter_rows(path, columns=COLUMNS))
        assert count_rows(path, columns=COLUMNS) == len(rows) in (1, 37)
        refused += len(rows) == 1 and rows[0].problem is not None
    assert refused > 20


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "file_empty"),
        (lambda data: data[: len(data) // 2], "file_truncated"),
        (lambda data: data[:-1], "file_truncated"),
        (lambda data: b"<html>not found</html>", "parquet_unreadable"),
        (lambda data: b"P", "parquet_unreadable"),
    ],
)
def test_a_file_that_cannot_be_opened_is_one_row_that_says_why(scratch: Path, damage: object, reason: str):
    path = table(scratch / "whole.parquet", 5)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    (row,) = iter_rows(path, columns=COLUMNS)
    assert row.problem is not None and row.problem.reason == reason
    assert count_rows(path, columns=COLUMNS) == 1
    assert list(iter_rows(path, columns=COLUMNS, start=1)) == []


def test_memory_is_a_few_pages_however_long_a_row_group_is(tmp_path: Path):
    """100 MB in one row group; a fresh process that reads it stays far below."""
    table(tmp_path / "long.parquet", 500, size=200_000, compression="none", use_dictionary=False, write_batch_size=5)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.reading.parquet_rows import iter_rows\n"
        "from pipeline.reading.columns import Columns\n"
        "columns = Columns({'media': ('audio',), 'text': ('text',)})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(len(row.values['media']['bytes']) for row in iter_rows(Path(sys.argv[1]), columns=columns)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "long.parquet")]
    read, grown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split()
    assert int(read) == 100_000_000
    # In KiB on Linux, in bytes on macOS.
    assert int(grown) / (1024 if sys.platform == "darwin" else 1) < 60_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "media_missing"),
        ({"bytes": None, "path": None}, "media_missing"),
        ({"bytes": b"", "path": "x"}, "media_empty"),
        (b"x" * 11, "media_too_large"),
        ({"array": [0.0], "sampling_rate": 16_000}, "record_malformed"),
        ([1, 2], "record_malformed"),
        (7, "record_malformed"),
        ({"bytes": None, "path": "/etc/passwd"}, "path_outside_corpus"),
        ("gone.wav", "media_missing"),
    ],
)
def test_what_is_no_medium_has_a_reason(tmp_path: Path, value: object, reason: str):
    with pytest.raises(SampleError) as caught:
        media_of(value, folder=tmp_path, root=tmp_path, max_bytes=10)
    assert caught.value.reason == reason


def test_a_text_that_is_no_utf8_is_one_reject(tmp_path: Path):
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xe9")]
    )
    audio = pa.array([{"bytes": b"x", "path": "0"}] * 2)
    pq.write_table(pa.table({"audio": audio, "text": text}), tmp_path / "train.parquet")
    first, second = (result for s in reader_of("hf_speech", tmp_path).sources() for result in read_of(tmp_path, s))
    assert isinstance(first, RawSample)
    assert isinstance(second, Reject) and second.reason == "text_not_utf8"


def read_of(root: Path, source: Source) -> list[RawSample | Filtered | Reject]:
    return list(reader_of("hf_speech", root).read(source))


def test_rows_of_the_hub_keep_what_they_are(tmp_path: Path):
    """Names, votes and labels as published; the text of GigaSpeech as its own reader writes it."""
    make_speech(tmp_path)
    first = samples(reader_of("hf_speech", tmp_path, label="mls"))[0]
    assert (first.sample_id, first.corpus) == ("mls/english/train-00000-of-00002/0", "mls")
    assert (first.provenance.member, first.provenance.offset) == ("10_20_0", 0)
    only = {"files": ["xs/{split}-*.parquet"]}
    assert texts(reader_of("hf_speech", tmp_path, **only)) == ["well, who's there?"]
    assert texts(reader_of("hf_speech", tmp_path, **only, lower_case=False)) == ["WELL, WHO'S THERE?"]
    plain = texts(reader_of("hf_speech", tmp_path, **only, style="plain"))
    assert plain[0] == "WELL <COMMA> WHO'S THERE <QUESTIONMARK>" and len(plain) == 3
    audio = {"bytes": sound(0.3, 16_000, form="MP3"), "path": "c.mp3"}
    row = {"client_id": "f", "path": "c.mp3", "audio": audio, "sentence": "Hello.", "up_votes": 3, "down_votes": "0"}
    write_parquet(tmp_path / "cv" / "en" / "validation-00000-of-00001.parquet", [row])
    (voice,) = samples(reader_of("hf_speech", tmp_path / "cv", split="validation"))
    assert dict(voice.quality) == {"up_votes": 3.0, "down_votes": 0.0} and voice.provenance.member == "c.mp3"
    assert voice.split == "validation"


def test_pictures_bring_their_numbers_and_all_their_captions(tmp_path: Path):
    rows = [
        {
            "image": {"bytes": picture(1), "path": None},
            "captions": ["One.", "Uno."],
            "WIDTH": 48,
            "AESTHETIC_SCORE": 6.5,
        },
        {"image": {"bytes": picture(2), "path": None}, "captions": [], "WIDTH": None, "AESTHETIC_SCORE": None},
    ]
    write_parquet(tmp_path / "train.parquet", [{**row, "LICENSE": "CC0", "URL": "https://example.org"} for row in rows])
    (first,) = samples(reader_of("hf_pictures", tmp_path))
    assert [s.text for s in first.segments if isinstance(s, RawText)] == ["One.", "Uno."]
    assert dict(first.quality) == {"width": 48.0, "aesthetic": 6.5}
    assert (first.provenance.licence, first.provenance.url) == ("CC0", "https://example.org")


def test_parquet_and_folders_are_read_from_an_object_store(tmp_path: Path):
    """The same outcomes as from a local folder, files beside the table included."""
    makers = {"hf_speech": make_speech, "hf_pictures": make_pictures, "folder": make_folder}
    with s3_server() as url, pointed_at(url):
        make_bucket("bucket")
        for name, make in makers.items():
            make(tmp_path / name)
            root = open_path(f"s3://bucket/{name}")
            for path in sorted(tmp_path.joinpath(name).rglob("*")):
                if path.is_file():
                    key = f"{key_of(root)}/{path.relative_to(tmp_path / name).as_posix()}"
                    file_system(root).pipe_file(key, path.read_bytes())
            here, there = reader_of(name, tmp_path / name), reader_of(name, root)
            assert [outcome_of(r) for s in there.sources() for r in there.read(s)] == [
                outcome_of(r) for s in here.sources() for r in here.read(s)
            ]


def outcome_of(result: RawSample | Filtered | Reject) -> tuple[object, ...]:
    if isinstance(result, RawSample):
        return result.sample_id, result.segments, result.provenance
    return result.sample_id, result.reason, result.provenance


# Folders -------------------------------------------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(FIELD, FIELD), max_size=6), packed=st.booleans(), bom=st.booleans())
def test_rows_of_a_csv_come_back_whatever_is_in_them(
    scratch: Path, rows: list[tuple[str, str]], packed: bool, bom: bool
):
    """Line breaks, blank lines, commas and quotes inside a field are part of it."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("audio", "text"), *rows])
    data = (("\ufeff" if bom else "") + file.getvalue()).encode()
    path = scratch / ("rows.csv.gz" if packed else "rows.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    found = list(iter_table(path, columns=COLUMNS))
    values = [row_values(row, header, columns=COLUMNS) for row, header in found]
    assert [(value[MEDIA], value[TEXT]) for value in values] == rows
    assert count_table(path, columns=COLUMNS) == len(rows)


def test_a_quote_that_nothing_closes_is_one_reject_and_reading_goes_on(scratch: Path):
    path = scratch / "quote.csv"
    path.write_bytes(b'audio,text\na.wav,one\nb.wav,"' + b"x\n" * 70_000 + b"c.wav,three\n")
    good: list[str] = []
    bad: list[str] = []
    for row, header in iter_table(path, columns=COLUMNS):
        try:
            good.append(row_values(row, header, columns=COLUMNS)[TEXT])
        except SampleError as error:
            bad.append(error.reason)
    assert good == ["one", "three"]
    assert set(bad) == {"record_malformed"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", 'audio\ttext\tlikes\na.wav\t"say ""hi"""\t3\n'),
        ("t.csv", 'audio,text,likes\na.wav,"say ""hi""",3\n'),
        ("t.jsonl", '{"audio": "a.wav", "text": "say \\"hi\\"", "likes": 3}\n'),
    ],
)
def test_a_row_is_the_same_in_every_kind_of_table(scratch: Path, name: str, text: str):
    (scratch / name).write_text(text, encoding="utf-8")
    ((row, header),) = iter_table(scratch / name, columns=COLUMNS)
    values = row_values(row, header, columns=COLUMNS)
    assert (values[MEDIA], values[TEXT], int(values["likes"])) == ("a.wav", 'say "hi"', 3)


def test_options_say_what_a_folder_is(tmp_path: Path):
    write(tmp_path / "sounds" / "a.bin", sound(0.3, 32_000, form="WAV"))
    write(tmp_path / "tables" / "dev.tsv", "clip\twords\tlicense\na.bin\tA tune.\tCC0\n")
    options = {"file": ["clip"], "text": ["words"], "media": "../sounds", "kind": "music", "label": "tunes"}
    (one,) = samples(reader_of("folder", tmp_path, "dev", **options))
    medium, words = one.segments
    assert isinstance(medium, RawMedia) and (medium.slot, str(medium.modality)) == ("music", "music")
    assert isinstance(words, RawText) and (words.slot, words.text) == ("caption", "A tune.")
    assert (one.sample_id, one.provenance.licence) == ("tunes/tables/dev.tsv/2", "CC0")
    with pytest.raises(CorpusError, match=r"metadata\.csv"):
        reader_of("folder", tmp_path).sources()
    outside = reader_of("folder", tmp_path, "dev", **{**options, "media": "../../sounds"})
    with pytest.raises(ConfigError, match=r"options\.media.*inside the corpus"):
        samples(outside)


def test_a_table_of_another_split_is_never_taken_for_this_one(tmp_path: Path):
    write(tmp_path / "test" / "metadata.csv", "file_name,text\na.jpg,x\n")
    with pytest.raises(CorpusError, match=r"split train.*test/metadata\.csv"):
        reader_of("folder", tmp_path).sources()
    assert [source.num_items for source in reader_of("folder", tmp_path, "test").sources()] == [1]


# Listing -------------------------------------------------------------------------------------------------------------


def test_files_counted_in_processes_are_the_same_sources_in_the_same_order(tmp_path: Path):
    paths: list[Path] = []
    for number in range(9):
        paths.append(tmp_path / f"{(number * 5) % 9}.txt")
        write(paths[-1], "line\n" * number)
    one_by_one = list_sources(paths, count_lines)
    assert [source.num_items for source in one_by_one] == [1, *range(1, 9)]
    assert list_sources(paths, count_lines, parallel_from=2, processes=2) == one_by_one


def test_a_count_that_fails_in_a_process_fails_here(tmp_path: Path):
    write(tmp_path / "a.txt", "line\n")
    with pytest.raises(FileNotFoundError):
        list_sources([tmp_path / "a.txt", tmp_path / "gone.txt"], count_lines, parallel_from=2, processes=2)


def test_a_script_that_cannot_be_imported_again_lists_all_the_same(tmp_path: Path):
    """Spawned processes import the caller's script, which here (from standard input) is nowhere to be found."""
    for number in range(3):
        write(tmp_path / f"{number}.txt", "line\n" * (number + 1))
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.reading.lines import count_lines; from pipeline.reading.listing import list_sources\n"
        "paths = sorted(Path(sys.argv[1]).iterdir())\n"
        "print([s.num_items for s in list_sources(paths, count_lines, parallel_from=2, processes=2)])"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-", str(tmp_path)]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True, cwd=root, timeout=60)
    assert done.stdout.split("\n")[-2] == "[1, 2, 3]"


def test_a_process_of_a_pool_lists_by_itself(tmp_path: Path):
    for number in range(3):
        write(tmp_path / f"{number}.txt", "line\n" * (number + 1))
    call = partial(list_sources, sorted(tmp_path.iterdir()), count_lines, parallel_from=2, processes=2)
    with ProcessPoolExecutor(1) as pool:
        assert [source.num_items for source in pool.submit(call).result()] == [1, 2, 3]
